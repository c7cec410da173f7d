"""Bring the store up to date with what only exists after DVC has ended: the final dvc.lock."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Run as StoredRun
from mlflow.tracking import MlflowClient

from convoy import params
from convoy.identity import git
from convoy.tracking import store
from convoy.tracking.stages import RUNS, latest

LOCK = Path("dvc.lock")
LAST = RUNS / "export.json"


def sync() -> list[str]:
    """End dead runs and attach the final `dvc.lock` to finished runs that lack it.

    A lock is final once DVC has ended: the workspace's one, if it records the run that
    `build/runs/export.json` names; for an experiment, the one in its commit.

    Returns:
        Names of the runs that were completed.
    """
    client = store.connect()
    name = params.section("tracking", store.TrackingParams).experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        return []
    store.end_abandoned(client, found.experiment_id)
    here = latest(["export"]).mlflow_run_id if _workspace_lock_is_final() else ""
    commits = _experiment_commits()
    completed = []
    for run in client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'"):
        tags = run.data.tags
        if "convoy.lock" in tags:
            continue
        lock = LOCK.read_text(encoding="utf-8") if run.info.run_id == here else ""
        if not lock and tags.get("convoy.dvc_experiment") in commits:
            lock = git("show", f"{commits[tags['convoy.dvc_experiment']]}:{LOCK}") + "\n"
        if lock:
            _attach(client, run, lock)
            completed.append(str(run.info.run_name))
    return completed


def _attach(client: MlflowClient, run: StoredRun, lock: str) -> None:
    """Attach a lock beside params.yaml and dvc.yaml, and tag the run with its hash."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LOCK.name
        path.write_text(lock, encoding="utf-8")
        client.log_artifact(run.info.run_id, str(path), "pipeline")
    client.set_tag(run.info.run_id, "convoy.lock", hashlib.sha256(lock.encode()).hexdigest())


def _workspace_lock_is_final() -> bool:
    """Tell whether dvc.lock records the export that lies in the workspace."""
    if not LOCK.exists() or not LAST.exists():
        return False
    content: dict[str, Any] = yaml.safe_load(LOCK.read_text(encoding="utf-8"))
    outs = content.get("stages", {}).get("export", {}).get("outs", [])
    recorded = {entry["path"]: entry.get("md5") for entry in outs}
    found = hashlib.md5(LAST.read_bytes(), usedforsecurity=False).hexdigest()  # DVC's own content hash
    return recorded.get(LAST.as_posix()) == found


def _experiment_commits() -> dict[str, str]:
    """Map the names of DVC experiments to their commits: refs/exps/<2>/<38>/<name>."""
    lines = git("for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps").splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if " " in line)
    return {name: commit for name, commit in pairs if name}
