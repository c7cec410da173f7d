"""A dataset and a model of a few kilobytes, written by hand so that every figure can be checked by eye."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams
from convoy.models import trained
from convoy.models.spec import Spec
from squares import write_packed

PX = 8
CLASSES = ["<b>dark</b>", "light & grey"]
SPLITS = {"train": [0, 8], "val": [8, 12], "test": [12, 52]}
BRIGHTNESS = [5, 250]


@pytest.fixture(scope="session")
def measured_things(tmp_path_factory):
    """`dataset/`, and `model/` which predicts `light` for images above mid-gray: 4 of 40 labels are wrong."""
    folder = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    labels = np.arange(52) % 2
    images_u8 = np.empty((52, PX, PX, 3), np.uint8)
    for n, label in enumerate(labels):
        images_u8[n] = np.clip(BRIGHTNESS[label] + rng.integers(-5, 6, (PX, PX, 3)), 0, 255)
    labels[[12, 13, 15, 17]] = [1, 0, 0, 0]
    write_packed(folder / "dataset", images_u8, labels, SPLITS, CLASSES)
    rows = [-1, *reversed(range(52))]
    paths = ["broken.png", *(f"class/{row:02}.png" for row in rows[1:])]
    hashes = [f"{row:064x}" if row >= 0 else "f" * 64 for row in rows]
    manifest = pa.table({"path": paths, "sha256": hashes, "row": rows})
    pq.write_table(manifest, folder / "dataset/manifest.parquet")
    spec = Spec.model_validate({"name": "brightness", "layers": ["flatten", {"dense": "classes"}]})
    kept = {"classes": CLASSES, "image_px": PX, "fit": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
    model_facts = trained.ModelFacts(network="brightness", spec=spec, **kept)
    model = trained.make(model_facts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.network.dense1.weight[1] = 0.02
    trained.save(folder / "model", model, model_facts)
    return folder


@pytest.fixture(scope="session")
def evaluated(measured_things, tmp_path_factory):
    """The folder that `evaluate` wrote, and the metrics that it returned. Read only."""
    out = tmp_path_factory.mktemp("evaluated")
    params = EvaluateParams(batch_size=16, worst_images=3, feature_classes=2)
    return out, evaluate(measured_things / "dataset", measured_things / "model", params, out)
