"""Write a journal to the MLflow store that it names, so that a second delivery changes nothing.

Points carry their own time, params are compared before they are sent, tags and files replace
themselves, a model is looked up before it is logged. So wherever an uploader is killed, the
next one continues from the last record in `sent.json`.
"""

import contextlib
import hashlib
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import mlflow.onnx
import mlflow.pyfunc
import onnx
import pandas as pd
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunStatus,
    RunTag,
)
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Array
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

import convoy
from convoy.core import contract, files
from convoy.tracking import settings, store
from convoy.tracking.journal import FILE, Entry, Sent, State, read

BATCH_ENTRIES = 2000  # entries that are sent before the progress of a delivery is recorded
BATCH_BYTES = 300_000  # of text per call: MLflow's servers refuse a million, and escape what is not ASCII
UPLOADS = 4  # files that are sent to a server at once
HEARTBEAT_SECONDS = 60.0

SAMPLE_SECONDS = 2.0  # interval of system metrics: a short training should still show a line, not a dot
LONG_NAME = 200  # characters that are left of a name that is too long for MLflow
EXAMPLE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
"""A black PNG of one pixel, as base64 text: any size serves."""

SIGNATURE = ModelSignature(
    Schema(
        [
            ColSpec(AnyType(), "image", required=False),  # type: ignore[no-untyped-call] # of MLflow; bytes, base64 text or pixels
            ColSpec(DataType.string, "path", required=False),
        ]
    ),
    Schema(
        [
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Array(DataType.double), "probabilities"),
            ColSpec(DataType.string, "error"),
        ]
    ),
)
"""Columns of serving/pyfunc.py."""

PYFUNC = "serving/pyfunc.py"
"""What loads a logged model. It stands above this package, which copies it and never imports it."""

PYFUNC_CODE = (
    *("__init__.py", "core/__init__.py", "core/contract.py", "core/errors.py"),
    *("export/__init__.py", "export/onnx_model.py"),
    *(
        "images/__init__.py",
        "images/damaged.py",
        "images/decode.py",
        "images/formats.py",
        "images/profiles.py",
    ),
    *("serving/__init__.py", PYFUNC),
)
"""Files of this package that a logged model brings along; a test loads it with nothing else of Convoy."""

T = TypeVar("T")


