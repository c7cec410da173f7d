"""Freed memory stays in the process while it is kept, and returns to the system afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from convoy.core.allocator import memory_kept
from new_pages import ALL, FLOATS, GLIBC

TESTS = Path(__file__).parents[1]

pytestmark = GLIBC


COUNT = """
from convoy.core.allocator import memory_kept
from new_pages import new_pages
usual = new_pages()
with memory_kept():
    print(usual, min(new_pages() for _ in range(5)))  # the heap grows first
"""


def test_kept_memory_is_used_again():
    # In a process of its own: what other tests freed may lie in the heap, where blocks of any size use it again.
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    usual, kept = map(int, done.stdout.split())
    assert kept < ALL / 2 < usual


def test_memory_returns_to_the_system_at_the_end():
    process = psutil.Process()
    before = process.memory_info().rss
    with memory_kept():
        torch.ones(8 * FLOATS)
        assert process.memory_info().rss > before + 250e6, "kept"
    assert process.memory_info().rss < before + 60e6
