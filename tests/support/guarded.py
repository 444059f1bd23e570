"""Arrays with memory behind them that nobody may touch."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from hasten.core.tensors import Array


def guarded(array: Array) -> Array:
    """Return a copy whose last byte is the last one before a page that can't be read or written."""
    pages = -(-array.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    behind = ctypes.c_void_p(first + pages * mmap.PAGESIZE)
    if ctypes.CDLL(None).mprotect(behind, ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError("a page can't be protected")
    start = pages * mmap.PAGESIZE - array.nbytes
    copy = np.frombuffer(memory, np.uint8, array.nbytes, start).view(array.dtype)
    copy[:] = array.reshape(-1)
    return copy
