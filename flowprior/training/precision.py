"""Parts of a forward pass that keep float32 whatever the autocast around them."""

from __future__ import annotations

import contextlib

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within, autocast is off on ``device``; nothing to do on one that has no autocast, such as ``meta``."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
