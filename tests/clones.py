"""Throw-away clones of this working tree, and a look into their tracking stores."""

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

REPOSITORY = Path(__file__).parents[1]

OUTER = ("DVC_", "MLFLOW_", "GIT_", "MAKE", "MFLAGS", "VENV")
"""Beginnings of variables that speak of the repository, or the make, that runs the tests."""


class Clone:
    """A git repository with the files of this working tree, and the environment that runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(OUTER)},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Two tests at once on two cores: OpenMP threads that wait for a core spin instead of working.
            "OMP_NUM_THREADS": "1",
        }
        self.env.pop("PYTHONPATH", None)

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start a command without waiting for it, in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.env, **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def stop(self, process: subprocess.Popen[str], how: signal.Signals) -> str:
        """Signal a command and all that it started, as a terminal does; return the rest of its output."""
        os.killpg(process.pid, how)
        return process.communicate(timeout=60)[0]

    def run(self, *command: str, fails: bool = False, **env: str) -> str:
        """Run a command and return what it printed; `fails` says which outcome is expected."""
        process = self.start(*command, **env)
        output, _ = process.communicate()
        assert (process.returncode != 0) == fails, f"{command} exited {process.returncode}:\n{output}"
        return output

    def copy(self, folder: Path) -> "Clone":
        """Copy the clone with its cache and outputs, so that nothing has to be trained again."""
        shutil.copytree(self.folder, folder, symlinks=True)
        # MLflow keeps absolute paths: without this, a copy's runs would write into the original.
        with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
            ):
                store.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?)",  # noqa: S608 (own words)
                    (self.folder.as_uri(), folder.as_uri()),
                )
        return Clone(folder)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def set_param(self, name: str, value: str, rename: str | None = None) -> None:
        """Type another value (or another key) into params.yaml, as a person would."""
        section, _, key = name.rpartition(".")
        path = self.folder / "params.yaml"
        head, mark, tail = path.read_text(encoding="utf-8").partition(f"\n{section}:\n")
        tail, count = re.subn(
            rf"^(  +){key}: \S+", rf"\g<1>{rename or key}: {value}", tail, count=1, flags=re.MULTILINE
        )
        assert mark, f"params.yaml has no section {section}"
        assert count, f"section {section} has no {key}"
        path.write_text(head + mark + tail, encoding="utf-8")


def clone_working_tree(folder: Path) -> Clone:
    """Copy what git would carry, uncommitted changes included, and commit it."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        source, target = REPOSITORY / name, folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    clone = Clone(folder)
    for words in (
        ("init", "-q", "-b", "main"),
        # In the clone itself, since DVC does not read the environment that git would.
        ("config", "user.name", "test"),
        ("config", "user.email", "test@example.invalid"),
        ("add", "-A"),
        ("commit", "-q", "-m", "working tree"),
    ):
        clone.run("git", *words)
    return clone


def runs(clone: Clone) -> list[Run]:
    """List the runs of a clone's store, newest first."""
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    found = client.get_experiment_by_name("convoy")
    return client.search_runs([found.experiment_id]) if found else []


def artifacts(clone: Clone, run: Run) -> set[str]:
    """List the files kept for a run, which must lie in the clone."""
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert root.is_relative_to(clone.folder / "mlartifacts")
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def free_port() -> int:
    """Find a port of this host that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
