"""The servers that tests share: required in CI, stopped when nobody needs them."""

import subprocess
import sys
from pathlib import Path

import pytest

import servers

GUARDED = """
import sys, contextlib, pathlib
sys.path.insert(0, {tests!r})
import servers
@contextlib.contextmanager
def running(folder):
    print("started", flush=True)
    yield "http://nowhere"
    print("stopped", flush=True)
servers.running = running
servers.guard(pathlib.Path({shared!r}))
"""


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)], ids=["local", "ci"]
)
def test_a_missing_program_skips_the_test_or_fails_it_in_ci_and_names_the_package(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such is not installed; on Debian: apt-get install some-package"):
        servers.require("no-such", "some-package")


def test_servers_stop_when_the_last_process_that_used_them_was_killed(tmp_path):
    share = f"import fcntl; file = open({str(tmp_path / 'users')!r}, 'a'); fcntl.flock(file, fcntl.LOCK_SH); print(1, flush=True); input()"
    users = [
        subprocess.Popen([sys.executable, "-c", share], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in "12"
    ]
    for user in users:
        user.stdout.readline()
    code = GUARDED.format(tests=str(Path(servers.__file__).parent), shared=str(tmp_path))
    guard = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert guard.stdout.readline() == "started\n"
    users[0].kill()
    users[0].wait()
    with pytest.raises(subprocess.TimeoutExpired):
        guard.wait(0.5)  # one user is left
    assert (tmp_path / "ready.txt").read_text() == "http://nowhere"
    users[1].kill()
    users[1].wait()
    output, _ = guard.communicate(timeout=30)
    assert output == "stopped\n"
    assert not (tmp_path / "ready.txt").exists()
