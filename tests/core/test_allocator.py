"""Freed memory stays in the process while it is kept, and returns to the system afterwards."""

import ctypes
import resource

import psutil
import pytest
import torch

from convoy.core.allocator import memory_kept

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc, whose allocator is set"
)

FLOATS = 2 * 2**20  # 8 MiB
ROUNDS = 20


def new_pages():
    """Count the pages that filling and freeing a tensor again and again takes from the system."""
    torch.ones(FLOATS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        torch.ones(FLOATS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_kept_memory_is_used_again():
    whole = ROUNDS * FLOATS * 4 / resource.getpagesize()
    with memory_kept():
        assert new_pages() < whole / 10
    assert new_pages() > whole / 2


def test_memory_returns_to_the_system_at_the_end():
    process = psutil.Process()
    before = process.memory_info().rss
    with memory_kept():
        torch.ones(40 * FLOATS)
        assert process.memory_info().rss > before + 250e6, "kept"
    assert process.memory_info().rss < before + 60e6
