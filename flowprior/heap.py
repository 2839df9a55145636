"""Memory that a CPU's training step frees stays with the process, for the next step to use."""

from __future__ import annotations

import ctypes
import os

# mallopt(3): never give the top of the heap back, let it grow by 64 MiB, and take blocks below the threshold from it. Some versions of glibc refuse a
# threshold above 32 MiB; there, larger blocks come from the system and go back to it.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
HEAP = {TRIM_THRESHOLD: -1, TOP_PAD: 64 << 20}
THRESHOLDS = (1 << 30, 32 << 20)
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Tell glibc's allocator, for the whole process and for good, not to give freed memory back to the system.

    A training step frees activations and gradients that the next one needs again. Given back in between, they are fetched again page by
    page: some thousand page faults a step, a tenth of the time of the toys' step. The price is resident memory that stays at its peak.

    Returns:
        Whether the allocator took it: not with another C library, nor where the environment has settings of its own for the same
        (``MALLOC_TRIM_THRESHOLD_`` and its like, or ``glibc.malloc`` in ``GLIBC_TUNABLES``).
    """
    if any(name in os.environ for name in OWN_SETTINGS) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    heap = all(mallopt(parameter, value) for parameter, value in HEAP.items())
    return heap and any(mallopt(MMAP_THRESHOLD, value) for value in THRESHOLDS)
