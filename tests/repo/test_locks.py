"""A lock has one owner at a time, who is named, and is free again when its owner dies."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.repo.locks import AlreadyRunning, describe_owner, exclusive

HOLD = """
import sys
from pathlib import Path
from convoy.repo.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "folder/work.lock"


@pytest.fixture
def holder(lock: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_the_owner(lock, holder):
    with pytest.raises(AlreadyRunning) as error, exclusive(lock):
        pytest.fail("two processes hold the lock")
    assert str(error.value) == describe_owner(lock)
    assert str(error.value).startswith(f"process {holder.pid} on {socket.gethostname()} since 2")
    assert str(error.value).endswith(" UTC")
    holder.communicate()
    with exclusive(lock):
        assert f"process {os.getpid()} on" in describe_owner(lock)


def test_a_killed_holder_leaves_its_name_and_a_free_lock(lock, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert f"process {holder.pid} on" in describe_owner(lock)
    with exclusive(lock):
        assert f"process {os.getpid()} on" in describe_owner(lock)
    assert not lock.with_name("work.lock.json").exists()


def test_a_failure_frees_the_lock(lock):
    with pytest.raises(KeyError), exclusive(lock):
        raise KeyError
    assert not lock.with_name("work.lock.json").exists()
    with exclusive(lock):
        pass


@pytest.mark.parametrize("text", [None, "", "{}", '{"pid": 1, "host": "here"}', "\x00"])
def test_an_owner_that_is_not_written_yet_is_described(lock, text):
    lock.parent.mkdir()
    if text is not None:
        lock.with_name("work.lock.json").write_text(text)
    assert describe_owner(lock) == "a process that has only just started"
