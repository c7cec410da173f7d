"""Freed memory stays in the process while it is kept, and returns to the system afterwards."""

import psutil
import torch

from convoy.core.allocator import memory_kept
from new_pages import ALL, FLOATS, GLIBC, new_pages

pytestmark = GLIBC


def test_kept_memory_is_used_again():
    with memory_kept():
        assert new_pages() < ALL / 2
    assert new_pages() > ALL / 2


def test_memory_returns_to_the_system_at_the_end():
    process = psutil.Process()
    before = process.memory_info().rss
    with memory_kept():
        torch.ones(8 * FLOATS)
        assert process.memory_info().rss > before + 250e6, "kept"
    assert process.memory_info().rss < before + 60e6
