"""What an autoencoder counts as that was saved before its config stated the eps of its norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from flowprior.notes import note


def as_saved_before(sizes: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Set, and say, what an autoencoder has that states no eps: timm's transformers had the eps that they have, and those with pooling kept it;
    where their last norm lay behind it, tokens passed none.

    Args:
        sizes: the ``AutoencoderConfig``, whose transformers' ``keep_pooling`` is set.
        tensors: its weights by name.
        folder: where it lies, for the note.
    """
    without = []
    for part in ("encoder", "decoder"):
        late = any(name.startswith(f"{part}.vit.fc_norm.") for name in tensors)
        if late or any(name.startswith(f"{part}.vit.attn_pool.") for name in tensors):
            getattr(sizes, part).keep_pooling = True
        without += [part] * late
    ends = f"; {' and '.join(without)}: without the norm behind the pooling, as trained" if without else ""
    note(f"the autoencoder in {folder} states no eps of its norms: they have what timm gives such transformers{ends}")
