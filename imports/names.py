"""From published names to those of a network here: every tensor is accounted for, or named in the line that refuses it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.files import load_weights
from imports.checkpoint import Checkpoint

ADAPTER = re.compile(r"(^|[._])lora([._]|$)", re.IGNORECASE)


class Made(NamedTuple):
    """A tensor here: of which published ones, and how."""

    of: tuple[str, ...]
    by: Callable[..., Tensor] = lambda tensor: tensor


def renamed(names: Iterable[str], beginnings: dict[str, str]) -> dict[str, Made]:
    """What each of our ``names`` is made of, where one of ``beginnings`` (ours: published) begins it; the others are left out."""
    made = {}
    for name in names:
        for ours, published in beginnings.items():
            if name.startswith(ours):
                made[name] = Made((published + name.removeprefix(ours),))
                break
    return made


def fill_by_names(
    module: nn.Module, checkpoint: Checkpoint, made: dict[str, Made], what: str, dropped: tuple[str, ...] = ()
) -> None:
    """Fill all of ``module`` from ``checkpoint``.

    Args:
        module: a network, on the CPU.
        checkpoint: by its published names.
        made: what each of the module's tensors is made of.
        what: the module is, in messages.
        dropped: beginnings of published names that have no place here; they are named on stderr.

    Raises:
        UserError: tensors are missing or left over, of other sizes, no floating-point numbers, or not finite.
    """
    there, own = checkpoint.tensors, module.state_dict()
    used = {name for one in made.values() for name in one.of}
    missing = sorted(used - there.keys()) + sorted(f"{name} (here)" for name in own.keys() - made.keys())
    left = sorted(there.keys() - used)
    strange = [name for name in left if not name.startswith(dropped)]
    if missing or strange:
        reasons = [f"it lacks {few(missing)}"] * bool(missing) + [f"has {few(strange)} beside"] * bool(strange)
        raise UserError(f"the weights in {checkpoint.file} are not those of {what}: {' and '.join(reasons)}")
    tensors = {}
    for name, (of, by) in made.items():
        parts = [there[part] for part in of]
        for part, value in zip(of, parts):
            if not value.is_floating_point() or not torch.isfinite(value).all():
                raise UserError(f"the weights in {checkpoint.file} are no finite floating-point numbers: {part}")
        try:
            tensors[name] = by(*parts)
        except (RuntimeError, IndexError) as error:
            raise UserError(
                f"the weights in {checkpoint.file} are not those of {what}: {_shapes(of, parts)}"
            ) from error
        if tensors[name].shape != own[name].shape:
            wanted = tuple(own[name].shape)
            raise UserError(
                f"the weights in {checkpoint.file} are not those of {what}: {_shapes(of, parts)}, for {wanted} here"
            )
    load_weights(module, tensors, what)
    if left:
        begins = [beginning for beginning in dropped if any(name.startswith(beginning) for name in left)]
        note(
            f"of {checkpoint.file}, {len(left)} tensors have no place here and are left out: their names begin with {', '.join(begins)}"
        )


def has_names(checkpoint: Checkpoint, beginnings: tuple[str, ...]) -> bool:
    """Whether one of the checkpoint's names has one of ``beginnings``."""
    return any(name.startswith(beginnings) for name in checkpoint.tensors)


def refuse_adapters(checkpoint: Checkpoint) -> None:
    """A :class:`UserError` for low-rank adapters (LoRA), of whatever network, by the names that peft, diffusers and kohya give them."""
    if name := next((name for name in checkpoint.tensors if ADAPTER.search(name)), None):
        raise UserError(
            f"{checkpoint.file} has LoRA adapters ({name}): merge them into the weights that they adapt, and save these alone"
        )


def size_of(checkpoint: Checkpoint, name: str, dimensions: int, what: str) -> torch.Size:
    """The shape of a published tensor; a :class:`UserError` where it is not there, or has another number of dimensions."""
    value = checkpoint.tensors.get(name)
    if value is None:
        raise UserError(f"the weights in {checkpoint.file} are not those of {what}: it lacks {name}")
    if value.dim() != dimensions:
        raise UserError(
            f"the weights in {checkpoint.file} are not those of {what}: {name} has shape {tuple(value.shape)}, not {dimensions} dimensions"
        )
    return value.shape


def depth_of(checkpoint: Checkpoint, beginning: str) -> int:
    """How many numbered blocks there are behind ``beginning``, such as ``encoder_blocks.``."""
    numbers = {
        name.removeprefix(beginning).partition(".")[0] for name in checkpoint.tensors if name.startswith(beginning)
    }
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _shapes(names: tuple[str, ...], values: list[Tensor]) -> str:
    return " and ".join(f"{name} is {tuple(value.shape)}" for name, value in zip(names, values))


def few(names: list[str]) -> str:
    """Up to four of ``names``, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
