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
FEW_ADDRESSES = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)\n"

COUNT = """
from convoy.core.allocator import memory_kept
from new_pages import new_pages
usual = new_pages()
with memory_kept():
    print(usual, min(new_pages() for _ in range(8)))  # the heap grows first
"""


def _printed(program: str) -> list[int]:
    """Run it in a process of its own, in whose heap nothing of other tests lies, and read its line of numbers."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


def test_kept_memory_is_used_again():
    usual, kept = _printed(FEW_ADDRESSES + COUNT)  # so no huge pages, which count as one
    assert kept < ALL / 2 < usual


def test_memory_returns_to_the_system_at_the_end():
    process = psutil.Process()
    before = process.memory_info().rss
    with memory_kept():
        torch.ones(8 * FLOATS)
        assert process.memory_info().rss > before + 250e6, "kept"
    assert process.memory_info().rss < before + 60e6


HUGE_PAGES = """
from pathlib import Path
from convoy.core.allocator import memory_kept
def allowed():
    return sum("VmFlags" in line and " hg" in line for line in Path("/proc/self/smaps").read_text().splitlines())
before = allowed()
with memory_kept():
    print(before, allowed())
"""


def test_kept_memory_may_lie_in_huge_pages():
    assert _printed(HUGE_PAGES) == [0, 1]


def test_memory_is_kept_where_addresses_are_few():
    assert _printed(FEW_ADDRESSES + HUGE_PAGES) == [0, 0]
