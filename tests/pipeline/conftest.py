"""What tests of comparison share: a clone in which experiments have run."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from clones import Clone

QUICK = (
    *("-S", "network.name=lenet5", "-S", "train.epochs=2", "-S", "export.latency_runs=10"),
    *("-S", "train.weight_decay=0.00005", "-S", "evaluate.feature_classes=0"),
)
"""A small experiment; two epochs, so that there is a curve. DVC writes the weight decay as 5e-05, a word in YAML 1.1."""

QUEUED = "lr-0.02"
HERE = "lr-0.1"


@pytest.fixture
def clone(finished: tuple[Clone, str], tmp_path: Path) -> Clone:
    """A copy of the clone in which `make repro` has run, for a test that changes it."""
    return finished[0].copy(tmp_path / "clone")


@pytest.fixture(scope="session")
def compared(finished: tuple[Clone, str], tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with two small experiments beside the first run, shared by all workers; the store is complete.

    The first was queued with one state of the code and ran when it was another; the second ran in the workspace.
    Read only: a test that changes something takes `compared.copy(...)`.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = shared / "compared"
    with FileLock(shared / "compared.lock"):
        if (shared / "compared.done").exists():
            return Clone(folder)
        clone = finished[0].copy(folder)
        queued = '    """Run the stage."""\n    print("as queued")'
        clone.edit("pipelines/train.py", '    """Run the stage."""', queued)
        words = ("--queue", "--name", QUEUED, *QUICK, "-S", f"train.lr={QUEUED.removeprefix('lr-')}")
        clone.run("dvc", "exp", "run", *words)
        clone.edit("pipelines/train.py", 'print("as queued")', 'raise SystemExit("edited after queueing")')
        clone.run("dvc", "exp", "run", "--run-all")
        clone.run("git", "checkout", "--quiet", "pipelines/train.py")
        clone.run("dvc", "exp", "run", "--name", HERE, *QUICK, "-S", f"train.lr={HERE.removeprefix('lr-')}")
        clone.run("convoy", "sync", PYTHONPATH=str(folder / "src"))
        (shared / "compared.done").touch()
    return clone
