"""Register a verified model as a version of the registered model, and point `candidate` to it."""

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelStatus, Metric, Run

from convoy.core import contract, files, params, stage, yaml
from convoy.core.console import info
from convoy.core.errors import RequestError, listed
from convoy.core.escaping import short
from convoy.export.card import without_header
from convoy.export.onnx_model import OnnxModel
from convoy.lineage import compare, trace
from convoy.registry import workspace
from convoy.registry.client import (
    CANDIDATE,
    CHAMPION,
    DEPLOY,
    TAG_CHARACTERS,
    ArtifactMissing,
    ModelArtifacts,
    Registry,
    RegistryError,
    Version,
    copy_files,
    is_verified,
    refuse_inside_experiment,
)
from convoy.repo import identity
from convoy.tracking import mlflow_writer, outbox, settings, stages, store
from convoy.tracking.journal import FILE, Journal, state
from convoy.tracking.run import Reference, now_ms
from convoy.tracking.run import Run as JournaledRun

ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")

CUT = "\n\n(Truncated: a registry accepts 5,000 characters. The whole card is `model_card.md` beside the model.)"


@dataclass(frozen=True)
class VerifiedModel:
    """A folder with a verified model; `classes` are in the order of the probabilities."""

    folder: Path
    sha256: str
    verification: dict[str, Any]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "VerifiedModel":
        """Read a folder that `export` wrote.

        Raises:
            RequestError: it holds no verified model; names the next command.
            VerificationError: Convoy did not export the file.
        """
        onnx, verification = folder / contract.VERIFIED, folder / contract.VERIFICATION
        for path in (onnx, verification):
            if not path.is_file():
                raise RequestError(
                    f"{path} does not exist, so there is no verified model to register. Make it: dvc repro "
                    "(or restore it from DVC's cache: dvc checkout build/deploy; or name a run: convoy register RUN)"
                )
        sha256 = files.sha256(onnx)
        if not is_verified(folder, sha256):
            raise RequestError(
                f"{verification} is not the verification of {onnx} (sha256 {sha256[:12]}): either was changed since. "
                "Restore both: dvc checkout --force build/deploy; or make them again: dvc repro --force export"
            )
        return cls(folder, sha256, files.read_json(verification), OnnxModel(onnx).classes)

    @property
    def identity(self) -> dict[contract.IdentityKey, str]:
        """The run that exported it, and the commit, data and params that it comes from."""
        return dict(self.verification["model"]["identity"])

    @property
    def split(self) -> str:
        """The split that was measured."""
        return str(self.verification.get("split", "test"))  # absent in those of earlier versions

    @property
    def run_id(self) -> str:
        """Convoy's id of the run that exported it."""
        return self.identity["run_id"]

    def tags(self) -> dict[str, str]:
        """Give provenance and verified figures as tags; class names that do not fit are only counted."""
        tags = {f"convoy.{key}": text for key, text in self.identity.items()}
        tags |= {
            contract.ONNX_SHA256: self.sha256,
            contract.VERSION: str(self.verification["model"]["version"]),
            "convoy.class_count": str(len(self.classes)),
            "convoy.label_flips": str(self.verification["checks"][0]["label_flips"]),
        }
        tags |= {f"convoy.{name}": str(self.verification[name]) for name in ACCURACY}
        tags |= {contract.MEASURED_ON: self.split} if self.split != "test" else {}
        classes = json.dumps(self.classes, ensure_ascii=False)
        return tags | ({contract.CLASSES: classes} if len(classes) <= TAG_CHARACTERS else {})

    def description(self) -> str:
        """Give the model card without its header, cut at the end of a line if it is too long."""
        path = self.folder / contract.MODEL_CARD
        card = without_header(path.read_text(encoding="utf-8")) if path.is_file() else ""
        if len(card) <= TAG_CHARACTERS:
            return card
        return card[: TAG_CHARACTERS - len(CUT)].rpartition("\n")[0] + CUT


