"""Make a proven model a version of the registered model, and let `candidate` point to it."""

import tempfile
from pathlib import Path

from convoy.core import stage
from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.lineage import compare, trace
from convoy.registry import artifacts, remake
from convoy.registry.artifacts import Gone, ModelArtifacts
from convoy.registry.client import (
    CANDIDATE,
    CHAMPION,
    SHA256,
    Registry,
    RegistryError,
    Version,
    refuse_inside_experiment,
)
from convoy.registry.lock import held
from convoy.registry.proven import Proven

DATA_MD5 = "convoy.data_md5"


def register(asked: str = "") -> Version:
    """Register the workspace's proven model, or that of a run, and move the alias `candidate` to it.

    A file that is registered already is not registered again, unless the store has lost it.

    Args:
        asked: anything that `convoy trace` takes for one run; empty for build/deploy.

    Raises:
        RequestError: there is no proven model, or `asked` names no run or several.
        RegistryError: the store does not answer, refuses, or has lost the run's model.
    """
    refuse_inside_experiment("register")
    registry = Registry.open()
    if not asked:
        return _register(registry, Proven.read(artifacts.DEPLOY))
    with tempfile.TemporaryDirectory() as scratch:
        return _register(registry, _of_run(registry, asked, Path(scratch)))


def _register(registry: Registry, proven: Proven) -> Version:
    registry.create()
    known = registry.by_sha256(proven.sha256)
    if known and artifacts.has_file(registry, known):
        info(f"{known} is this file already: model.onnx {proven.sha256[:12]} of run {proven.run_id}")
        version = known
    else:
        version = _add(registry, proven, known)
    if registry.aliases().get(CANDIDATE) != version.number:
        registry.point(CANDIDATE, version)
    info(f"{CANDIDATE} is {version}, accuracy {proven.accuracy}")
    return version


def _add(registry: Registry, proven: Proven, lost: Version | None) -> Version:
    """Add a version; if another process has done so meanwhile, take that one."""
    run, model = remake.logged(registry, proven)
    tags = proven.tags()
    if md5 := run.data.tags.get(DATA_MD5):
        tags[DATA_MD5] = md5
    with held(registry, f"register run {proven.run_id}"):
        there = registry.by_sha256(proven.sha256)
        if there and (lost is None or there.number != lost.number):
            return there
        version = registry.add(model.model_id, run.info.run_id, tags, proven.description())
    info(f"{version} is registered: model.onnx {proven.sha256[:12]} of run {proven.run_id}")
    if lost:
        info(f"it is the same file as {lost}, which the store has lost")
        if registry.aliases().get(CHAMPION) == lost.number:
            info(
                f'{lost} is the champion; to let {version} take its place: convoy promote --override "the file was lost"'
            )
    return version


def _of_run(registry: Registry, asked: str, folder: Path) -> Proven:
    """Have the proven model of a run here."""
    found, _ = trace.look(asked, stage.repository())
    record = compare.only_run(found)
    sha256 = record.tag(SHA256)
    if not sha256:
        raise RequestError(
            f"run {record.run_id or record.mlflow_run_id} has no proven model: "
            f"{'it is ' + record.status + ', ' if record.status != 'FINISHED' else ''}`export` has not ended in it. "
            "Choose another run, or make its model: convoy trace "
            f"{record.run_id or record.mlflow_run_id} shows what there is of it"
        )
    if found.sha256 and found.sha256 != sha256:
        raise RequestError(
            f"{asked} has other bytes (sha256 {found.sha256[:12]}) than the model that run {record.run_id} proved "
            f"({sha256[:12]}). To register that one: convoy register {record.run_id}"
        )
    if artifacts.holds(artifacts.DEPLOY, sha256):
        return Proven.read(artifacts.DEPLOY)
    remake.deliver(record.run_id)
    run = remake.find(registry, record.run_id)
    model = remake.logged_model(registry, run, sha256) if run else None
    restore = (
        f"Bring it back and register it there: convoy trace {record.run_id} --restore ../restored && "
        "cd ../restored && convoy register"
    )
    if model is None:
        raise RegistryError(f"{registry.address} has not the model of run {record.run_id}. {restore}")
    try:
        ModelArtifacts.at(registry, str(model.artifact_location), f"run {record.run_id}").take(sha256, folder)
    except Gone as gone:
        raise RegistryError(f"{gone}. {restore}") from gone
    if not artifacts.holds(folder, sha256):
        raise RequestError(
            f"run {record.run_id} was exported by an earlier Convoy, which kept no proof beside the model. "
            "Export again: dvc repro --force export"
        )
    return Proven.read(folder)
