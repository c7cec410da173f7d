"""A delivery of a few small images taken through the real pipeline to a verified model, once."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convoy
from clones import REPOSITORY
from convoy.core import params
from convoy.core.dataset import Dataset
from convoy.data.prepare import prepare
from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams
from convoy.export import latency, onnx_graph
from convoy.export.settings import ExportParams
from convoy.models import trained
from deliveries import data_params
from network_specs import HEAD, network

IDENTITY = {"run_id": "run-7", "git_commit": "c0ffee", "data_hash": "d" * 64, "params_hash": "e" * 64}
LIMITS = params.section("export", ExportParams, REPOSITORY / "params.yaml").model_copy(
    update={"latency_runs": 10}
)
"""The shipped section, but timed briefly."""
LAYERS = [{"conv": {"filters": 6, "kernel": 3}}, "norm", "relu", {"max_pool": 2}, *HEAD]
PX = 12

VERIFY = """
import json, sys
from pathlib import Path
from convoy.export.verify import verify
from convoy.export.settings import ExportParams
home, limits = Path(sys.argv[1]), ExportParams.model_validate_json(sys.argv[2])
metrics = verify(home / "deploy", home / "data", home / "dataset", home / "evaluation", limits)
print(json.dumps({"metrics": metrics, "torch": "torch" in sys.modules}))
"""


@dataclass(frozen=True)
class Project:
    """Hold the folders of a pipeline run: data, dataset, model, evaluation, deploy."""

    home: Path

    @property
    def unverified(self):
        return self.home / "deploy" / "model.unverified.onnx"

    @property
    def model(self):
        return self.home / "deploy" / "model.onnx"

    def copy(self, home):
        shutil.copytree(self.home, home)
        return Project(home)

    def export(self, classes, fit="squash", spec=None, **changes):
        """Deliver, prepare, make a network with fresh weights, evaluate and export; `changes` are of the section `data`.

        Norms of a given `spec` take their statistics from the training images, and its head is scaled, so that a deep network's
        answers differ between images.
        """
        for name, images_u8 in classes.items():
            (self.home / "data" / name).mkdir(parents=True)
            for n, image_u8 in enumerate(images_u8):
                Image.fromarray(image_u8).save(self.home / "data" / name / f"{n:03}.png")
        usual = {"image_px": PX, "fit": fit, "splits": {"val": 0.2, "test": 0.4}, "max_quarantined": 0.0}
        prepare(self.home / "data", data_params(**usual | changes), self.home / "dataset")
        dataset = Dataset.load(self.home / "dataset")
        facts = trained.ModelFacts(
            network="miniature",
            spec=spec or network(*LAYERS, name="miniature"),
            classes=list(dataset.classes),
            image_px=dataset.image_px,
            fit=fit,
            crop_share=dataset.crop_share,
            background=dataset.background,
            mean=list(dataset.mean),
            std=list(dataset.std),
            temperature=1.5,
        )
        torch.manual_seed(3)
        model = trained.make(facts)
        if spec:
            pixels = torch.from_numpy(dataset.images("train")[:].copy()).permute(0, 3, 1, 2).float()
            *_, head = (module for module in model.network.modules() if isinstance(module, torch.nn.Linear))
            for module in model.network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0
            with torch.no_grad():
                model.train()(pixels)
                head.weight /= model.eval()(pixels).std(dim=0).mean()
        trained.save(self.home / "model", model, facts)
        shown = EvaluateParams(batch_size=16, worst_images=2, feature_classes=1)
        evaluate(self.home / "dataset", self.home / "model", shown, self.home / "evaluation")
        onnx_graph.build(self.home / "model", self.home / "deploy", IDENTITY)
        latency.measure_eager(self.home / "model", self.home / "deploy", 10)
        return self

    @staticmethod
    def noisy(seed, images):
        """Make images of several odd sizes, two of three of the same size."""
        rng = np.random.default_rng(seed)
        sizes = [(12, 12) if n % 3 else tuple(rng.integers(5, 40, 2).tolist()) for n in range(images)]
        return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

    def verify(self, **changes):
        """Verify in a process of its own, as the pipeline does: this one has imported torch; `changes` are of the section `export`."""
        limits = ExportParams.model_validate(LIMITS.model_dump() | changes)
        done = subprocess.run(
            [sys.executable, "-c", VERIFY, str(self.home), limits.model_dump_json()],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(convoy.__file__).parents[1])},
        )
        return json.loads(done.stdout.splitlines()[-1])


THREE_CLASSES = {"Bär": 40, "cat|dog": 30, "x": 30}


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Everything up to the unverified graph. Read only: tests that change something copy it."""
    classes = {name: Project.noisy(n, images) for n, (name, images) in enumerate(THREE_CLASSES.items())}
    return Project(tmp_path_factory.mktemp("built")).export(classes)


@pytest.fixture(scope="session")
def verified(built, tmp_path_factory):
    """A verified copy, with its metrics and whether its process imported torch. Read only."""
    project = built.copy(tmp_path_factory.mktemp("verified") / "project")
    return project, project.verify()


@pytest.fixture
def project(built, tmp_path):
    """A copy of everything up to the unverified graph, to be changed."""
    return built.copy(tmp_path / "project")


@pytest.fixture
def empty(tmp_path):
    """A project to which nothing was delivered yet."""
    return Project(tmp_path / "empty")