def register(query: str = "") -> Version:
    """Register the verified model of the workspace, or of a run, and point `candidate` to it.

    A file that is already registered is not registered again, unless the store has lost it. A `query` is anything that
    `convoy trace` resolves to a run.

    Raises:
        RequestError: there is no verified model, or `query` matches no run or several; without `query`, the model is not
            what dvc.lock records, or was made of other data than the workspace's.
        RegistryError: the store does not answer, refuses, or has lost the run's model.
    """
    refuse_inside_experiment("register")
    registry = Registry.open()
    with tempfile.TemporaryDirectory() as scratch:
        if query:
            model, network = of_run(registry, query, Path(scratch))
        else:
            model, network = VerifiedModel.read(DEPLOY), workspace.network()
            workspace.check(DEPLOY, model.run_id, model.identity["data_hash"])
        names = listed([short(name, 20) for name in model.classes], 5)
        info(
            f"model.onnx {model.sha256[:12]}: network {network or 'unknown'}, {len(model.classes)} classes ({names}), "
            f"data {model.identity['data_hash'][:12]}, {workspace.age(model.run_id)}"
        )
        registry.create()
        known = registry.by_sha256(model.sha256)[-1:]
        if known and ModelArtifacts.of(registry, known[0]).has_model:
            version = known[0]
            info(f"{version} has this file already: model.onnx {model.sha256[:12]} of run {model.run_id}")
        else:
            version = _add(registry, model, *known)
    if registry.aliases().get(CANDIDATE) != version.number:
        registry.point(CANDIDATE, version)
    accuracy, low, high = (model.verification[name] for name in ACCURACY)
    on_val = " on validation images, since there are no test images" if model.split == "val" else ""
    info(f"{CANDIDATE} is {version}, accuracy {accuracy:.2%} ({low:.2%} to {high:.2%}){on_val}")
    return version


def _add(registry: Registry, model: VerifiedModel, lost: Version | None = None) -> Version:
    """Add a version; if another process added the same file meanwhile, the version with the lower number stays."""
    run, logged = _stored(registry, model)
    tags = model.tags()
    if md5 := run.data.tags.get(contract.DATA_MD5):
        tags[contract.DATA_MD5] = md5

    def same_file() -> list[Version]:
        versions = registry.by_sha256(model.sha256)
        return [version for version in versions if not lost or int(version.number) > int(lost.number)]

    if earlier := same_file():
        return earlier[0]
    version = registry.add(logged.model_id, run.info.run_id, tags, model.description())
    first = same_file()[0]
    if first.number != version.number:
        with suppress(RegistryError):  # a second version of the same file does no harm
            registry.delete(version)
        return first
    info(f"{version} is registered: model.onnx {model.sha256[:12]} of run {model.run_id}")
    if lost:
        info(f"it is the same file as {lost}, which the store has lost")
    if lost and registry.aliases().get(CHAMPION) == lost.number:
        info(
            f'{lost} is the champion; to replace it by {version}: convoy promote --override "the file was lost"'
        )
    return version


def of_run(registry: Registry, query: str, folder: Path) -> tuple[VerifiedModel, str]:
    """Get the verified model of a run, and the name of its network; it is fetched into `folder` unless this workspace has it.

    Raises:
        RequestError: `query` matches no run or several, or the run has no verified model.
        RegistryError: the store does not answer, or has lost the model.
    """
    traced, sources = trace.look(query, stage.repository())
    record = compare.only_run(traced)
    sha256 = record.tag(contract.ONNX_SHA256)
    run_id = record.run_id or record.mlflow_run_id
    if not sha256:
        status = "" if record.status == "FINISHED" else f"it is {record.status}, "
        raise RequestError(
            f"run {run_id} has no verified model: {status}`export` has not completed in it. Choose another run; "
            f"`convoy trace {run_id}` shows its files"
        )
    if traced.sha256 and traced.sha256 != sha256:
        raise RequestError(
            f"{query} has other bytes (sha256 {traced.sha256[:12]}) than the model that run {run_id} verified "
            f"({sha256[:12]}). To register the latter: convoy register {run_id}"
        )
    network = record.params.get("network.name", "")
    if is_verified(DEPLOY, sha256) and not workspace.changed(DEPLOY):
        return VerifiedModel.read(DEPLOY), network
    run = _find_run(registry, run_id)
    logged = _logged_model(registry, run, sha256) if run else None
    command = trace.restore_command(record, sources, "../restored")
    restore = f"Restore it and register it there: {command} && cd ../restored && convoy register"
    if logged is None:
        raise RegistryError(f"{registry.address} does not have the model of run {run_id}. {restore}")
    try:
        _files(registry, logged, run_id).download(sha256, folder)
    except ArtifactMissing as missing:
        raise RegistryError(f"{missing}. {restore}") from missing
    if not is_verified(folder, sha256):
        raise RequestError(
            f"run {run_id} was exported by an earlier Convoy, which stored no verification beside the model. "
            "Export again: dvc repro --force export"
        )
    return VerifiedModel.read(folder), network


