"""What a target source is given and gives: a table of features and where it came from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from flowprior.data.images import ImageConfig
from flowprior.distributed import World
from flowprior.run.files import tensors_fingerprint, write_tensors
from flowprior.run.fingerprints import accept_earlier
from flowprior.run.provenance import Provenance


def spread_rows(total: int, wanted: int) -> Tensor:
    """Up to ``wanted`` row numbers of a table of ``total`` rows, spread evenly from the first to the last."""
    if total > 1 << 24:  # float32 does not hold the last row's number
        return torch.arange(wanted) * (total - 1) // (wanted - 1)
    return torch.linspace(0, total - 1, min(wanted, total)).long()


class TargetFeatures(NamedTuple):
    """Features that the flow prior learns the distribution of."""

    features: Tensor  # (N, d2), floating point; may be memory-mapped
    name: str
    rows_per_sample: int = 1  # neighbouring rows that come from one image: held out together or not at all
    known_finite: bool = False  # whether every row was looked at when it was made

    def fingerprint(self) -> str:
        """16 hex digits of shape and of up to 4,096 rows spread over the table."""
        rows = spread_rows(len(self.features), 4096)
        return tensors_fingerprint({"rows": self.features[rows], "shape": torch.tensor(self.features.shape)})


def _no_other_source(name: str) -> TargetFeatures:
    raise ValueError(f"there is no source '{name}' beside this one")


class TargetContext(NamedTuple):
    """What a source's ``load`` may use."""

    seed: int
    folder: Path  # of the stage: for features that are worth keeping
    world: World
    data: ImageConfig = ImageConfig()  # the images, for sources that take features of images
    loaders: int = 0  # data loading processes per training process
    other: Callable[[str], TargetFeatures] = (
        _no_other_source  # the features of another source, by name, as it is configured
    )


def computed_once(
    context: TargetContext, recipe: object, make: Callable[[], TargetFeatures], shown: str = ""
) -> TargetFeatures:
    """Features that the first process makes alone, once, and that lie in the stage's folder from then on.

    The others wait meanwhile. Features of many images are made by all processes together, see :mod:`tokenizer.prior.targets.extraction`.

    Args:
        context: see the class.
        recipe: what determines the features besides the seed; its ``repr`` is kept with them, and those of another are made anew.
        make: makes them.
        shown: the fingerprint of the images that they are made from, as it stands in ``recipe``.
    """
    file, made_from = context.folder / "target.safetensors", f"{recipe!r} seed {context.seed}"
    updated = partial(accept_earlier, now=shown, where=file)
    stale = Provenance(file, "target", "made_from", updated=updated).differing(made_from, context.world)
    if stale and context.world.is_main:
        made = make()
        about = {"name": made.name, "made_from": made_from, "rows_per_sample": str(made.rows_per_sample)}
        write_tensors(file, {"features": made.features}, about)
    context.world.barrier()
    with safe_open(file, "pt") as kept:
        about = kept.metadata()
        return TargetFeatures(kept.get_tensor("features"), about["name"], int(about.get("rows_per_sample", 1)))
