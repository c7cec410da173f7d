"""Exit codes and last words of a stage."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convoy.core import stage
from convoy.core.errors import DataError, RequestError


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """Give the process that runs the tests its handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stage._stopped = False


def fails_with(error: BaseException) -> None:
    def work() -> None:
        raise error

    stage.main(work)


@pytest.mark.parametrize(("error", "code"), [(RequestError("wrong key"), 2), (DataError("no images"), 1)])
def test_a_known_error_is_one_message_and_its_exit_code(error, code, monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", "prepare")
    with pytest.raises(SystemExit) as caught:
        fails_with(error)
    assert caught.value.code == code
    said = capsys.readouterr().err
    assert said.strip() == f"ERROR in prepare: {error}"


def test_an_error_after_an_earlier_success_says_how_to_get_the_outputs_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", "prepare")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").touch()
    with pytest.raises(SystemExit):
        fails_with(DataError("no images"))
    assert "`dvc checkout --force` brings them back" in capsys.readouterr().err


def test_a_stage_whose_inputs_were_edited_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", "prepare")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").touch()
    (tmp_path / "params.yaml").write_text("data: {px: 8}")
    (tmp_path / "dvc.yaml").write_text("stages: {prepare: {cmd: x, params: [data]}}")
    with pytest.raises(SystemExit) as caught:
        stage.main(lambda: (tmp_path / "params.yaml").write_text("data: {px: 9}") and None, "prepare")
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "ERROR in prepare: its inputs changed" in said
    assert "data.px: 8 → 9" in said
    assert "dvc checkout" not in said, "that would not finish what was begun"


def test_something_may_be_held_while_a_stage_works():
    events = []

    @contextmanager
    def held():
        events.append("begin")
        yield
        events.append("end")

    with pytest.raises(SystemExit):
        stage.main(lambda: events.append("work"), during=held())
    assert events == ["begin", "work", "end"]


def test_an_unknown_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        fails_with(ZeroDivisionError())


def test_sigterm_ends_a_stage_like_ctrl_c(capsys):
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)  # the system may hand the signal to another thread, and Python sees it a moment later

    with pytest.raises(SystemExit) as caught:
        stage.main(work)
    assert caught.value.code == 1
    assert "was stopped. `dvc repro` runs it again" in capsys.readouterr().err


def test_ctrl_c_that_a_library_turns_into_its_own_error_is_still_a_stop(capsys):
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        except KeyboardInterrupt:
            raise DataError("the network cannot be exported") from None

    with pytest.raises(SystemExit) as caught:
        stage.main(work)
    assert caught.value.code == stage.INTERRUPTED
    output = capsys.readouterr().err
    assert "was stopped. `dvc repro` runs it again" in output
    assert "cannot be exported" not in output


def test_ctrl_c_is_not_for_a_job_in_the_background():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(SystemExit):
        stage.main(lambda: None)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_full_disk_is_one_message_with_its_remedy(monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", "prepare")
    with pytest.raises(SystemExit) as caught:
        fails_with(OSError(errno.ENOSPC, "No space left on device", "build/x"))
    assert caught.value.code == 1
    assert "ERROR in prepare: build/x cannot be written: No space left" in capsys.readouterr().err


SCRIPTS = [
    *(f"pipelines/{name}.py" for name in ("prepare", "train", "evaluate", "export", "repro", "retrain"))
]

EARLY = """
import os, runpy, signal, sys
class Finder:  # of the first library that is imported after Ctrl-C is handled
    def find_spec(self, name, path=None, target=None):
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", [*SCRIPTS, "src/convoy/__main__.py"])
def test_ctrl_c_while_libraries_are_imported_is_one_line_and_130(script, repository):
    done = subprocess.run(
        [sys.executable, "-c", EARLY, script],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip().splitlines() == [
        f"{Path(script).name} was stopped before it began. Type the command again to run it."
    ]


def test_done_is_zero():
    with pytest.raises(SystemExit) as caught:
        stage.main(lambda: None)
    assert caught.value.code == 0


def test_a_retraining_keeps_its_runs_in_the_repository_that_called_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "worktree"))
    monkeypatch.setenv("CONVOY_REPOSITORY", str(tmp_path / "caller"))
    assert stage.repository() == tmp_path / "caller"


def test_the_repository_of_a_queued_experiment_is_the_real_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert stage.repository() == tmp_path.resolve()
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert stage.repository() == Path("/elsewhere")
