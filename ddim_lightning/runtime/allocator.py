"""Freed memory of the host is kept for the next tensor."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_FROM_HEAP = 2**25
_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Have the C library keep up to a GiB of freed memory, instead of giving it back to the system at once.

    A pass on a CPU frees and allocates the same few megabytes again and again. Given back in between, each page of
    theirs has to be mapped anew when it is first touched, which takes about a tenth of the time of a pass. The setting
    is the whole process's, so that it is left to programs: the command line makes it, the library does not.

    Returns:
        Whether there is a GNU C library, which took the setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; no C library to ask
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
