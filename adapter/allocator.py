"""What glibc does with the memory of arrays that are gone."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 64 << 20
_LARGEST_BYTES = 32 << 20  # the most that glibc takes

ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES), "MALLOC_MMAP_THRESHOLD_": str(_LARGEST_BYTES)}


def keep_freed_memory() -> None:
    """Have this process keep up to 64 MB that it has freed, for arrays of up to 32 MB that come next.

    By default it gives each large array's pages back to the system, and gets each page anew, filled with zeros: for
    arrays of some megabytes that takes longer than all else that is done with them on their way. `ENVIRONMENT` does the
    same for a process that is started with it.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
