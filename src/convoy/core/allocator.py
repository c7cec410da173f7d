"""Keep freed memory in the process, for work that takes blocks of the same sizes again and again, as training does.

glibc returns a large block to the system when it is freed, and the system clears every page of the next one. A step of `airbench`
on 500 images of 24 px took 285 ms on 2 cores; with its memory kept it takes 238 ms.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h): free bytes at the heap's end that it keeps, and blocks that it takes from the system directly."""

USUAL = {M_TRIM_THRESHOLD: 128 * 2**10, M_MMAP_MAX: 65536}
"""Their values unless a program changes them (mallopt(3))."""

KEPT = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0}


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory until the block ends; then return what is free. Without glibc, such as on macOS, do nothing.

    The process needs no more memory than it does at most, but holds it between its peaks.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    for parameter, value in KEPT.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
