"""The servers that tests share: required in CI, stopped when nobody needs them."""

import subprocess
import sys
import time
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
def test_a_missing_program_skips_the_test_or_fails_it_in_ci_and_names_the_package(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such is not installed; on Debian: apt-get install some-package"):
        servers.require("no-such", "some-package")


def test_servers_stop_when_the_last_process_that_used_them_was_killed(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    users = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in "12"]
    for user in users:
        (tmp_path / "users" / str(user.pid)).touch()
    code = GUARDED.format(tests=str(Path(servers.__file__).parent), shared=str(tmp_path))
    guard = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + servers.START_S
    while not (tmp_path / "ready.json").exists():
        assert guard.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    users[0].kill()
    users[0].wait()
    time.sleep(3 * servers.POLL_S)
    assert guard.poll() is None, "one user is left"
    users[1].kill()
    users[1].wait()
    output, _ = guard.communicate(timeout=30)
    assert output.split() == ["started", "stopped"]
    assert not (tmp_path / "ready.json").exists()
