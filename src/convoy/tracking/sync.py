"""Bring the store up to date: what is still in the outbox, dead runs, and the final dvc.lock of each run."""

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Run as StoredRun
from mlflow.tracking import MlflowClient

from convoy.core import stage
from convoy.core.errors import ConvoyError, without_credentials
from convoy.repo import git
from convoy.tracking import alive, outbox, schema, settings, store
from convoy.tracking.journal import state
from convoy.tracking.stages import RUNS, latest

LOCK = Path("dvc.lock")
LAST = RUNS / "export.json"


class SyncError(ConvoyError):
    """Say what the store does not take; everything is kept."""


@dataclass
class Synced:
    """Say what was done.

    Attributes:
        delivered: ids of the runs whose journals were delivered.
        ended: ids or names of runs that nobody wrote to any more.
        completed: names of runs that got their final dvc.lock.
        failed: a sentence for each run that could not be delivered, or for the store's address.
    """

    delivered: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Phrase it for people."""
        done = {
            "delivered": self.delivered,
            "ended, nobody wrote to them": self.ended,
            "completed": self.completed,
        }
        return [f"{what}: {', '.join(runs)}" for what, runs in done.items() if runs]


def sync(seconds: float | None = None) -> Synced:
    """Deliver all journals, end dead runs, and attach the final `dvc.lock` to finished runs that lack it.

    A lock is final once DVC has ended: the workspace's one, if it records the run that
    `build/runs/export.json` names; for an experiment, the one in its commit.

    Args:
        seconds: longest time to wait for a delivery; None to wait as long as it gets on.
    """
    where = outbox.folder()
    synced = Synced(ended=outbox.end_all_dead(where))
    waiting = [path.name for path in outbox.journals(where) if state(path).ended]
    synced.failed = outbox.wait_until_uploaded(waiting, where, seconds)
    synced.delivered = [run for run in waiting if run not in synced.failed]
    try:
        schema.check(store.uri())
        client = store.connect()
        found = client.get_experiment_by_name(settings.experiment())
        if found is not None:
            here = {path.name for path in outbox.journals(where)}
            synced.ended += alive.end_abandoned(client, found.experiment_id, here)
            synced.completed = _attach_locks(client, found.experiment_id)
    except Exception as error:  # noqa: BLE001 (whatever the store throws; it has been said of each run already)
        if not synced.failed:
            address = without_credentials(store.uri())
            synced.failed[address] = (
                f"{address} answered {store.explain(error)}. Nothing is lost; type `convoy sync` when that is mended."
            )
    return synced


def require(synced: Synced) -> None:
    """Refuse a result that is not whole.

    Raises:
        SyncError: naming each run that could not be delivered, and why.
    """
    if synced.failed:
        raise SyncError("\n".join(synced.failed.values()))


def _attach_locks(client: MlflowClient, experiment_id: str) -> list[str]:
    """Give each finished run its final lock, where it is known; name those runs."""
    here = latest(["export"]).run_id if _workspace_lock_is_final() else ""
    commits = _experiment_commits()
    completed = []
    for run in _without_lock(client, experiment_id):
        tags = run.data.tags
        lock = LOCK.read_text(encoding="utf-8") if here and tags.get("convoy.run_id") == here else ""
        if not lock and tags.get("convoy.dvc_experiment") in commits:
            lock = git.ask(Path.cwd(), "show", f"{commits[tags['convoy.dvc_experiment']]}:{LOCK}") + "\n"
        if lock:
            _attach(client, run, lock)
            completed.append(str(run.info.run_name))
    return completed


def _without_lock(client: MlflowClient, experiment_id: str) -> Iterable[StoredRun]:
    found = client.search_runs([experiment_id], "attributes.status = 'FINISHED'")
    return [run for run in found if "convoy.lock" not in run.data.tags]


def _attach(client: MlflowClient, run: StoredRun, lock: str) -> None:
    """Attach a lock beside params.yaml and dvc.yaml, and tag the run with its hash."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LOCK.name
        path.write_text(lock, encoding="utf-8")
        client.log_artifact(run.info.run_id, str(path), "pipeline")
    client.set_tag(run.info.run_id, "convoy.lock", hashlib.sha256(lock.encode()).hexdigest())


def _workspace_lock_is_final() -> bool:
    """Tell whether dvc.lock records the export that lies in the workspace."""
    return LAST.exists() and stage.recorded("export", LAST, LAST.read_bytes())


def _experiment_commits() -> dict[str, str]:
    """Map the names of DVC experiments to their commits: refs/exps/<2>/<38>/<name>."""
    lines = git.ask(
        Path.cwd(), "for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps"
    ).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if " " in line)
    return {name: commit for name, commit in pairs if name}
