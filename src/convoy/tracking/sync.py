"""Bring the store up to date: deliver the outbox, end dead runs, and attach the final dvc.lock of each run."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from convoy.core import contract
from convoy.core.errors import ConvoyError, without_credentials
from convoy.core.pipeline import LOCK, records
from convoy.repo import git
from convoy.tracking import outbox, settings, store
from convoy.tracking.journal import state
from convoy.tracking.stages import LAST, RUNS, latest

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPORTED = RUNS / f"{LAST}.json"


class SyncError(ConvoyError):
    """The store does not take everything; what it did not take stays in the outbox."""


@dataclass
class Synced:
    """List the runs that were delivered, were dead and ended, or got their final dvc.lock."""

    delivered: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # reasons by run, or by the store's address

    def lines(self) -> list[str]:
        """Format what was done, one line per kind."""
        done = {
            "delivered": self.delivered,
            "ended (their process is gone)": self.ended,
            "completed with dvc.lock": self.completed,
        }
        return [f"{what}: {', '.join(runs)}" for what, runs in done.items() if runs]


def sync(seconds: float | None = None, gone: str = "") -> Synced:
    """Deliver all journals, end dead runs, and attach the final `dvc.lock` to finished runs that lack it.

    A lock is final once DVC has ended: the workspace's lock, if it records the run that
    `build/runs/export.json` names; for an experiment, the lock in its commit. A delivery is waited for
    while the uploader runs, or so many `seconds`. `gone` is a process that writes to its runs no more.
    """
    where = outbox.folder()
    synced = Synced(ended=outbox.close_orphans(where, gone=gone))
    waiting = [path.name for path in outbox.journals(where) if state(path).ended]
    synced.failed = outbox.wait_until_uploaded(waiting, where, seconds)
    synced.delivered = [run for run in waiting if run not in synced.failed]
    try:
        client = store.open_to_write(store.uri())
        if experiment := client.get_experiment_by_name(settings.experiment()):
            store.check_active(client, experiment)
            journals = {path.name for path in outbox.journals(where)}
            synced.ended += store.end_abandoned(client, experiment.experiment_id, journals)
            synced.completed = _attach_locks(client, experiment.experiment_id)
    except Exception as error:  # noqa: BLE001 (whatever the store raises)
        if not synced.failed:  # else the store's error is reported with each run
            address = without_credentials(store.uri())
            synced.failed[address] = (
                f"{address} failed: {store.explain(error).removesuffix('.')}. Nothing is lost; run `convoy sync` afterwards."
            )
    return synced


def _attach_locks(client: "MlflowClient", experiment_id: str) -> list[str]:
    """Attach to each finished run its final lock, beside params.yaml, if it is known; return those runs' names."""
    workspace_run = latest([LAST]).run_id if _workspace_lock_is_final() else ""
    commits = git.experiments(Path.cwd())
    completed = []
    for run in client.search_runs([experiment_id], "attributes.status = 'FINISHED'"):
        tags = run.data.tags
        if contract.LOCK in tags:
            continue
        if workspace_run and tags.get(contract.RUN_ID) == workspace_run:
            lock = LOCK.read_text(encoding="utf-8")
        elif commit := commits.get(tags.get(contract.DVC_EXPERIMENT, "")):
            lock = git.query(Path.cwd(), "show", f"{commit}:./{LOCK}") + "\n"
        else:
            continue
        client.log_text(run.info.run_id, lock, f"pipeline/{LOCK}")
        client.set_tag(run.info.run_id, contract.LOCK, hashlib.sha256(lock.encode()).hexdigest())
        completed.append(str(run.info.run_name))
    return completed


def _workspace_lock_is_final() -> bool:
    """Check whether dvc.lock records the export in the workspace."""
    return EXPORTED.exists() and records(EXPORTED, EXPORTED.read_bytes())
