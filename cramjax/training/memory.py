"""Host memory on CPU: keep what a step frees instead of asking the kernel for it again at every step."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse freed blocks of any size; True where that worked. Call it before JAX starts threads.

    XLA:CPU allocates a step's temporaries as one block of hundreds of MB and frees it afterwards. By default glibc maps such a
    block anew each time, and the kernel zeroes it page by page: 155,000 page faults and almost half of the time of a
    step of a prototype of the 4 × 256 model (13,000 → 22,300 tokens/s without them, docs/benchmarks.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    # One arena: the others are made of 64 MB heaps and map whatever is larger.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
