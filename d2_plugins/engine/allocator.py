"""glibc's allocator settings for work on a CPU."""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# Numbers of mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_SWITCH = "D2_PLUGINS_KEEP_FREED_MEMORY"


def keep_freed_memory() -> bool:
    """Make the allocator reuse freed memory instead of returning it to the operating system.

    By default glibc maps every large block on its own and unmaps it when it is freed, so that each
    activation of a training step is paid for with new pages, cleared by the kernel. Here blocks
    come from the heap, and the heap is not trimmed. The process keeps its peak memory until it
    ends. ``D2_PLUGINS_KEEP_FREED_MEMORY=0`` in the environment switches this off.

    Returns:
        True if the settings were made; False if they are switched off, or on a system without
        glibc.
    """
    if os.environ.get(_SWITCH, "1") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
