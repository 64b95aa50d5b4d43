"""How this process allocates: what Python collects, and what the C library gives back."""

import ctypes
import gc

# A worker makes hardly any cycles; the default of 700 costs a tenth of a backlog's CPU.
GC_THRESHOLD = (20_000, 20, 50)
M_MMAP_THRESHOLD = -3  # glibc's malloc.h
MMAP_BYTES = 1 << 20


def keep_memory_flat() -> None:
    """Give large blocks back to the system when they are freed.

    Else glibc moves the size from which it does so up to the largest block it has seen freed, and what a checkpoint
    copied stays: memory swings by a tenth (`make soak`). Does nothing where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def settle() -> None:
    """After startup: modules and model stay; a collection that looks at them stops everything for 20 ms or more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
