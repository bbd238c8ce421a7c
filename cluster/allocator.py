"""Memory of freed images is kept by this process: taking it anew from the kernel costs a quarter of all CPU time."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have glibc give nothing back and map nothing, from now on; another C library is left as it is.

    Processes that are started from here are told by their environment instead (see `cluster`), which reaches their
    threads' arenas too.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _MOST)
