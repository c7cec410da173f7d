"""An empty repository with a store of its own, and an uploader that works when a test says so."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from mlflow.tracking import MlflowClient

from clones import kill_uploaders
from convoy.tracking import outbox, store, uploader
from small_pipeline import Small
from tracking_store import deliver_once

START = outbox.start_uploader


@pytest.fixture
def workplace(workspace: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a repository with a store of its own; no stage waits for an uploader."""
    shutil.copy(empty_store, workspace / "mlflow.db")
    (workspace / ".dvc").mkdir()
    monkeypatch.setattr(outbox, "WAIT_SECONDS", 0.0)
    return workspace


@pytest.fixture
def client(workplace: Path) -> MlflowClient:
    return store.connect()


@pytest.fixture
def deliver(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    monkeypatch.setattr(uploader, "BATCH_SECONDS", -1.0)
    return lambda: deliver_once(workplace / "outbox")


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
    """Make the folder a git repository with one commit, and run git in it."""
    small = Small(workplace)
    small.init()
    small.write(".gitignore", "/outbox/\n/mlflow.db*\n/mlartifacts/\n/build/\n")
    small.commit("first")
    return small.git
