import pytest

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.models import spec
from convoy.models.build import assemble
from convoy.models.shapes import smallest_px
from network_specs import SHIPPED

LAYERS = "layers: [flatten, {dense: classes}]\n"


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_shipped_network_is_rebuilt_by_its_plain_data(name):
    shipped = spec.load(name, SHIPPED)
    plain = yaml.load(yaml.dump(shipped.model_dump(mode="json")))
    rebuilt = spec.Spec.model_validate(plain)
    assert rebuilt.model_dump() == shipped.model_dump()
    px = smallest_px(shipped.layers, 10, 32) or 32
    states = [assemble(network, 10, px, auxiliary=True).state_dict() for network in (shipped, rebuilt)]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    assert list(shapes[0].items()) == list(shapes[1].items())
    assert shapes[0]


def test_the_plain_data_hold_what_decides_the_network_and_no_more(load):
    mine = load(LAYERS + "init: kaiming\ntwin: vgg11\nmade_for: {image_px: 8, classes: 2}\n")
    assert mine.model_dump(mode="json") == {
        "name": "mine",
        "layers": [{"flatten": {}}, {"dense": {"units": "classes", "bias": True}}],
        "init": "kaiming",
        "twin": "vgg11",
    }
    assert (mine.made_for.image_px, mine.made_for.classes) == (8, 2)


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(RequestError) as caught:
        spec.load("lenet", SHIPPED)
    assert "`lenet`" in str(caught.value)
    assert "did you mean `lenet5`?" in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_network_without_a_near_match_is_refused_with_all_names(load):
    load(LAYERS)
    with pytest.raises(
        RequestError, match=r"no network `xyz` in networks/; there are: mine\. Set network\.name"
    ):
        spec.load("xyz")


def test_an_empty_folder_is_named_as_the_cause(tmp_path):
    with pytest.raises(
        RequestError, match=r"no network `xyz` in .*/; the folder has none\. Set network\.name"
    ):
        spec.load("xyz", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer: [relu]\n", ":1: unknown key `layer`; did you mean `layers`?"),
        (LAYERS + "extras: 3\n", ":2: unknown key `extras`; there are: blocks, init, layers, made_for, torchvision, twin"),
        ("init: torch\n", " must have either `layers:` or `torchvision: NAME`."),
        ("torchvision: resnet18\n" + LAYERS, ":2: `layers` cannot be combined with `torchvision:`, which names a whole network. Keep either `layers:` or `torchvision: NAME`."),
        ("torchvision: resnet18\ntwin: resnet18\n", ":2: `twin` cannot be combined with `torchvision:`, which names a whole network. Keep either `layers:` or `torchvision: NAME`."),
        ("torchvision: resnet_18\n", ":1: torchvision has no classifier `resnet_18`; did you mean `resnet18`?"),
        (LAYERS + "init: xavier\n", ":2: `init` is 'xavier', but should be 'torch' or 'kaiming'"),
        (LAYERS + "twin: 5\n", ":2: `twin` is 5, but should be a valid string"),
        (LAYERS + "made_for: {image_px: 3}\n", ":2: `made_for.classes` is missing"),
        (LAYERS + "made_for:\n  image_px: 0\n  classes: 2\n", ":3: `made_for.image_px` is 0, but should be greater than or equal to 1"),
        (LAYERS + "made_for:\n  image_px: 8\n  classes: 2\n  clases: 2\n", ":5: unknown key `made_for.clases`; did you mean `classes`?"),
        (LAYERS + "init: 3\ntwin: 5\n", ":2: `init` is 3, but should be 'torch' or 'kaiming'\nnetworks/mine.yaml:3: `twin` is 5, but should be a valid string"),
    ],
)  # fmt: skip
def test_an_invalid_key_is_refused_at_its_line(refusal, text, message):
    assert refusal(text) == f"networks/mine.yaml{message}"


def test_a_torchvision_model_that_is_not_a_classifier_is_refused(refusal):
    assert "no classifier `fcn_resnet50`" in refusal("torchvision: fcn_resnet50\n")


def test_a_classifier_of_torchvision_is_one_line(load):
    assert load("torchvision: mobilenet_v2\n").model_dump(mode="json") == {
        "name": "mine",
        "torchvision": "mobilenet_v2",
        "init": "torch",
    }
