"""What every test needs: third parties quiet, and throw-away clones of this working tree."""

import os
import signal
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient

from clones import REPOSITORY, Clone, clone_working_tree
from convoy.core import stage

pytest_plugins = ("servers", "tracking_store", "deliveries", "network_specs", "exported", "small_pipeline")

stage.silence_dependencies()
# Jobs started by `nohup … &` or some CI runners ignore SIGINT, and every process below them: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start a pipeline test first, one on `compared` amid the fast tests, and the other pipeline tests last.

    The two make the clones that the others share; until then the other worker has the fast
    tests to do. The longest do not come last, where one worker would wait for the other.
    """
    fast = [item for item in items if not uses(item, "finished")]
    first, *pipeline = [item for item in items if uses(item, "finished")] or [None]
    second = next((item for item in pipeline if uses(item, "compared")), None)
    half = len(fast) // 2
    order = (first, *fast[:half], second, *fast[half:], *(item for item in pipeline if item is not second))
    items[:] = [item for item in order if item]


def uses(item: pytest.Item, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


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
