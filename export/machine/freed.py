"""Gives memory that nobody uses any more back to the system, before large work asks for more."""

import ctypes
import gc
import sys


def return_memory() -> None:
    """Free what cycles alone hold, and give back what the allocator keeps of freed memory.

    glibc keeps blocks of some megabytes for the process, of which the weights of a vision tower are many.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
