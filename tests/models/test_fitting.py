from pathlib import Path

import pytest

from convoy.core.errors import NetworkError
from convoy.data.settings import DataParams
from convoy.models import spec
from convoy.models.fitting import LARGEST_PX, placed, smallest
from convoy.models.spec import Spec

SHIPPED = Path(__file__).parents[2] / "networks"
HEAD = ("flatten", {"dense": "classes"})
SMALLEST = {
    "alexnet": 63,
    "alexnet_2012": 63,
    "convnet": 8,
    "googlenet": 15,
    "inception_v3": 299,
    "lenet5": 16,
    "resnet18": 1,
    "resnet50": 1,
    "vgg11": 32,
    "vgg13": 32,
    "vgg16": 32,
    "vgg19": 32,
}


def network(*layers: object) -> Spec:
    return Spec.model_validate({"name": "mine", "layers": list(layers)})


def refused(chosen: Spec, px: int, classes: int = 10) -> str:
    with pytest.raises(NetworkError) as caught:
        placed(chosen, classes, px)
    return str(caught.value)


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_the_smallest_side_of_a_shipped_network_works_and_none_below_it(name):
    chosen = spec.load(name, SHIPPED)

    assert smallest(chosen.layers, 10, 1) == SMALLEST[name]
    assert placed(chosen, 10, SMALLEST[name])[-1].leaves == (10,)
    for px in range(max(1, SMALLEST[name] - 3), SMALLEST[name]):
        said = refused(chosen, px)
        assert f"{name} does not take images of {px} px: " in said
        assert f"The smallest that works is {SMALLEST[name]}: set data.image_px to it" in said


@pytest.mark.parametrize(
    ("name", "px", "line", "said"),
    [
        ("lenet5", 8, 9, "layer 4 (conv) cannot take the volume 2×2×6 (a window of 5 pixels does not fit into 2)"),
        ("lenet5", 15, 11, "layer 6 (max_pool) cannot take the volume 1×1×16 (a window of 2 pixels does not fit into 1)"),
        ("alexnet", 62, 19, "layer 13 (max_pool) cannot take the volume 2×2×256 (a window of 3 pixels does not fit into 2)"),
        ("vgg11", 31, 26, "layer 13 (max_pool) cannot take the volume 1×1×512 (a window of 2 pixels does not fit into 1)"),
    ],
)  # fmt: skip
def test_images_too_small_are_refused_with_place_volume_and_the_smallest_side(name, px, line, said):
    message = refused(spec.load(name, SHIPPED), px)

    assert message == (
        f"{name} does not take images of {px} px: {SHIPPED}/{name}.yaml:{line}, {said}. The smallest that works is "
        f"{SMALLEST[name]}: set data.image_px to it, or choose another network.name."
    )


def test_images_that_only_an_auxiliary_head_cannot_take_are_refused_with_both_sides():
    message = refused(spec.load("inception_v3", SHIPPED), 96)

    assert "layer 16 (auxiliary), layer 1 (avg_pool) cannot take the volume 4×4×768" in message
    assert message.endswith(
        "The smallest that works is 299: set data.image_px to it, or choose another network.name. "
        "Without its auxiliary heads 96 would do: take them out of a copy of the spec."
    )


def test_images_too_small_even_without_auxiliary_heads_are_refused_with_the_side_that_would_do():
    assert "Without its auxiliary heads 75 would do" in refused(spec.load("inception_v3", SHIPPED), 20)


def test_a_layer_that_fits_at_no_size_says_so():
    giant = network({"conv": {"filters": 1, "kernel": LARGEST_PX + 1}}, *HEAD)

    assert refused(giant, 1000) == (
        "mine does not take images of 1000 px: layer 1 (conv) cannot take the volume 1000×1000×3 (a window of 1025 "
        "pixels does not fit into 1000). No side up to 1024 works: correct the layer, or choose another network.name."
    )


def uneven(*rest):
    halves = [[{"max_pool": 2}], [{"conv": {"filters": 1, "kernel": 1, "stride": 2, "padding": "same"}}]]
    return network({"branches": halves}, {"conv": {"filters": 1, "kernel": 2}}, *rest)


def test_a_side_at_which_branches_differ_is_not_taken_for_one_that_works():
    assert "The smallest that works is 4:" in refused(uneven(*HEAD), 2)
    assert "heights and widths differ: branch1 2×2×3, branch2 3×3×1" in refused(uneven(*HEAD), 5)


def test_layers_that_fit_each_other_at_no_size_are_refused_for_that_and_not_for_the_size():
    never = network({"max_pool": 4}, {"dense": "classes"})

    assert refused(never, 2) == (
        "layer 2 (dense) needs a flat row, but the volume 1×1×3 arrives. Put `- flatten` before it."
    )


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["flatten", {"dense": 5}], "mine ends in a row of 5, not in one number for each of the 4 classes"),
        (["relu"], "mine ends in 8×8×3, not in one number for each of the 4 classes"),
    ],
)
def test_a_network_that_does_not_end_in_classes_is_refused_with_the_remedy(layers, said):
    assert refused(network(*layers), 8, classes=4) == (
        f"{said}. Let its last layers be `- flatten` and `- dense: classes`."
    )


def test_the_search_for_a_side_ends_where_params_yaml_does():
    [limit] = [one.le for one in DataParams.model_fields["image_px"].metadata if hasattr(one, "le")]

    assert limit == LARGEST_PX
