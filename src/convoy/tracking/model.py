"""Log a proven ONNX file as a run's model in MLflow."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema, TensorSpec

from convoy.core import contract

EXAMPLE_U8 = np.zeros((2, 4, 6, 3), np.uint8)
"""Input example of the logged model, `(N, H, W, 3)`: two images that are not square, since any size serves."""

ANY = -1
"""How MLflow's tensor schemas write a length that may vary."""

SHA256 = "convoy.onnx_sha256"


def log(client: MlflowClient, run: Run, folder: Path, sha256: str, results: Iterable[Metric]) -> LoggedModel:
    """Log a file as the run's model `model`, byte for byte, with signature and input example.

    One that is there already stays; one whose upload was broken off is replaced. MLflow's own
    `Model.log` would add another each time, and ask for every metric's history.

    Args:
        client: of the store.
        run: that the model comes from.
        folder: holds model.onnx, and what is kept beside it.
        sha256: of model.onnx.
        results: metrics of the run that are shown with the model.
    """
    model = _there(client, run, sha256) or _upload(client, run, folder, sha256)
    named = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    if model.model_id not in named:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    without_credentials = [
        Metric(one.key, one.value, one.timestamp, one.step, model_id=model.model_id, run_id=run.info.run_id)
        for one in results
    ]
    client.log_batch(run.info.run_id, metrics=without_credentials)
    return model


def _there(client: MlflowClient, run: Run, sha256: str) -> LoggedModel | None:
    """Find the model if it was logged before; remove what was broken off."""
    found = None
    mine = f"source_run_id = '{run.info.run_id}'"
    for model in client.search_logged_models([run.info.experiment_id], filter_string=mine):
        if model.status != LoggedModelStatus.READY:
            client.delete_logged_model(model.model_id)
        elif model.tags.get(SHA256) == sha256:
            found = model
    return found


def _upload(client: MlflowClient, run: Run, source: Path, sha256: str) -> LoggedModel:
    """Make MLflow's folder around the files and upload it."""
    graph = onnx.load(source / contract.VERIFIED)
    [image] = graph.graph.input
    answers: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (ANY, output.type.tensor_type.shape.dim[1].dim_value), output.name)
        for output in graph.graph.output
    ]
    model = client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run.info.run_id,
        tags={SHA256: sha256},
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
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.uint8), (ANY, ANY, ANY, 3), image.name)]), Schema(answers)
            ),
            input_example={image.name: EXAMPLE_U8},
            pip_requirements=["mlflow", "onnx", "onnxruntime", "numpy"],
            save_as_external_data=False,
        )
        # The proven bytes, whatever MLflow's writing of the graph made of them.
        for path in sorted(source.iterdir()):
            shutil.copyfile(path, folder / path.name)
        client.log_model_artifacts(model.model_id, str(folder))
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
