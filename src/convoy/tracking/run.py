"""Write to one MLflow run. A store that fails is reported once and stops nothing."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types import ColSpec, Schema, TensorSpec

from convoy import files, params
from convoy.console import say
from convoy.tracking import store

SYSTEM_SECONDS = 2.0
"""Interval of system metrics: a short training should still show a line, not a dot."""

EXAMPLE_U8 = np.zeros((2, 4, 6, 3), np.uint8)
"""Input example of the logged model, `(N, H, W, 3)`: two images that are not square, since any size serves."""

ANY = -1
"""How MLflow's tensor schemas write a length that may vary."""


@dataclass(frozen=True)
class Reference:
    """Name a run in Convoy's terms and in MLflow's.

    Attributes:
        run_id: minted by Convoy; stands in the exported model.
        training: `run_id` of the run that trained the weights; another run where a training is reused.
        mlflow_run_id: empty where MLflow gave none.
    """

    run_id: str
    training: str
    mlflow_run_id: str


class Run:
    """Log params, metrics, files and the model of one training."""

    def __init__(self, reference: Reference, stage: str) -> None:
        """Write as `stage` to the run that `reference` names."""
        self.reference = reference
        self.stage = stage
        self._client = store.connect()
        self._reachable = bool(reference.mlflow_run_id)
        self._curves: set[str] = set()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log params by their flat name; those that the run has already are left as they are.

        `mlflow run -P` logs what was typed before this run starts, so `0.020` may stand
        where Convoy has `0.02`: MLflow throws on a changed param, the value used becomes a tag.
        """

        def send(run_id: str) -> None:
            known = self._client.get_run(run_id).data.params
            flat = {key: str(value) for key, value in params.flatten(values).items()}
            fresh = [Param(key, value) for key, value in flat.items() if key not in known]
            changed = {f"param.{key}": value for key, value in flat.items() if known.get(key, value) != value}
            self._client.log_batch(run_id, params=fresh, tags=[RunTag(*item) for item in changed.items()])

        self._send(send)

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics named `where/what`; `step` counts epochs from 1 and makes a curve, 0 means a result."""
        if step:
            self._curves |= set(values)
        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._send(lambda run_id: self._client.log_batch(run_id, metrics=points))

    def log_result(self, nested: Mapping[str, Any]) -> None:
        """Log a stage's metrics file: nested numbers become `where/what`, anything else is left out.

        What this run has a curve of stays as it is: the curve ends with the same number.
        """
        flat = numbers(nested)
        self.log_metrics({name: value for name, value in flat.items() if name not in self._curves})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Attach a file, or what a folder holds, as artifacts."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._send(lambda run_id: log(run_id, str(path), folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._send(
            lambda run_id: self._client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
        )

    def log_dataset(self, digest: str, folder: Path) -> None:
        """Log the packed dataset as the run's input; MLflow keeps 36 characters of a digest."""
        facts = (folder / "dataset.json").read_text(encoding="utf-8")
        dataset = Dataset("dataset", digest[:32], "local", str(folder), schema=None, profile=facts)
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
        self._send(lambda run_id: self._client.log_inputs(run_id, [entry]))

    def log_onnx(self, path: Path) -> None:
        """Log a proven ONNX file as the run's model, byte for byte, with signature and input example."""

        def send(run_id: str) -> None:
            import onnx  # noqa: PLC0415 (only the stage that exports needs it)

            graph = onnx.load(path)
            [image] = graph.graph.input
            answers: list[ColSpec | TensorSpec] = [
                TensorSpec(
                    np.dtype(np.float32), (ANY, output.type.tensor_type.shape.dim[1].dim_value), output.name
                )
                for output in graph.graph.output
            ]
            mlflow.set_tracking_uri(store.uri())
            # Without it the model goes to the experiment `Default`, its file to the current folder.
            mlflow.set_experiment(experiment_id=self._client.get_run(run_id).info.experiment_id)
            info = Model.log(
                artifact_path=None,
                flavor=mlflow.onnx,
                name="model",
                run_id=run_id,
                onnx_model=graph,
                onnx_execution_providers=["CPUExecutionProvider"],
                signature=ModelSignature(
                    Schema([TensorSpec(np.dtype(np.uint8), (ANY, ANY, ANY, 3), image.name)]), Schema(answers)
                ),
                input_example={image.name: EXAMPLE_U8},
                pip_requirements=["mlflow", "onnx", "onnxruntime", "numpy"],
                save_as_external_data=False,
            )
            with tempfile.TemporaryDirectory() as scratch:
                folder = mlflow.artifacts.download_artifacts(info.model_uri, dst_path=scratch)
                logged = files.sha256(Path(folder) / "model.onnx")
            if logged != files.sha256(path):
                raise RuntimeError(f"MLflow rewrote the bytes of {path}")

        self._send(send)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Sample processor, memory, disk, network and GPU while the block runs."""
        if not self._reachable:
            yield
            return
        monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call] # MLflow has no types here
            self.reference.mlflow_run_id, sampling_interval=SYSTEM_SECONDS, tracking_uri=store.uri()
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self._send(lambda run_id: self._client.set_terminated(run_id, status))

    def _send(self, call: Callable[[str], object]) -> None:
        """Talk to the store unless it has failed before; its failure is said once."""
        if not self._reachable:
            return
        try:
            call(self.reference.mlflow_run_id)
        except Exception as error:  # noqa: BLE001 (whatever the store throws, results matter more)
            self._reachable = False
            say(f"Tracking stopped: {store.uri()} answered {error!s:.300}. The {self.stage} stage goes on.")


def write_reference(path: Path, reference: Reference) -> None:
    """Keep a reference for the stages that follow."""
    files.write_json(path, asdict(reference))


def numbers(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten a metrics file to MLflow's `where/what` names, numbers only."""
    flat: dict[str, float] = {}
    for key, item in nested.items():
        if isinstance(item, Mapping):
            flat |= numbers(item, f"{prefix}{key}/")
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            flat[f"{prefix}{key}"] = float(item)
    return flat
