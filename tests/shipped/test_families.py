"""Every shipped network goes from files to a verified ONNX model, as a miniature of itself."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest

import convoy
from convoy.core import params
from convoy.core.dataset import Dataset
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams
from convoy.export import latency, onnx_graph
from convoy.models import spec
from convoy.models.shapes import smallest_px
from convoy.training.fit import fit
from convoy.training.settings import TrainParams
from small_networks import miniature

ROOT = Path(__file__).parents[2]
CLASSES, EACH = ("0", "1", "7"), 24
SIBLINGS = {"airbench_half", "vgg11", "vgg13", "vgg19", "resnet18"}
"""Networks that differ from a shipped one in the number of layers alone."""
IDENTITY = {"run_id": "run-7", "git_commit": "c0ffee", "data_hash": "d" * 64, "params_hash": "e" * 64}
VERIFY = """
import json, sys
from pathlib import Path
from convoy.core import params
from convoy.export.verify import verify
from convoy.export.settings import ExportParams
home = Path(sys.argv[1])
limits = params.section("export", ExportParams).model_copy(update={"latency_runs": 10})
print(json.dumps(verify(home / "deploy", home / "data", home / "dataset", home / "evaluation", limits)["deploy"]))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class with a few of the shipped digits."""
    folder = tmp_path_factory.mktemp("delivery") / "data"
    with zipfile.ZipFile(ROOT / "samples/digits/digits.zip") as archive:
        for name in CLASSES:
            images = sorted(one for one in archive.namelist() if one.startswith(f"{name}/"))
            for image in images[:EACH]:
                archive.extract(image, folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SIBLINGS else ())
        for name in spec.names(ROOT / "networks")
    ],
)
def test_a_miniature_of_every_shipped_network_becomes_a_verified_model(name, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    network = miniature(spec.load(name))
    px = smallest_px(network.layers, len(CLASSES), 32)
    data = params.section("data", DataParams).model_copy(update={"image_px": px})
    train = params.section("train", TrainParams)
    train = train.model_copy(update={"epochs": 1, "batch_size": 8, "precision": 32, "lr": 0.01})
    (tmp_path / "data").symlink_to(digits)

    prepare(tmp_path / "data", data, tmp_path / "dataset")
    dataset = Dataset.load(tmp_path / "dataset")
    fit(dataset, network, train, 1, tmp_path / "model")
    evaluate(
        tmp_path / "dataset",
        tmp_path / "model",
        params.section("evaluate", EvaluateParams),
        tmp_path / "evaluation",
    )
    onnx_graph.build(tmp_path / "model", tmp_path / "deploy", IDENTITY)
    latency.measure_eager(tmp_path / "model", tmp_path / "deploy", 10)
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, str(tmp_path)],
        env={
            "PYTHONPATH": str(Path(convoy.__file__).parents[1]),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["label_flips"] == 0
    assert found["max_probability_gap"] < 1e-4
    constants = {constant.name for constant in onnx.load(tmp_path / "deploy/model.onnx").graph.initializer}
    assert not [constant for constant in constants if "auxiliary" in constant]
