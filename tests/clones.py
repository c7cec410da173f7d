"""Throw-away clones of this working tree, and a look into their tracking stores."""

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from convoy.tracking import outbox
from convoy.tracking.journal import FILE, Sent

REPOSITORY = Path(__file__).parents[1]

OUTER = (
    "DVC_", "MLFLOW_", "GIT_", "MAKE", "MFLAGS", "VENV", "CONVOY_REPOSITORY", "PUSH", "GITHUB_", "GITLAB_", "CI_",
)  # fmt: skip
"""Beginnings of variables that speak of the repository, the make or the CI job that runs the tests."""


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
        return process.communicate(timeout=180)[0]  # a stage may take 45 s to save and end

    def run(self, *command: str, fails: bool = False, **env: str) -> str:
        """Run a command and return its output; it must fail if `fails`, else succeed."""
        process = self.start(*command, **env)
        output, _ = process.communicate()
        assert (process.returncode != 0) == fails, f"{command} exited {process.returncode}:\n{output}"
        return output

    def copy(self, folder: Path) -> "Clone":
        """Copy the clone with its cache and outputs, so that nothing has to be trained again."""
        shutil.copytree(self.folder, folder, symlinks=True)
        # MLflow keeps absolute paths: without this, a copy's runs would write into the original.
        with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
            columns = {
                "experiments": "artifact_location",
                "runs": "artifact_uri",
                "logged_models": "artifact_location",
            }
            for table, column in columns.items():
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
        header = re.search(rf"^{section}:.*\n", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert header, f"params.yaml has no section {section}"
        head, mark, tail = path.read_text(encoding="utf-8").partition(header[0])
        tail, count = re.subn(
            rf"^(  +){key}: \S+", rf"\g<1>{rename or key}: {value}", tail, count=1, flags=re.MULTILINE
        )
        assert count, f"section {section} has no {key}"
        path.write_text(head + mark + tail, encoding="utf-8")


def clone_working_tree(folder: Path) -> Clone:
    """Copy what git would carry, uncommitted changes included, and commit it."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = REPOSITORY / name, folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    clone = Clone(folder)
    clone.run("git", "init", "-q", "-b", "main")
    # In the clone itself, since DVC does not read the environment that git would.
    clone.run("git", "config", "user.name", "test")
    clone.run("git", "config", "user.email", "test@example.invalid")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-q", "-m", "working tree")
    return clone


def drain(clone: Clone) -> None:
    """Wait until a clone's uploader has delivered what it can and left; nothing is ended that it would not end."""
    where = clone.folder / "outbox"
    until = time.monotonic() + 120
    idle = 0
    while where.exists():
        waiting = [path for path in outbox.journals(where) if _is_behind(path)]
        # One that a stage has just started takes its lock after a moment.
        idle = 0 if outbox.is_uploader_running(where) else idle + 1
        if (idle and not waiting) or idle > 50:
            return
        assert time.monotonic() < until, (where / "uploader.log").read_text()
        time.sleep(0.1)


def _is_behind(path: Path) -> bool:
    try:
        return Sent.load(path).size < (path / FILE).stat().st_size
    except FileNotFoundError:  # delivered and removed by now
        return False


def kill_uploaders(folder: Path) -> None:
    """Kill the uploaders of a repository, as a machine that is switched off does."""
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if "convoy.tracking.uploader" in (process.info["cmdline"] or []) and process.cwd() == str(folder):
                process.kill()
                process.wait(10)


def runs(clone: Clone) -> list[Run]:
    """List the runs of a clone's store, newest first, once its uploader has left."""
    drain(clone)
    return stored_runs(clone)


def stored_runs(clone: Clone) -> list[Run]:
    """List the runs of a clone's store as it is now, newest first."""
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
