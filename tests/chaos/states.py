"""Starting states: clones with a miniature pipeline that has run up to a stage, made once and copied for each combination.

A copy lies at a path of equal length, so that the absolute paths that MLflow and journals keep can be replaced in place.
"""

import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from clones import REPOSITORY, Clone, clone_working_tree, drain

CLASSES, IMAGES = 3, 50
NETWORK = """\
layers:
  - conv: {filters: 4, kernel: 3}
  - relu
  - flatten
  - dense: classes
"""
SETTINGS = {
    "data.image_px": "8",
    "network.name": "tiny",
    "train.epochs": "3",
    "checkpoints.every_s": "0",
    "evaluate.feature_classes": "0",
    "evaluate.worst_images": "0",
    "export.latency_runs": "10",
    "gate.min_images": "5",
    "gate.min_accuracy": "0",
    "gate.min_class_recall": "null",
    "gate.max_class_drop": "null",
    "gate.max_ece": "null",
    "gate.max_latency_ms_p95": "null",
    "gate.max_latency_ratio": "null",
}
"""A pipeline of seconds, and a gate that lets every model pass."""

BUILT: Mapping[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "new": ("", (("dvc", "repro", "data.dvc"),)),
    "prepared": ("new", (("dvc", "repro", "prepare"),)),
    "trained": ("prepared", (("dvc", "repro", "train"),)),
    "evaluated": ("trained", (("dvc", "repro", "evaluate"),)),
    "undelivered": ("evaluated", (("dvc", "repro", "export"),)),
    "exported": ("evaluated", (("dvc", "repro", "export"), ("convoy", "sync"))),
    "registered": ("exported", (("convoy", "register"),)),
    "promoted": ("registered", (("convoy", "promote"),)),
}
"""Each state's predecessor, and the commands that lead from there to it."""

WIDTH = 12  # of the name of a folder that holds a clone
OTHER = "other"
"""A branch whose params and code differ in every stage."""
DROPPED = ("tests", "docs", "benchmarks", "recipes", ".github", ".ci")
PATHS = (
    "mlflow.db",
    "outbox/*/journal.jsonl",
    "outbox/*/sent.json",
    "mlartifacts/models/*/artifacts/MLmodel",
)
"""Files with absolute paths."""


@dataclass(frozen=True)
class States:
    """A folder of starting states, shared by all workers."""

    folder: Path

    def copy(self, state: str, number: int) -> Clone:
        """Copy a state into a folder of its own, `<pid and number>/clone`."""
        target = self.folder / f"{os.getpid():07d}{number:05d}" / "clone"
        return copied(self._made(state), target)

    def _made(self, state: str) -> Clone:
        """Make a state unless a worker has made it."""
        folder = self.folder / f"{state:_<{WIDTH}}" / "clone"
        with FileLock(self.folder / f"{state}.lock"):
            done = folder.parent / "done"
            if not done.exists():
                shutil.rmtree(folder.parent, ignore_errors=True)
                before, commands = BUILT[state]
                clone = copied(self._made(before), folder) if before else started(folder)
                clone.env["CONVOY_CHAOS"] = str(control(clone))
                if state == "undelivered":
                    (control(clone) / "offline").touch()
                for command in commands:
                    clone.run(*command)
                if state != "undelivered":
                    drain(clone)
                clone.run("git", "add", "-A")
                clone.run("git", "commit", "-q", "--allow-empty", "-m", state)
                done.touch()
        return environment(Clone(folder))


def control(clone: Clone) -> Path:
    """Locate the folder that steers a clone's processes (inside.py)."""
    folder = clone.folder.parent / "control"
    folder.mkdir(exist_ok=True)
    return folder


def environment(clone: Clone) -> Clone:
    """Let the clone's commands run its own code, with indexes of DVC beside it."""
    clone.env |= {
        "PYTHONPATH": str(clone.folder / "src"),
        "DVC_SITE_CACHE_DIR": str(clone.folder.parent / "site"),
        "TMPDIR": str(clone.folder.parent / "tmp"),
    }
    Path(clone.env["TMPDIR"]).mkdir(exist_ok=True)
    return clone


def copied(clone: Clone, folder: Path) -> Clone:
    """Copy a clone to another path of the same length."""
    assert len(str(folder)) == len(str(clone.folder))
    shutil.copytree(clone.folder, folder, symlinks=True)
    for pattern in PATHS:
        for path in folder.glob(pattern):
            path.write_bytes(path.read_bytes().replace(os.fsencode(clone.folder), os.fsencode(folder)))
    return environment(Clone(folder))


def started(folder: Path) -> Clone:
    """Make a clone of this working tree with few images, a tiny network and the branch `other`; nothing has run."""
    clone = clone_working_tree(folder)
    clone.run("git", "rm", "-rq", *(name for name in DROPPED if (folder / name).exists()))
    shutil.copy(Path(__file__).with_name("inside.py"), folder / "src" / "sitecustomize.py")
    shrink(folder / "samples/digits/digits.zip")
    (folder / "networks/tiny.yaml").write_text(NETWORK, encoding="utf-8")
    for name, value in SETTINGS.items():
        clone.set_param(name, value)
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-q", "-m", "miniature")
    clone.run("git", "checkout", "-q", "-b", OTHER)
    for name, value in (("data.max_quarantined", "0.02"), ("train.lr", "0.01"), ("evaluate.batch_size", "7")):
        clone.set_param(name, value)
    clone.set_param("export.latency_runs", "12")
    clone.run("git", "commit", "-q", "-a", "-m", OTHER)
    clone.run("git", "checkout", "-q", "main")
    return environment(clone)


def shrink(archive: Path) -> None:
    """Keep some images of the first classes."""
    with zipfile.ZipFile(REPOSITORY / "samples/digits/digits.zip") as source:
        classes: dict[str, list[str]] = {}
        for name in sorted(name for name in source.namelist() if name.endswith(".png")):
            classes.setdefault(name.split("/")[-2], []).append(name)
        archive.unlink()
        with zipfile.ZipFile(archive, "w") as target:
            for label in list(classes)[:CLASSES]:
                for name in classes[label][:IMAGES]:
                    target.writestr(f"{label}/{Path(name).name}", source.read(name))
