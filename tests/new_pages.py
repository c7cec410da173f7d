"""Count the pages of memory that tensors take from the system, to see whether freed memory is used again."""

import ctypes
import resource

import pytest
import torch

FLOATS = 10 * 2**20  # 40 MiB: smaller blocks glibc may keep by itself
ROUNDS = 10
ALL = ROUNDS * FLOATS * 4 // resource.getpagesize()
"""Pages that are new if none is used again."""

GLIBC = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc, whose allocator is set"
)


def new_pages() -> int:
    """Fill and free a tensor again and again, and count the new pages."""
    torch.ones(FLOATS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        torch.ones(FLOATS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
