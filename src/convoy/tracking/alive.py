"""End runs in the store that nobody writes to any more."""

from collections.abc import Container
from datetime import UTC, datetime

from mlflow.tracking import MlflowClient

from convoy.repo import identity
from convoy.tracking.journal import STAGE
from convoy.tracking.mlflow_writer import HEARTBEAT

MISSED_SECONDS = 600.0
"""Age of the last heartbeat from which a run of another host is taken for dead."""


def end_abandoned(client: MlflowClient, experiment_id: str, here: Container[str] = ()) -> list[str]:
    """End runs whose process is gone: after kill -9, or a machine that was switched off, nobody else does.

    A run that was left between stages is FINISHED: DVC had the later ones in its cache
    already, or was not asked for them. One that was left inside a stage is KILLED. A run
    that was stopped to go on later is SCHEDULED, so it is left alone.

    Args:
        client: of the store.
        experiment_id: whose runs are looked at.
        here: Convoy's ids of runs whose journals are in this outbox, and say themselves how they ended.

    Returns:
        Names of the runs that were ended.
    """
    ended = []
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if "convoy.run_id" in tags and tags["convoy.run_id"] not in here and _is_dead(tags):
            done = tags.get(STAGE, "").endswith(" done")
            client.set_terminated(run.info.run_id, "FINISHED" if done else "KILLED")
            ended.append(str(run.info.run_name))
    return ended


def _is_dead(tags: dict[str, str]) -> bool:
    """Judge a run of this host by its process, one of another by its heartbeat; without one it is left alone."""
    if tags.get("convoy.host") == identity.host():
        return not identity.is_alive(tags.get("convoy.owner", ""))
    if HEARTBEAT not in tags:
        return False
    silent = datetime.now(UTC) - datetime.fromisoformat(tags[HEARTBEAT])
    return silent.total_seconds() > MISSED_SECONDS
