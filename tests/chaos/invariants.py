"""What holds after every combination: what is recorded agrees, nothing recorded is lost, and nothing dead looks alive."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from mlflow.entities import Run
from onnx import numpy_helper

from chaos.scene import Scene
from convoy.core import contract, params, pipeline, yaml
from convoy.core.errors import RequestError
from convoy.repo import dvc
from convoy.tracking import outbox
from convoy.tracking.journal import FILE
from convoy.tracking.run import flatten_metrics
from convoy.tracking.sync import sync

RECORDED = ("train", "evaluate", "export")


@dataclass(frozen=True)
class Before:
    """What was recorded before something happened."""

    runs: dict[str, Run]  # by MLflow's id
    points: dict[str, dict[str, set[tuple[int, float]]]]  # of each run's metrics
    versions: dict[str, str]  # number to SHA-256
    aliases: dict[str, str]
    moves: set[str]  # runs of the promotion log
    cached: set[str]  # md5s that the commit's dvc.lock and data.dvc name
    head: str

    @classmethod
    def of(cls, scene: Scene) -> "Before":
        """Read it."""
        runs = {run.info.run_id: run for run in _runs(scene, scene.experiment)}
        return cls(
            runs,
            {run_id: _points(scene, run) for run_id, run in runs.items()},
            _versions(scene),
            _aliases(scene),
            {run.info.run_id for run in _runs(scene, f"{scene.experiment} promotions")},
            _cached(scene.folder),
            scene.git("rev-parse", "HEAD").strip(),
        )


def check(scene: Scene, before: Before, *, settled: bool, drops_cache: bool = False) -> list[str]:
    """List what does not hold.

    `settled`: the next documented commands have run, so that nothing may be left open.
    """
    found = [
        *_agreement(scene),
        *_lost_runs(scene, before),
        *_lost_versions(scene, before),
        *_finished(scene),
        *_tracebacks(scene),
    ]
    if not drops_cache:
        found += _lost_objects(scene, before)
    if scene.git("cat-file", "-t", before.head).strip() != "commit":
        found.append(f"commit {before.head} is gone")
    if settled:
        found += _open_ends(scene)
    return found


def synchronize(scene: Scene) -> list[str]:
    """Do what `convoy sync` does, in this process; return what was not delivered."""
    if not scene.uri and not (scene.folder / "mlflow.db").exists():
        return []  # it would make one
    kept = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "CONVOY_CHAOS", "PYTHONPATH")}
    os.environ |= {name: scene.clone.env[name] for name in kept if name in scene.clone.env}
    os.environ["CONVOY_CHAOS"] = str(scene.control)
    try:
        with chdir(scene.folder):
            return [f"sync: {reason}" for reason in sync().failed.values()]
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            os.environ |= {name: value} if value is not None else {}


def _agreement(scene: Scene) -> Iterator[str]:
    """Compare dvc.lock with files and cache, and what it records of each stage with the stage's run."""
    try:
        lock = pipeline.locked(scene.folder)
    except RequestError:  # DVC empties the file before it writes, and records nothing until it has written
        return
    lock = {
        stage: entry for stage, entry in lock.items() if all("md5" in out for out in entry.get("outs", [{}]))
    }
    cache = dvc.Cache.of(scene.folder)
    for stage, entry in lock.items():
        for out in entry.get("outs", ()):
            if dvc.content_md5(scene.folder / out["path"]) != out["md5"] and cache.lacks(out["md5"]):
                yield f"dvc.lock records {out['path']} of {stage} as {out['md5']}, which neither the folder nor the cache has"
    found = [*_runs(scene, scene.experiment), *(_runs(replace(scene, uri=""), "convoy") if scene.uri else ())]
    runs = {run.data.tags.get(contract.RUN_ID, ""): run for run in found}
    for stage in RECORDED:
        facts = _json(scene, lock, stage, f"build/runs/{stage}.json") if stage in lock else None
        # A run that the outbox did not take is announced as incomplete.
        if facts and facts["run_id"] not in _incomplete(scene):
            yield from _stage(scene, lock, stage, facts["run_id"], runs.get(facts["run_id"]))
    if "export" in lock:
        yield from _model(scene, lock)


