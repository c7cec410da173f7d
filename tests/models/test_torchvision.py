import pytest
import torch
from torch import nn
from torchvision import models

from convoy.core.errors import NetworkError, RequestError
from convoy.models import torchvision
from convoy.models.trained import NormalizedModel


def first_input(network, images):
    """Catch what reaches the first convolution: deep networks give nearly equal logits for any image."""
    caught = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        network.eval()(images)
    return caught[0]


def test_the_input_transform_of_torchvisions_weights_is_in_their_mean_and_std():
    theirs = models.googlenet(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    published = torchvision.pretrained("googlenet")
    preset = models.get_model_weights("googlenet").DEFAULT.transforms()
    pixels, network = torch.randint(0, 256, (2, 3, 48, 48)).float(), nn.Conv2d(3, 1, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preset.mean, preset.std))
    expected = first_input(theirs, (pixels / 255 - mean) / std)
    with_published = first_input(NormalizedModel(network, published.mean, published.std), pixels)
    assert torch.allclose(with_published, expected, atol=1e-6)
    plain = first_input(NormalizedModel(network, preset.mean, preset.std), pixels)
    assert (plain - expected).abs().max() > 0.1


def test_published_weights_have_url_hash_mean_and_classes():
    published = torchvision.pretrained("resnet18")
    assert published.url.endswith(f"/resnet18-{published.sha256}.pth")
    assert published.mean == [0.485, 0.456, 0.406]
    assert torchvision.pretrained("inception_v3").mean == [0.5] * 3
    assert len(published.classes) == 1000
    older = torchvision.pretrained("resnet50", "ResNet50_Weights.IMAGENET1K_V1")
    assert older.url != torchvision.pretrained("resnet50").url


@pytest.mark.parametrize(
    ("name", "label", "error", "message"),
    [
        ("resnet18", "ResNet18_Weights.V9", NetworkError, r"`ResNet18_Weights\.V9` for resnet18; did you mean `ResNet18_Weights\.IMAGENET1K_V1`\?.*convoy weights use imagenet"),
        ("resnet19", None, RequestError, r"`twin:` in the spec.*: torchvision has no classifier `resnet19`; did you mean `resnet18`\?"),
    ],
)  # fmt: skip
def test_unknown_published_weights_are_refused_with_the_nearest(name, label, error, message):
    with pytest.raises(error, match=message):
        torchvision.pretrained(name, label)