class Delivery:
    """Send a journal, entry by entry, and record the progress."""

    def __init__(self, folder: Path) -> None:
        """Continue where the last delivery of the journal in `folder` ended."""
        self.folder = folder
        self.sent = Sent.load(folder)
        self.state = State()
        self._read = 0
        self._client: MlflowClient | None = None
        self._values: ValueBatch | None = None
        self._monitor: Any = None
        self._heartbeat_at = 0.0

    @property
    def uri(self) -> str:
        """The store's address; empty while the journal has no first entry. A moved repository takes its store along."""
        uri, home = (str(self.state.opened.get(key, "")) for key in ("uri", "repository"))
        return settings.own() if home and uri == settings.own(Path(home)) else uri

    def read_new(self) -> None:
        """Read the entries written since the last call."""
        for entry, end in read(self.folder / FILE, self._read):
            self.state.add(entry)
            self._read = end

    def is_alive(self) -> bool:
        """Check whether more entries may follow."""
        return not self.state.ended and self.state.is_alive(self.folder / FILE)

    def is_delivered(self) -> bool:
        """Check whether the store has every entry that was read."""
        return self.sent.size >= self._read and not self.sent.held

    def deliver(self) -> None:
        """Send the next entries.

        Raises:
            ParentNotStored: the run that this one belongs under is not in the store yet.
            LocalArtifactsError: everything but the files is in the store.
            Exception: whatever the store and its artifacts raise; what was sent before is recorded.
        """
        try:
            if self._values is None and self.sent.entries:
                self._collect_for(self._mlflow().get_run(self.sent.mlflow_run_id))
            self._send(list(islice(self._pending(), BATCH_ENTRIES)))
            if self.is_alive():
                self.send_heartbeat()
            self._update_sampling()
            if self.sent.held and self.sent.size >= self._read and self.state.ended:
                self._send_held()
        except Exception as error:
            self._values = None  # collected anew, from what the store has by then
            if isinstance(error, MlflowException) and self.sent.mlflow_run_id and store.refused(error):
                store.check_run_active(self._mlflow(), self.sent.mlflow_run_id)
            raise

    def send_heartbeat(self) -> None:
        """Confirm in the store that the run is being written, once a minute."""
        if self.sent.mlflow_run_id and time.monotonic() - self._heartbeat_at > HEARTBEAT_SECONDS:
            self._heartbeat_at = time.monotonic()
            self._mlflow().set_tag(self.sent.mlflow_run_id, contract.HEARTBEAT, _now())
            self._update_sampling()

    def note_failure(self, error: Exception) -> str:
        """Record and return why an attempt failed."""
        self.sent.error = store.explain(error)
        self.sent.tried_ms = int(time.time() * 1000)
        with contextlib.suppress(OSError):  # a full disk; uploader.log has the reason as well
            self.sent.save(self.folder)
        return self.sent.error

    def stop_sampling(self) -> None:
        """Send the samples of the machine and stop sampling."""
        if self._monitor:
            self._monitor.finish()
            self._monitor = None

    def _update_sampling(self) -> None:
        """Sample the machine while the run requests it and lives; replace a monitor that gave up.

        MLflow's monitor ends itself when the store fails to answer once.
        """
        wanted = self.state.sampled and self.is_alive()
        if self._monitor:
            thread = self._monitor._process  # noqa: SLF001 (MLflow has no other sign of it)
            if not (wanted and thread is not None and thread.is_alive()):
                self.stop_sampling()
        if wanted and self._monitor is None and self.sent.mlflow_run_id:
            self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call] # MLflow has no types here
                self.sent.mlflow_run_id,
                sampling_interval=SAMPLE_SECONDS,
                resume_logging=True,
                tracking_uri=self.uri,
            )
            self._monitor.start()

    def _pending(self) -> Iterator[tuple[Entry, int]]:
        """Yield entries that were read and not sent; later ones wait, as `state` does not include them."""
        for entry, end in read(self.folder / FILE, self.sent.size):
            if end > self._read:
                return
            yield entry, end

    def _send(self, entries: list[tuple[Entry, int]]) -> None:
        """Send entries; consecutive values go together, and so do consecutive files."""
        waiting: list[Entry] = []
        for done, (entry, end) in enumerate(entries, self.sent.entries + 1):
            if entry.get("kind") in {"tags", "params", "points"} and self._values:
                self._values.add(entry)
            elif entry.get("kind") == "files":
                waiting.append(entry)
            else:
                self._flush(waiting)
                self._send_single(entry)
                self._record(done, end)
        self._flush(waiting)
        if entries:
            self._record(done, end)

    def _flush(self, waiting: list[Entry]) -> None:
        """Send the collected values, then the files, and clear both."""
        if self._values:
            self._values.send()
        if waiting:
            with self._held(*waiting):
                self._upload_files(waiting)
            waiting.clear()

    @contextlib.contextmanager
    def _held(self, *entries: Entry) -> Iterator[None]:
        """Note files that a server directs to a path of this machine; what follows them is sent."""
        try:
            yield
        except store.LocalArtifactsError:
            self.sent.held += [entry["at"] for entry in entries]

    def _send_held(self) -> None:
        """Send files that were held: the server may have another location by now."""
        entries = [entry for entry, _ in read(self.folder / FILE) if entry.get("at") in self.sent.held]
        self._upload_files([entry for entry in entries if entry["kind"] == "files"])
        for entry in entries:
            if entry["kind"] == "model":
                self._log_model(entry)
        self.sent.held = []
        self.sent.save(self.folder)

    def _record(self, entries: int, size: int) -> None:
        self.sent.entries, self.sent.size, self.sent.error = entries, size, ""
        self.sent.tried_ms = int(time.time() * 1000)
        self.sent.save(self.folder)

    def _mlflow(self) -> MlflowClient:
        if self._client is None:
            self._client = store.open_to_write(self.uri)
        return self._client

    def _collect_for(self, run: StoredRun) -> None:
        """Collect values for a run; a journal that was removed and made anew does not hold all its points."""
        self._values = ValueBatch(self._mlflow(), run, points_lost=self.state.remade)

    def _send_single(self, entry: Entry) -> None:
        """Send an entry that is neither a value nor a file."""
        kind, run_id, client = entry.get("kind"), self.sent.mlflow_run_id, self._mlflow()
        if kind == "open":
            self._open(entry)
        elif kind == "dataset":
            dataset = Dataset("dataset", entry["digest"], "local", entry["source"], profile=entry["profile"])
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        elif kind == "model":
            with self._held(entry):
                self._log_model(entry)
        elif kind == "end":
            self.stop_sampling()
            if entry["status"] == RunStatus.to_string(RunStatus.SCHEDULED):
                client.update_run(run_id, entry["status"])
            else:
                client.set_terminated(run_id, entry["status"], entry["time_ms"])

    def _log_model(self, entry: Entry) -> None:
        client = self._mlflow()
        run = client.get_run(self.sent.mlflow_run_id)
        log_model(client, run, self.folder / entry["at"], entry["sha256"], self._results())

    def _open(self, entry: Entry) -> None:
        """Find the run, join the one that `mlflow run` opened, or create one."""
        client = self._mlflow()
        known = self.sent.mlflow_run_id
        run = client.get_run(known) if known else store.find(entry["tags"][contract.RUN_ID], client)
        tags = entry["tags"] | {contract.HEARTBEAT: _now()}
        self._heartbeat_at = time.monotonic()
        if entry["parent"]:
            tags |= self._parent_tag(entry["parent"])
        if run is None and (offered := self._offered(entry)):
            run = offered
            client.update_run(run.info.run_id, name=entry["name"])
        if run is None:
            experiment = store.experiment(client, entry["experiment"])
            first = {
                name: value
                for name, value in tags.items()
                if usable_name(name) == name and len(value) <= MAX_TAG_VAL_LENGTH
            }
            run = client.create_run(experiment.experiment_id, entry["time_ms"], first, entry["name"])
            tags = {name: value for name, value in tags.items() if name not in first}
        elif entry["resumed"]:
            client.update_run(run.info.run_id, "RUNNING", entry["name"])
            if entry["offered"] not in {"", run.info.run_id}:
                client.set_tag(entry["offered"], contract.CONTINUES, entry["tags"][contract.RUN_ID])
        self.sent.mlflow_run_id = run.info.run_id
        self.sent.save(self.folder)
        self._collect_for(run)
        if tags and self._values:
            self._values.add({"kind": "tags", "tags": tags})
            self._values.send()

    def _offered(self, entry: Entry) -> StoredRun | None:
        """Return the run that `mlflow run` opened; None if it is in another store, deleted or another's."""
        if not entry["offered"] or entry["resumed"]:
            return None
        try:
            run = self._mlflow().get_run(entry["offered"])
        except MlflowException as error:
            if not store.refused(error):
                raise
            return None
        own = entry["tags"][contract.RUN_ID]
        free = run.data.tags.get(contract.RUN_ID, own) == own
        return run if free and run.info.lifecycle_stage == "active" else None

    def _parent_tag(self, parent: str) -> dict[str, str]:
        """Name the parent as MLflow does; no tag if neither the store nor the outbox has it."""
        if run := store.find(parent, self._mlflow()):
            return {"mlflow.parentRunId": run.info.run_id}
        if (self.folder.parent / parent / FILE).exists():
            raise store.ParentNotStored(parent)
        return {}

    def _results(self) -> list[Metric]:
        """Read the metrics that are results rather than points of a curve."""
        results = {
            name: Metric(usable_name(name), value, when, step)
            for entry, _ in read(self.folder / FILE)
            if entry.get("kind") == "points"
            for name, value, step, when in entry["points"]
            if step == 0
        }
        return list(results.values())

    def _upload_files(self, entries: list[Entry]) -> None:
        """Send files, several at once if each is a request."""
        client = self._mlflow()
        repository = store.artifacts(self.uri, client.get_run(self.sent.mlflow_run_id).info.artifact_uri)
        uploads = [
            (str(path), None if target == Path() else target.as_posix())
            for entry in entries
            for folder in [self.folder / entry["at"]]
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            for target in [(entry["folder"] or "") / path.parent.relative_to(folder)]
        ]
        with ThreadPoolExecutor(UPLOADS if self.uri.startswith("http") else 1) as pool:
            list(pool.map(lambda upload: repository.log_artifact(*upload), uploads))