def _stage(scene: Scene, lock: dict[str, Any], stage: str, run_id: str, run: Run | None) -> Iterator[str]:
    """Compare the params and metrics of a stage with those of its run, which may still be in the outbox."""
    journal = scene.folder / "outbox" / run_id / FILE
    if run is None and not journal.exists():
        yield f"{stage} in dvc.lock was made in run {run_id}, which no store and no journal has"
        return
    logged = dict(run.data.params) if run else {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        with suppress(ValueError):  # torn by a full disk, as its reader expects
            logged = json.loads(line).get("params", {}) | logged  # the first value counts
    for key, value in params.flatten(lock[stage].get("params", {}).get("params.yaml", {})).items():
        if logged.get(key) != str(value):
            yield f"{key} of {stage} is {value} in dvc.lock, {logged.get(key)} in run {run_id}"
    if run is None or journal.exists():
        return  # metrics are compared when all of it has been delivered
    measured = flatten_metrics(_json(scene, lock, stage, f"build/metrics/{stage}.json") or {})
    for name, value in measured.items():
        if run.data.metrics.get(name) != value:
            yield f"{name} is {value} in build/metrics/{stage}.json, {run.data.metrics.get(name)} in run {run_id}"


def _incomplete(scene: Scene) -> set[str]:
    """List the runs that a command has reported as incomplete."""
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in scene.folder.parent.glob("log-*")]
    return set(re.findall(r"Tracking of run (\S+) is incomplete", "".join(logs)))


def _model(scene: Scene, lock: dict[str, Any]) -> Iterator[str]:
    """Compare the recorded model with its run, its verification, and the weights that were recorded beside it."""
    content = _content(scene, lock, "export", "build/deploy", contract.VERIFIED)
    verification = json.loads(
        _content(scene, lock, "export", "build/deploy", contract.VERIFICATION) or b"null"
    )
    if content is None or verification is None:
        yield "dvc.lock records an export without a verified model"
        return
    if verification["model"]["sha256"] != hashlib.sha256(content).hexdigest():
        yield "verification.json is of another file than model.onnx"
    model = onnx.load_from_string(content)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    reference = _json(scene, lock, "export", "build/runs/export.json") or {}
    if metadata[contract.RUN_ID] != reference.get("run_id"):
        yield f"model.onnx names run {metadata[contract.RUN_ID]}, build/runs/export.json {reference.get('run_id')}"
    accuracy = (_json(scene, lock, "export", "build/metrics/export.json") or {})["deploy"]["accuracy"]
    if verification["accuracy"] != accuracy:
        yield f"accuracy is {verification['accuracy']} in verification.json, {accuracy} in the metrics"
    deps = {dep["path"]: dep.get("md5") for dep in lock["export"]["deps"]}
    made = {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", ())}
    if deps["build/model"] == made["build/model"]:
        weights = _content(scene, lock, "train", "build/model", contract.WEIGHTS)
        if weights is None:
            return
        folder = scene.folder.parent / "weights.pt"
        folder.write_bytes(weights)
        constants = {numpy_helper.to_array(entry).tobytes() for entry in model.graph.initializer}
        for name, tensor in torch.load(folder, weights_only=True).items():
            array = tensor.numpy()
            if array.ndim == 4 and np.ascontiguousarray(array).tobytes() not in constants:
                yield f"model.onnx does not have the weights {name} of build/model"


def _lost_runs(scene: Scene, before: Before) -> Iterator[str]:
    """Find runs that are gone, or lack what they had."""
    now = {run.info.run_id: run for run in _runs(scene, scene.experiment)}
    for run_id, run in before.runs.items():
        name = run.data.tags.get(contract.RUN_ID)
        if run_id not in now:
            yield f"run {name} is gone"
            continue
        if run.info.status == "FINISHED" and now[run_id].info.status != "FINISHED":
            yield f"run {name} was FINISHED and is {now[run_id].info.status}"
        if lost := run.data.params.items() - now[run_id].data.params.items():
            yield f"run {name} lost params {lost}"
        after = _points(scene, now[run_id])
        for metric, points in before.points[run_id].items():
            if lost := points - after.get(metric, set()):
                yield f"run {name} lost points of {metric}: {lost}"


def _lost_versions(scene: Scene, before: Before) -> Iterator[str]:
    """Find versions, aliases and entries of the promotion log that are gone, and moves without an entry."""
    versions, aliases = _versions(scene), _aliases(scene)
    if lost := before.versions.items() - versions.items():
        yield f"versions are gone: {lost}"
    for alias, number in aliases.items():
        if number not in versions:
            yield f"{alias} points to version {number}, which does not exist"
    if lost := before.aliases.keys() - aliases.keys():
        yield f"aliases are gone: {lost}"
    moves = {run.info.run_id for run in _runs(scene, f"{scene.experiment} promotions")}
    if lost := before.moves - moves:
        yield f"entries of the promotion log are gone: {lost}"
    if aliases.get("champion") != before.aliases.get("champion") and len(moves) == len(before.moves):
        yield f"champion moved to {aliases.get('champion')} without an entry in the log"


def _lost_objects(scene: Scene, before: Before) -> Iterator[str]:
    """Find cached content that is gone or damaged."""
    cache = dvc.Cache.of(scene.folder)
    for md5 in before.cached:
        if not cache.path(md5).exists():
            yield f"{md5}, which a commit names, is gone from DVC's cache"
        elif not md5.endswith(".dir") and dvc.content_md5(cache.path(md5)) != md5:
            yield f"{md5} in DVC's cache has other content"


def _finished(scene: Scene) -> Iterator[str]:
    """Check that each finished export has the model that it verified, byte for byte, and that no curve has doubles."""
    for run in _runs(scene, scene.experiment):
        name = run.data.tags.get(contract.RUN_ID)
        for metric, points in _history(scene, run).items():
            steps = [
                step for step, _ in points if step
            ]  # results, at step 0, are measured again by a stage that runs again
            if len(steps) != len(set(steps)):
                yield f"run {name} has {metric} twice at a step"
        sha256 = run.data.tags.get(contract.ONNX_SHA256)
        if run.info.status != "FINISHED" or not run.data.tags.get(contract.STAGE, "").startswith("export"):
            continue
        models = scene.store.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        )
        # A moved repository's store has the old place until it is repaired.
        places = [model.artifact_location.rpartition("/mlartifacts/")[2] for model in models]
        paths = [scene.folder / "mlartifacts" / place / contract.VERIFIED for place in places]
        found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()]
        if not scene.uri and sha256 not in found:
            yield f"run {name} is FINISHED, but its model {sha256} is not stored (found: {found})"
        if not models:
            yield f"run {name} is FINISHED without a model"


