"""The classics at full width, a handful of steps each, through the pipeline to a verified model."""

import shutil
import zipfile

import onnxruntime
import pytest

from clones import artifacts, runs
from convoy.core.files import read_json

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "px"), [("alexnet", 63), ("vgg16", 32), ("googlenet", 32), ("inception_v3", 299)]
)
def test_a_classic_trains_a_few_steps_and_is_verified(clone, tmp_path, name, px):
    with zipfile.ZipFile(clone.folder / "samples/digits/digits.zip") as archive:
        for digit in "01":
            for image in sorted(one for one in archive.namelist() if one.startswith(f"{digit}/"))[:24]:
                archive.extract(image, tmp_path / "few")
    clone.run("convoy", "data", "use", str(tmp_path / "few"), PYTHONPATH=str(clone.folder / "src"))
    settings = {
        "network.name": name,
        "data.image_px": px,
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.lr": 0.001,
        "train.precision": 32,
        "export.latency_runs": 10,
    }

    clone.run(
        "dvc", "exp", "run", *(word for key, value in settings.items() for word in ("-S", f"{key}={value}"))
    )

    verification = read_json(clone.folder / "build/deploy/verification.json")
    metrics = read_json(clone.folder / "build/metrics/export.json")["deploy"]
    served = onnxruntime.InferenceSession(clone.folder / "build/deploy/model.onnx")
    assert verification
    assert metrics["label_flips"] == 0
    assert [output.shape[-1] for output in served.get_outputs()] == [2, 2]
    assert "network.png" in artifacts(clone, runs(clone)[0])
    shutil.rmtree(tmp_path)  # gigabytes for VGG16
