"""Networks of timm's with random weights are exported for any number of images, and give what torch gives."""

import numpy as np
import onnxruntime
import pytest
import torch

import exported
from convoy.export import onnx_graph
from convoy.models import trained
from convoy.models.spec import Spec

PX = 64
QUICK = "mobilenetv4_conv_small"
NAMES = [QUICK, "convnextv2_atto", "edgenext_xx_small", "efficientnet_b0", "fastvit_t8", "ghostnet_100",
         "regnety_002", "resnet18d", "tf_efficientnetv2_b0"]  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in NAMES]
)
def test_a_network_of_timm_is_exported_for_any_number_of_images(name, tmp_path):
    torch.manual_seed(0)
    spec = Spec(name="mine", timm=name)
    usual = {"mean": [0.5] * 3, "std": [0.2] * 3, "image_px": PX, "fit": "squash"}
    facts = trained.ModelFacts(network="mine", spec=spec, classes=list("abcde"), **usual)
    model = trained.make(facts)
    with torch.no_grad():
        for _ in range(2):  # statistics of norms
            model.train()(torch.rand(4, 3, PX, PX) * 255)
    trained.save(tmp_path / "model", model, facts)
    onnx_graph.build(tmp_path / "model", tmp_path, exported.IDENTITY)
    session = onnxruntime.InferenceSession(tmp_path / "model.unverified.onnx")
    for images in (1, 3):
        images_u8 = np.random.default_rng(images).integers(0, 256, (images, PX, PX, 3), dtype=np.uint8)
        probabilities, logits = session.run(["probabilities", "logits"], {"image": images_u8})
        with torch.inference_mode():
            expected = model.eval()(torch.from_numpy(images_u8).permute(0, 3, 1, 2).float())
        assert expected.std() > 1e-3
        np.testing.assert_allclose(probabilities, expected.softmax(dim=1).numpy(), atol=1e-4)
        assert (logits.argmax(axis=1) == expected.argmax(dim=1).numpy()).all()