def _tracebacks(scene: Scene) -> Iterator[str]:
    """Find commands that ended in a traceback instead of a message."""
    for path in sorted(scene.folder.parent.glob("log-*")):
        _, found, trace = path.read_text(encoding="utf-8", errors="replace").partition(
            "Traceback (most recent call last)"
        )
        if found:
            yield f"a command printed a traceback ({path.name}):{trace[-2000:]}"


def _open_ends(scene: Scene) -> Iterator[str]:
    """Find runs that look alive, journals that were not delivered, entries of the log that are open, and changed stages."""
    for name in (scene.experiment, f"{scene.experiment} promotions"):
        for run in _runs(scene, name):
            if run.info.status == "RUNNING":
                yield f"run {run.data.tags.get(contract.RUN_ID, run.info.run_name)} of {name} is RUNNING, but nothing runs"
    if left := [path.name for path in outbox.journals(scene.folder / "outbox")]:
        yield f"journals were not delivered: {left}"
    code, output = scene.run("dvc", "status", "--with-deps", *filter(None, [scene.moment.target]))
    if code or "up to date" not in output:
        yield f"dvc status is not clean: {output}"


def _content(scene: Scene, lock: dict[str, Any], stage: str, out: str, member: str = "") -> bytes | None:
    """Read what dvc.lock records of an output, or of a file in it, from DVC's cache; None if it has none."""
    md5 = next((entry["md5"] for entry in lock[stage]["outs"] if entry["path"] == out), "")
    cache = dvc.Cache.of(scene.folder)
    if member:
        md5 = cache.members(md5).get(member, "")
    return cache.path(md5).read_bytes() if md5 and cache.path(md5).exists() else None


def _json(scene: Scene, lock: dict[str, Any], stage: str, path: str) -> Any:
    content = _content(scene, lock, stage, path)
    return None if content is None else json.loads(content)


def _cached(folder: Path) -> set[str]:
    """List the cached content that dvc.lock and data.dvc name, members of folders included."""
    lock = folder / "dvc.lock"
    entries = [
        yaml.read(folder / "data.dvc"),
        *((yaml.read(lock)["stages"]).values() if lock.exists() else ()),
    ]
    cache = dvc.Cache.of(folder)
    outs = {out["md5"] for entry in entries for out in entry["outs"]}
    named = outs.union(*(cache.members(md5).values() for md5 in outs))
    return {md5 for md5 in named if cache.path(md5).exists()}


def _runs(scene: Scene, experiment: str) -> list[Run]:
    if not scene.uri and not (scene.folder / "mlflow.db").exists():
        return []
    found = scene.store.get_experiment_by_name(experiment)
    return list(scene.store.search_runs([found.experiment_id])) if found else []


def _history(scene: Scene, run: Run) -> dict[str, list[tuple[int, float]]]:
    store = scene.store
    return {
        name: [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if not name.startswith("system/")
    }


def _points(scene: Scene, run: Run) -> dict[str, set[tuple[int, float]]]:
    return {name: set(points) for name, points in _history(scene, run).items()}


def _versions(scene: Scene) -> dict[str, str]:
    if not scene.uri and not (scene.folder / "mlflow.db").exists():
        return {}
    found = scene.store.search_model_versions(f"name = '{scene.experiment}'")
    return {str(version.version): version.tags.get(contract.ONNX_SHA256, "") for version in found}


def _aliases(scene: Scene) -> dict[str, str]:
    if not scene.uri and not (scene.folder / "mlflow.db").exists():
        return {}
    models = scene.store.search_registered_models(f"name = '{scene.experiment}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}
