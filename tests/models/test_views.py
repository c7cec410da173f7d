import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from convoy.models import trained, views
from convoy.models.trained import ModelFacts
from network_specs import HEAD, network

LAYERS = [{"conv": {"filters": 4, "kernel": 3}}, "norm", "relu", *HEAD]
SAME = {"image_px": 8, "fit": "squash", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
FACTS = ModelFacts(network="mine", spec=network(*LAYERS), classes=["cat", "dog"], **SAME)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return trained.make(FACTS).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(1)).float()


def with_views(model, tta, temperature=1.0):
    changed = trained.make(FACTS.model_copy(update={"tta": tta, "temperature": temperature})).eval()
    changed.network.load_state_dict(model.network.state_dict())
    return changed


def mirrored(model, pixels):
    return 0.5 * model(pixels) + 0.5 * model(pixels.flip(-1))


def test_flip_is_the_mean_with_the_mirror_image(model, pixels):
    torch.testing.assert_close(with_views(model, "flip")(pixels), mirrored(model, pixels))


def test_views_are_the_six_of_the_script_that_holds_the_record(model, pixels):
    framed = pad(pixels, (1, 1, 1, 1), "reflect")
    moved = [framed[:, :, :8, :8], framed[:, :, 2:10, 2:10]]
    expected = 0.5 * mirrored(model, pixels) + 0.25 * sum(mirrored(model, each) for each in moved)
    assert not torch.allclose(expected, model(pixels), atol=1e-3)
    torch.testing.assert_close(with_views(model, "views")(pixels), expected)
    torch.testing.assert_close(with_views(model, "views", 2.0)(pixels), expected / 2)


def test_training_mode_sees_the_image_alone(model, pixels):
    changed = with_views(model, "views").train()
    torch.testing.assert_close(changed(pixels), with_views(model, "none").train()(pixels))


@pytest.mark.parametrize("tta", views.WEIGHTS)
def test_weights_of_views_sum_to_1_and_the_image_itself_is_first(pixels, tta):
    assert sum(views.WEIGHTS[tta]) == 1
    if tta != "none":
        assert len(views.of(pixels, tta)) == 5 * len(views.WEIGHTS[tta])
        assert torch.equal(views.of(pixels, tta)[:5], pixels)


def test_a_batch_holds_no_more_images_with_views_than_without(model):
    changed, sizes = with_views(model, "views"), []
    changed.network.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    images_u8 = np.zeros((10, 8, 8, 3), np.uint8)
    assert trained.predict_logits(changed, images_u8, 24).shape == (10, 2)
    assert max(sizes) == 24
    trained.predict_logits(changed, images_u8[:1], 2)
    assert sizes[-1] == 6
