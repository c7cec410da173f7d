"""An empty repository with a store of its own, and an uploader that works when a test says so."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from mlflow.tracking import MlflowClient

from clones import kill_uploaders
from convoy.tracking import outbox, store, uploader

START = outbox.start_uploader
OUTER = ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")


@pytest.fixture
def workplace(empty_store: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty repository with the shipped params; no uploader starts by itself."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("params.yaml", "data.dvc"):
        shutil.copy(repository / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in OUTER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(outbox, "start_uploader", lambda *_, **__: None)
    monkeypatch.setattr(outbox, "WAIT_SECONDS", 0.0)
    return tmp_path


@pytest.fixture
def client(workplace: Path) -> MlflowClient:
    return store.connect()


@pytest.fixture
def deliver(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go round once in this process, as a new uploader does after the last one was killed."""
    monkeypatch.setattr(uploader, "BATCH_SECONDS", -1.0)

    def go() -> None:
        where = workplace / "outbox"
        with outbox.uploader_lock(where) as lock:
            worker = uploader.Uploader(where, lock)
            worker.deliver_due()  # delivers
            worker.deliver_due()  # removes what is delivered

    return go


@pytest.fixture
def real_uploader(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let uploaders start as they do for people; none outlives the test."""
    monkeypatch.setattr(outbox, "start_uploader", START)
    monkeypatch.setattr(outbox, "WAIT_SECONDS", 30.0)
    yield
    kill_uploaders(workplace)


@pytest.fixture
def uploader_thread(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run uploaders as threads of this process, which start at once; each is over when the test is."""
    threads: list[threading.Thread] = []

    def start(where: Path, owner: str = "") -> None:
        lock = filelock.FileLock(where / "uploader.lock", thread_local=False)
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0)
            threads.append(threading.Thread(target=uploader.Uploader(where, lock, owner).run))
            threads[-1].start()

    monkeypatch.setattr(outbox, "start_uploader", start)
    monkeypatch.setattr(outbox, "WAIT_SECONDS", 30.0)
    monkeypatch.setattr(uploader, "POLL_SECONDS", 0.05)
    yield
    for thread in threads:
        thread.join(60)


@pytest.fixture
def git(workplace: Path) -> Callable[..., str]:
    """Make the empty repository a git repository with one commit, and run git in it."""

    def run(*words: str) -> str:
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.invalid", *words]
        return subprocess.run(command, cwd=workplace, check=True, capture_output=True, text=True).stdout

    run("init", "-q", "-b", "main")
    (workplace / ".gitignore").write_text("/outbox/\n/mlflow.db*\n/mlartifacts/\n/build/\n")
    run("add", "-A")
    run("commit", "-q", "-m", "first")
    return run
