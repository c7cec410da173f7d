"""The names of processes, by which a run that is alive is told from one whose process died."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from convoy.repo import identity


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts starts from boot")
def test_a_process_keeps_its_name_when_the_clock_is_set():
    """The kernel's start since boot does not move with the clock; psutil's time since 1970 does."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    pid, _, start = identity.name(psutil.Process()).partition(":")
    assert int(pid) == os.getpid()
    assert float(start) == pytest.approx(since_boot, abs=1.5)


def test_a_process_named_by_an_earlier_convoy_is_found():
    process = psutil.Process()
    assert identity.is_alive(f"{process.pid}:{process.create_time():.2f}")
    assert not identity.is_alive(f"{process.pid}:{process.create_time() - 60:.2f}")
