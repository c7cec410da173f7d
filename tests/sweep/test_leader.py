"""Workers as processes: they share a study, are replaced when they die, and die with their leader."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from convoy.core.errors import TrainingError
from convoy.sweep import leader
from convoy.sweep.leader import lead
from convoy.sweep.results import Results
from convoy.sweep.study import Study
from convoy.tracking import outbox
from convoy.tracking.run import Reference

PARENT = Reference("parent", "parent")


class Heard:
    """Stand for the console."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def update(self, results: Results) -> None:
        """Take what people would see."""


@pytest.fixture(autouse=True)
def no_uploader(here) -> Iterator[None]:
    """Hold the uploader's lock, so that no worker starts one."""
    where = outbox.folder()
    where.mkdir()
    with outbox.uploader_lock(where):
        yield


def waited(find: Callable[[], object]) -> object:
    for _ in range(6000):
        if found := find():
            return found
        time.sleep(0.01)
    raise AssertionError("nothing came of it within a minute")


def under_way(study: Study) -> FrozenTrial | None:
    """Find a trial in the middle of its training."""
    running = [
        trial for trial in study.trials() if trial.state == TrialState.RUNNING and trial.intermediate_values
    ]
    return running[0] if running else None


def test_two_workers_share_a_study_and_one_that_is_killed_is_replaced(here) -> None:
    here.set(train__epochs=25)
    study, heard = here.study(), Heard()
    killed: list[FrozenTrial] = []

    def kill_one() -> None:
        trial = waited(lambda: under_way(study))
        killed.append(trial)
        os.kill(trial.user_attrs["worker"], signal.SIGKILL)

    other = threading.Thread(target=kill_one)
    other.start()
    with study.alone():
        lead(study, 4, 2, PARENT, heard)
    other.join()

    trials = study.trials()
    rows = Results.of(study.request, trials).rows
    assert [row.state for row in rows] == ["complete"] * 4
    assert len({tuple(row.values.items()) for row in rows}) == 4
    assert len({trial.user_attrs["worker"] for trial in trials}) > 1
    assert heard.lines == [f"a worker died of SIGKILL: trial {killed[0].number} is tried again"]
    [again] = [trial for trial in trials if trial.user_attrs.get("again_of") == killed[0].number]
    assert again.params == killed[0].params


def test_a_sweep_that_is_killed_leaves_no_worker_and_goes_on_without_repeating_what_is_done(here) -> None:
    here.set(train__epochs=25)
    study = here.study()
    sweep = subprocess.Popen(
        [sys.executable, "-c", "from convoy.cli import main; main()", "sweep", "--trials", "3"],
        env=os.environ | {"PYTHONPATH": str(Path(leader.convoy.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    waited(lambda: any(trial.state == TrialState.COMPLETE for trial in study.trials()))
    lost = waited(lambda: under_way(study))
    sweep.kill()
    sweep.communicate()
    done = {trial.number: trial.value for trial in study.trials() if trial.state == TrialState.COMPLETE}
    waited(lambda: not psutil.pid_exists(lost.user_attrs["worker"]))

    with study.alone():
        assert study.recover() == [lost.number]
    rows = here.work(3).rows
    assert len(rows) == 3
    assert {row.number: row.value for row in rows if row.number in done} == done
    assert len({tuple(row.values.items()) for row in rows}) == 3
    assert lost.params in [
        trial.params for trial in study.trials() if trial.user_attrs.get("again_of") == lost.number
    ]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(3)", "is full. Make room; then `convoy sweep` goes on where it was"),
        ("import sys; sys.exit('no such thing')", "a worker ended with 1: no such thing\nThe study is kept"),
    ],
)
def test_a_worker_whose_end_concerns_all_ends_the_sweep(here, monkeypatch, code: str, message: str) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(
        leader.subprocess, "Popen", lambda words, **options: start([sys.executable, "-c", code], **options)
    )
    study = here.study()
    with pytest.raises(TrainingError, match=message):
        lead(study, 2, 2, PARENT, Heard())


def test_ctrl_c_stops_the_workers(here, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = subprocess.Popen, []
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"

    def popen(words: list[str], **options: object) -> subprocess.Popen[bytes]:
        started.append(start([sys.executable, "-c", code], **options))
        return started[-1]

    def interrupt(_: Results) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(leader.subprocess, "Popen", popen)
    heard = Heard()
    heard.update = interrupt
    with pytest.raises(KeyboardInterrupt):
        lead(here.study(), 2, 2, PARENT, heard)
    assert [process.poll() for process in started] == [-signal.SIGTERM] * 2
    assert heard.lines == ["stopping the workers; Ctrl-C again kills them"]


@pytest.mark.parametrize(
    ("cores", "workers", "asked", "threads"),
    [(8, 2, "", 4), (8, 3, "", 2), (2, 4, "", 1), (8, 2, "1", 1), (8, 2, "64", 4)],
)
def test_workers_share_the_cores(monkeypatch, cores: int, workers: int, asked: str, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert leader._threads(workers) == threads
