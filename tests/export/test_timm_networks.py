"""Networks of timm's with random weights are exported and pass the verification that `dvc repro` runs."""

import json

import pytest

import exported
from convoy.models.spec import Spec

PX = 64
QUICK = "regnety_002"
NAMES = [QUICK, "mobilenetv4_conv_small", "convnextv2_atto", "edgenext_xx_small", "efficientnet_b0", "fastvit_t8", "ghostnet_100",
         "resnet18d", "tf_efficientnetv2_b0"]  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in NAMES]
)
def test_a_network_of_timm_is_exported_and_verified(name, tmp_path):
    project = exported.Project(tmp_path)
    classes = {label: project.noisy(n, 12) for n, label in enumerate("abc")}
    result = project.export(classes, spec=Spec(name="mine", timm=name), image_px=PX).verify()
    assert project.model.is_file()
    assert not result["torch"]
    deploy = result["metrics"]["deploy"]
    assert deploy["label_flips"] == 0
    assert deploy["max_probability_gap"] <= 1e-4
    verification = json.loads((project.home / "deploy/verification.json").read_text(encoding="utf-8"))
    assert verification["checks"][0]["images"] > 3
    assert verification["negative_control"]["mean_shift"] < 1  # the answers depend on the pixels
