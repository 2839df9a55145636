"""Memory that a CPU's training step frees stays with the process, for the next step to use."""

from __future__ import annotations

import ctypes
import os

# glibc's parameters (mallopt(3)), and values: blocks below 32 MiB, the largest threshold there is, come from the heap, which grows by 64 MiB and
# is not given back.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
VALUES = {TRIM_THRESHOLD: 1 << 30, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to give freed memory back to the system.

    A training step frees activations and gradients that the next one needs again. Given back in between, they are fetched again page by
    page: some thousand page faults a step, a tenth of the time of the toys' step.

    Returns:
        Whether it was done: not with another C library, nor where the environment has settings of its own (``MALLOC_*_``).
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(parameter, value) for parameter, value in VALUES.items())
