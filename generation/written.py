"""What a person wrote of the generator on a command line that takes it as it was trained, or draws samples with it."""

from __future__ import annotations

from typing import Any

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.config import changed_options, to_dict
from generation.config import GenerationConfig


def check_written(config: GenerationConfig, trained: Any, what: str) -> None:
    """A :class:`UserError` where an option of the model was written that ``what``, the ``trained`` one, has otherwise.

    A preset may differ: of a trained generator, only the sampler is its own.
    """
    changes = changed_options(type(config.model), to_dict(trained), to_dict(config.model), "model")
    if written := [change for change in changes if change.partition(":")[0] in config.command_line.options]:
        raise UserError(
            f"{what} was trained with other options than those written ({'; '.join(written)}): leave these out, or write run_dir=<another run>"
        )


def note_unread(config: GenerationConfig) -> None:
    """Say which written options of the sampler change no sample, beside the others."""
    name = config.model.name
    unread = getattr(getattr(config.model, name).sampler, "unread", dict)
    for option, reason in unread().items():
        if f"model.{name}.sampler.{option}" in config.command_line.options:
            note(f"model.{name}.sampler.{option} changes no sample beside {reason}")
