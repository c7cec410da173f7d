"""The names of processes, by which a run that is alive is told from one whose process died."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from convoy.repo import identity


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts starts from boot")
def test_a_process_keeps_its_name_when_the_clock_is_set():
    """The kernel's start since boot does not move with the clock; psutil's time since 1970 does."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert identity.name(psutil.Process()) == f"{os.getpid()}:{fields[19]}:{boot}"


@pytest.mark.parametrize("step_s", [2.0, -3600.0])
def test_a_process_lives_on_when_the_clock_is_set(monkeypatch, step_s):
    """psutil adds the time of boot, which the kernel moves with the clock and psutil reads anew."""
    name, boot = identity.name(psutil.Process()), psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + step_s)
    assert identity.is_alive(name)
    assert identity.name(psutil.Process()) == name


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts starts from boot")
def test_a_process_of_an_earlier_boot_or_with_another_start_is_gone():
    pid, ticks, boot = identity.name(psutil.Process()).split(":")
    assert identity.is_alive(f"{pid}:{ticks}:{boot}")
    assert not identity.is_alive(f"{pid}:{ticks}:00000000-0000-4000-8000-000000000000")
    assert not identity.is_alive(f"{pid}:{int(ticks) + 1}:{boot}")
    assert not identity.is_alive(f"{pid}:{ticks}:")


def test_without_proc_a_process_is_named_by_its_start_since_1970(monkeypatch, tmp_path):
    elsewhere = identity.name(psutil.Process())
    monkeypatch.setattr(identity, "PROC", tmp_path)
    process = psutil.Process()
    assert identity.name(process) == f"{process.pid}:{process.create_time():.2f}"
    assert identity.is_alive(identity.name(process))
    assert identity.is_alive(elsewhere) == (sys.platform == "darwin")


def test_a_process_named_by_an_earlier_convoy_is_found():
    process = psutil.Process()
    assert identity.is_alive(f"{process.pid}:{process.create_time():.2f}")
    assert not identity.is_alive(f"{process.pid}:{process.create_time() - 60:.2f}")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counted starts from boot")
def test_a_process_named_by_its_seconds_since_boot_is_found():
    pid, ticks, _ = identity.name(psutil.Process()).split(":")
    seconds = int(ticks) / os.sysconf("SC_CLK_TCK")
    assert identity.is_alive(f"{pid}:{seconds:.2f}")
    assert not identity.is_alive(f"{pid}:{seconds - 60:.2f}")


def test_a_run_lives_with_the_process_that_runs_dvc_be_it_make_repro_s(tmp_path):
    """Two commands of a stage share a run: it outlives the first."""
    stage = "from convoy.repo import identity; print(identity.process_tags()['convoy.owner'])"
    script = f"import os, subprocess, sys\nprint(os.getpid(), flush=True)\nsubprocess.run([sys.executable, '-c', {stage!r}])\n"
    for name in ("dvc", "repro.py"):
        (tmp_path / name).write_text(script)
        done = subprocess.run([sys.executable, tmp_path / name], capture_output=True, text=True, check=True)
        pid, owner = done.stdout.split()
        assert owner.partition(":")[0] == pid