class ValueBatch:
    """Collect a run's tags, params and points and send them in few calls, without those that the store has.

    MLflow refuses a param that changes, a long one and odd names: a changed value becomes
    the tag `param.<name>`, a long one the file `params/<name>.txt`.
    """

    def __init__(self, client: MlflowClient, run: StoredRun, *, points_lost: bool) -> None:
        """Collect for a run; `points_lost`: the store has points of it that its journal does not hold."""
        self._client = client
        self._run_id = run.info.run_id
        self._artifacts = run.info.artifact_uri
        self._known: dict[str, str] = dict(run.data.params)
        self._points_lost = points_lost
        self._stored_steps: dict[str, set[int]] = {}
        self._tags: dict[str, str] = {}
        self._params: dict[str, str] = {}
        self._points: list[Metric] = []

    def add(self, entry: Entry) -> None:
        """Collect an entry's values."""
        if entry["kind"] == "tags":
            self._tags |= entry["tags"]
        elif entry["kind"] == "params":
            for name, value in entry["params"].items():
                self._add_param(usable_name(name), value)
        else:
            for name, value, step, when in entry["points"]:
                point = Metric(usable_name(name), value, when, step)
                if not self._is_stored(point, result=entry.get("result", False)):
                    self._points.append(point)

    def send(self) -> None:
        """Send the collected values; they are cleared once the store has them."""
        tags = [self._tag(name, value) for name, value in self._tags.items()]
        params = [Param(name, value) for name, value in self._params.items()]
        tags += self._send_params(params)
        for some in _batches(tags, MAX_PARAMS_TAGS_PER_BATCH, lambda tag: len(tag.value)):
            self._client.log_batch(self._run_id, tags=some)
        for points in _batches(self._points, MAX_METRICS_PER_BATCH, lambda point: len(point.key) + 100):
            self._client.log_batch(self._run_id, metrics=points)
        self._tags, self._params, self._points = {}, {}, []

    def _add_param(self, name: str, value: str) -> None:
        """Collect a param, unless the run has it; a changed one becomes a tag."""
        if self._known.get(name, value) != value:
            self._tags[f"param.{name}"] = value
        elif name not in self._known:
            self._known[name] = value
            if len(value) > MAX_PARAM_VAL_LENGTH:
                self._tags[f"param.{name}"] = self._as_file(f"params/{name}.txt", value)
            else:
                self._params[name] = value

    def _tag(self, name: str, value: str) -> RunTag:
        """Make a tag; a value that is too long becomes a file."""
        name = usable_name(name)
        if len(value) > MAX_TAG_VAL_LENGTH:
            value = self._as_file(f"tags/{name}.txt", value)
        return RunTag(name, value)

    def _as_file(self, path: str, value: str) -> str:
        """Upload a long text; return the short value that refers to it."""
        folder, name = posixpath.split(path)
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / name).write_text(value, encoding="utf-8")
            try:
                store.artifacts(self._client.tracking_uri, self._artifacts).log_artifact(
                    f"{scratch}/{name}", folder
                )
            except (
                store.LocalArtifactsError
            ):  # the files of the run fail for the same reason, which is reported
                return f"{len(value):,} characters, which the server has no place for"
        return f"{len(value):,} characters, in {path}"

    def _send_params(self, params: list[Param]) -> list[RunTag]:
        """Send params; return a tag for each that the store refuses: an older one has other limits."""
        try:
            for some in _batches(params, MAX_PARAMS_TAGS_PER_BATCH, lambda param: len(param.value)):
                self._client.log_batch(self._run_id, params=some)
        except MlflowException as error:
            if not store.refused(error):
                raise
            if len(params) > 1:
                return [tag for param in params for tag in self._send_params([param])]
            [param] = params
            return [self._tag(f"param.{param.key}", self._as_file(f"params/{param.key}.txt", param.value))]
        return []

    def _is_stored(self, point: Metric, *, result: bool) -> bool:
        """Check whether the store has a point at this step, or a curve if this is its result."""
        if not self._points_lost:
            return False
        if point.key not in self._stored_steps:
            history = self._client.get_metric_history(self._run_id, point.key)
            self._stored_steps[point.key] = {stored.step for stored in history}
        steps = self._stored_steps[point.key]
        return any(steps) if result else bool(point.step) and point.step in steps


