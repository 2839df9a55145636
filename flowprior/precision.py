"""Parts of a forward pass that keep float32 whatever the autocast around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within, autocast is off on ``device``; nothing to do on one that has no autocast, such as ``meta``."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Within, convolutions on a GPU keep all bits of float32, of which PyTorch lets them drop thirteen (TF32) unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
