"""With a GPU, the same params train there, and the exported model is verified on the CPU."""

import json
import sys

import pytest
import torch

from clones import clone_working_tree

pytestmark = [pytest.mark.pipeline, pytest.mark.gpu]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_the_pipeline_trains_on_cuda_and_is_verified_on_the_cpu(tmp_path):
    clone = clone_working_tree(tmp_path / "clone")
    said = clone.run("make", "repro", f"VENV={sys.prefix}")
    assert torch.cuda.get_device_name() in said
    deploy = json.loads((clone.folder / "build/metrics/export.json").read_text())["deploy"]
    test = json.loads((clone.folder / "build/metrics/evaluate.json").read_text())["test"]
    assert deploy["label_flips"] == 0
    assert deploy["accuracy"] == test["accuracy"] > 0.95