def usable_name(name: str) -> str:
    """Replace characters that MLflow refuses in names, shorten long names, and defuse relative paths.

    A changed name gets six digits of the old one's hash, so that no two become the same.
    """
    cleaned = re.sub(r"[^/\w.\- :]", "_", name)
    if posixpath.normpath(cleaned) != cleaned or cleaned.startswith(("/", "..")) or cleaned in {"", "."}:
        cleaned = cleaned.replace("/", "_").lstrip(".") or "_"
    if len(cleaned) > MAX_ENTITY_KEY_LENGTH:
        cleaned = cleaned[:LONG_NAME]
    if cleaned == name:
        return name
    return f"{cleaned}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _batches(items: list[T], most: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Split into lists of at most `most` items and about `BATCH_BYTES`."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and (len(batch) >= most or total + size(item) > BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def _now() -> str:
    """Return the time as heartbeats write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def log_model(
    client: MlflowClient, run: StoredRun, folder: Path, sha256: str, results: Iterable[Metric]
) -> LoggedModel:
    """Log a verified ONNX file as the run's model `model`, byte for byte, with signature and input example.

    `folder` holds model.onnx, whose hash is `sha256`, and the files beside it; `results` are shown with the model.
    A model that is logged already stays; one whose upload was interrupted is replaced. MLflow's own `Model.log`
    would add another each time, and request every metric's history.

    Raises:
        LocalArtifactsError: a server gave a path of this machine.
    """
    store.artifacts(client.tracking_uri, run.info.artifact_uri)  # before a model is created there
    model = _logged_model(client, run, sha256) or _upload_model(client, run, folder, sha256)
    linked = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    if model.model_id not in linked:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    of_model = {"model_id": model.model_id, "run_id": run.info.run_id}
    client.log_batch(run.info.run_id, metrics=[Metric(**(dict(result) | of_model)) for result in results])
    return model


def _logged_model(client: MlflowClient, run: StoredRun, sha256: str) -> LoggedModel | None:
    """Find a model that was logged before; remove those whose upload was interrupted."""
    logged = None
    query = f"source_run_id = '{run.info.run_id}'"
    for model in client.search_logged_models([run.info.experiment_id], filter_string=query):
        if model.status != LoggedModelStatus.READY:
            client.delete_logged_model(model.model_id)
        elif model.tags.get(contract.ONNX_SHA256) == sha256:
            logged = model
    return logged


def _upload_model(client: MlflowClient, run: StoredRun, source: Path, sha256: str) -> LoggedModel:
    """Make MLflow's model folder around the files and upload it."""
    graph = onnx.load(source / contract.VERIFIED)
    model = client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run.info.run_id,
        tags={contract.ONNX_SHA256: sha256},
        params=dict(run.data.params),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        description = Model(
            artifact_path=model.artifact_location,
            run_id=run.info.run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        )
        mlflow.onnx.save_model(
            graph,
            str(folder),
            mlflow_model=description,
            onnx_execution_providers=["CPUExecutionProvider"],
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [EXAMPLE]}),
            pip_requirements=["mlflow", "onnx", "onnxruntime", "numpy", "pandas", "pillow"],
            save_as_external_data=False,
        )
        _load_with_decoder(description, folder)
        # The verified bytes, whatever MLflow's writing of the graph changed.
        for path in sorted(source.iterdir()):
            files.copy(path, folder / path.name)
        store.artifacts(client.tracking_uri, model.artifact_location).log_artifacts(str(folder))
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _load_with_decoder(description: Model, folder: Path) -> None:
    """Make the pyfunc of a saved model take image files: bring serving/pyfunc.py and what it imports.

    MLflow's own loader of ONNX models would take arrays only, decoded by whoever calls it.
    """
    environment = description.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.ENV]
    package = Path(convoy.__file__).parent
    for name in PYFUNC_CODE:
        copy = folder / "code" / package.name / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        files.copy(package / name, copy)
    mlflow.pyfunc.add_to_model(
        description,
        loader_module=f"{package.name}.{PYFUNC.removesuffix('.py').replace('/', '.')}",
        data=contract.VERIFIED,
        code="code",
        conda_env=environment.get("conda"),
        python_env=environment.get("virtualenv"),
    )
    description.save(folder / "MLmodel")
