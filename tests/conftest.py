"""What every test needs: third parties quiet, and throw-away clones of this working tree."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient

from clones import REPOSITORY, Clone, clone_working_tree
from convoy.core import stage

pytest_plugins = (
    "servers",
    "tracking_store",
    "deliveries",
    "network_specs",
    "exported",
    "small_pipeline",
    "services",
)

stage.silence_dependencies()
# Jobs started by `nohup … &` or some CI runners ignore SIGINT, and every process below them: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start one pipeline test first and the others halfway.

    The first makes the clone that the others share; until then the other worker has fast
    tests to do. Fast ones come last, too: after a long one, one worker would wait for the other.
    """
    pipeline = [item for item in items if "finished" in getattr(item, "fixturenames", ())]
    others = [item for item in items if item not in pipeline]
    half = len(others) // 2
    items[:] = [*pipeline[:1], *others[:half], *pipeline[1:], *others[half:]]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Restore the handlers of signals: stages and Lightning set their own, which would reach the next test of the process."""
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture(autouse=True)
def module_path() -> Iterator[None]:
    """Restore `sys.path`: MLflow puts the code of a loaded model first, from which a later test's process would import."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone in which `make repro` has run once, shared by all workers, and what it printed.

    Read only: a test that changes something takes `finished[0].copy(...)`.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, said = shared / "finished", shared / "finished.txt"
    with FileLock(shared / "finished.lock"):
        if not said.exists():
            output = clone_working_tree(folder).run("make", "repro", f"VENV={sys.prefix}")
            Clone(folder).run("git", "add", "-A")
            Clone(folder).run("git", "commit", "-q", "-m", "reproduced")
            said.write_text(output, encoding="utf-8")
    return Clone(folder), said.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make MLflow's tables once: that takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def fresh_clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which nothing has run. Read only: tests that run something take `finished`."""
    return clone_working_tree(tmp_path_factory.mktemp("fresh") / "clone")