def _find_run(registry: Registry, run_id: str) -> Run | None:
    """Find a run in the store; if it is still in the outbox, and not being written, wait until it is delivered."""
    where = outbox.folder()
    if (where / run_id / FILE).exists():
        outbox.close_orphan(where, where / run_id, between_stages=True)
        if not state(where / run_id).ended:
            raise RegistryError(
                f"run {run_id} is still being written, its pipeline has not ended. Register it when `dvc repro` is done."
            )
        if reasons := outbox.wait_until_uploaded([run_id], where, None):
            raise RegistryError("\n".join(reasons.values()))
    return registry.call(f"look up run {run_id}", store.find, run_id, registry.client)


def _logged_model(registry: Registry, run: Run, sha256: str) -> LoggedModel | None:
    """Find the model with these bytes that a run logged; None if it was deleted or its upload was interrupted."""
    query = f"source_run_id = '{run.info.run_id}'"
    search, experiments = registry.client.search_logged_models, [run.info.experiment_id]
    logged = registry.call(f"list the models of run {run.info.run_id}", search, experiments, query)
    ready = (model for model in logged if model.status == LoggedModelStatus.READY)
    return next((model for model in ready if model.tags.get(contract.ONNX_SHA256) == sha256), None)


def _files(registry: Registry, logged: LoggedModel, run_id: str) -> ModelArtifacts:
    return ModelArtifacts.at(registry, str(logged.artifact_location), f"run {run_id}")


def _stored(registry: Registry, model: VerifiedModel) -> tuple[Run, LoggedModel]:
    """Find the run and the logged model of a verified file; give back to the store what it has lost of them."""
    run = _find_run(registry, model.run_id)
    if run is None:
        info(
            f"{registry.address} does not have run {model.run_id}: recreating it from this workspace, without its curves"
        )
        _rewrite_journal(model)
        run = _find_run(registry, model.run_id)
        if run is None:
            raise RegistryError(
                f"run {model.run_id} was delivered to another store than {registry.address}. Set MLFLOW_TRACKING_URI "
                "as it was when the run was made, or remove the run's folder from outbox/."
            )
    logged = _logged_model(registry, run, model.sha256)
    if logged and _files(registry, logged, model.run_id).has_model:
        return run, logged
    info(f"{registry.address} has lost the model of run {model.run_id}: logging it again")
    ended_ms = int(run.info.end_time or run.info.start_time or 0)
    results = [
        Metric(name, value, ended_ms, 0)
        for name, value in run.data.metrics.items()
        if name.startswith(("test/", "deploy/"))
    ]

    def write() -> LoggedModel:
        if logged:
            registry.client.delete_logged_model(logged.model_id)
        with tempfile.TemporaryDirectory() as scratch:
            copy_files(model.folder, Path(scratch))
            return mlflow_writer.log_model(registry.client, run, Path(scratch), model.sha256, results)

    return run, registry.call(f"log the model of run {model.run_id}", write)


def _rewrite_journal(model: VerifiedModel) -> None:
    """Write a run's journal from its outputs.

    It gets params only if params.yaml is unchanged, and results only if they are of this run.
    """
    where = outbox.folder()
    content = yaml.read(params.PARAMS_FILE)
    same_params = params.digest(content) == model.identity["params_hash"]
    reference = stages.latest(list(stages.STAGE_PARAMS))
    is_workspace = reference.run_id == model.run_id
    if not is_workspace:
        reference = Reference(model.run_id, model.run_id)
    tags = identity.process_tags() | {
        contract.RUN_ID: model.run_id,
        contract.TRAINING: reference.training,
        contract.GIT_COMMIT: model.identity["git_commit"],
        contract.DATA_HASH: model.identity["data_hash"],
        contract.PARAMS_HASH: model.identity["params_hash"],
        "convoy.remade": "from the DVC cache: the store had no such run",
    }
    entry = {
        "kind": "open",
        "time_ms": now_ms(),
        "uri": settings.uri(),
        "experiment": settings.experiment(),
        "name": stages.run_name(*stages.STAGE_PARAMS) if same_params else f"restored {model.run_id}",
        "tags": tags,
        "writer": outbox.writer(),
        "resumed": False,
        "parent": "",
        "offered": "",
    }
    with outbox.locked(where):
        journal = Journal(where / model.run_id)
        journal.append(entry, sync=True)
    run = JournaledRun(reference, journal)
    for name, sections in stages.STAGE_PARAMS.items():
        if same_params:
            run.log_params({key: content[key] for key in sections})
        path = stages.METRICS / f"{name}.json"
        if is_workspace and path.exists():
            run.log_result(files.read_json(path))
    beside = [model.folder / name for name in contract.BESIDE if (model.folder / name).exists()]
    run.log_onnx(model.folder / contract.VERIFIED, *beside)
    run.end("FINISHED")
