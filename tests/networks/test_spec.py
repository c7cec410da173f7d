import re
from pathlib import Path

import pytest
import yaml

from convoy.errors import RequestError
from convoy.networks import spec

SHIPPED = Path(__file__).parents[2] / "networks"


def write(folder: Path, name: str, content: object) -> Path:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def refusal(folder: Path, *layers: object) -> str:
    with pytest.raises(RequestError) as caught:
        spec.load("mine", write(folder, "mine", {"layers": list(layers)}))
    return str(caught.value)


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_shipped_network_is_rebuilt_by_its_plain_data(name):
    shipped = spec.load(name, SHIPPED)

    plain = yaml.safe_load(yaml.safe_dump(shipped.model_dump(mode="json")))

    assert spec.Spec.model_validate(plain) == shipped


def test_an_argument_that_stands_alone_is_the_first(tmp_path):
    short = [{"max_pool": 2}, "flatten", {"dense": "classes"}]
    named = [{"max_pool": {"kernel": 2}}, {"flatten": {}}, {"dense": {"units": "classes"}}]

    assert spec.parse_layers(short, "") == spec.parse_layers(named, "")


def test_an_unknown_network_is_refused_with_the_nearest_one():
    with pytest.raises(RequestError, match=r"no network `lenet` in .*did you mean `lenet5`\?.*network\.name"):
        spec.load("lenet", SHIPPED)


def test_an_unknown_layer_is_refused_with_its_place_and_the_nearest_word(tmp_path):
    message = refusal(tmp_path, "relu", {"maxpool": 2})

    assert message == f"{tmp_path / 'mine.yaml'}, layer 2: unknown layer `maxpool`; did you mean `max_pool`?"


def test_an_unknown_argument_is_refused_with_the_nearest_one(tmp_path):
    message = refusal(tmp_path, {"conv": {"filter": 3, "kernel": 3}})

    assert message.endswith("layer 1 (conv): unknown argument `filter`; did you mean `filters`?")


def test_an_argument_named_like_the_internal_word_is_unknown_too(tmp_path):
    assert "unknown argument `word`" in refusal(tmp_path, {"dense": {"units": 3, "word": "conv"}})


def test_a_missing_argument_is_named(tmp_path):
    assert refusal(tmp_path, {"conv": 6}).endswith("layer 1 (conv): `kernel` is missing")


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"conv": {"filters": 0, "kernel": 3}}, "`filters` is 0, but should be greater than or equal to 1"),
        ({"conv": {"filters": 2, "kernel": "3"}}, "`kernel` is '3', but should be a valid integer"),
        (
            {"conv": {"filters": 2, "kernel": 3, "padding": "sam"}},
            "`padding` is 'sam', but should be a valid integer or should be 'same' or 'valid'",
        ),
        ({"dropout": 1.0}, "`share` is 1.0, but should be less than 1"),
        ({"dense": "clases"}, "or should be 'classes'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_it_may_be(tmp_path, layer, said):
    assert said in refusal(tmp_path, layer)


def test_a_layer_without_arguments_refuses_one(tmp_path):
    assert refusal(tmp_path, {"relu": 2}).endswith(
        "layer 1 (relu) takes no arguments, found 2. Write `- relu`."
    )


def test_two_layers_on_one_line_are_refused(tmp_path):
    assert "layer 1: expected one layer, such as `- relu`" in refusal(tmp_path, {"relu": {}, "flatten": {}})


def test_a_fault_inside_a_residual_is_reported_with_the_way_to_it(tmp_path):
    message = refusal(tmp_path, "relu", {"residual": ["relu", {"convv": 3}]})

    assert message.endswith("layer 2 (residual), body layer 2: unknown layer `convv`; did you mean `conv`?")


@pytest.mark.parametrize("layers", [[], "relu", None])
def test_a_spec_without_a_list_of_layers_is_refused(tmp_path, layers):
    with pytest.raises(RequestError, match="layers: expected a list with one layer per line"):
        spec.load("mine", write(tmp_path, "mine", {"layers": layers}))


def test_a_misspelt_key_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(RequestError, match="unknown key `layer`; did you mean `layers`"):
        spec.load("mine", write(tmp_path, "mine", {"layer": ["relu"]}))


@pytest.mark.parametrize("content", [{"torchvision": "resnet18", "layers": ["relu"]}])
def test_a_spec_that_is_both_layers_and_torchvision_is_refused(tmp_path, content):
    with pytest.raises(RequestError, match=re.escape("either `layers:` or `torchvision: NAME`")):
        spec.load("mine", write(tmp_path, "mine", content))


def test_a_name_that_torchvision_does_not_have_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(RequestError, match="no classifier `resnet_18`; did you mean `resnet18`"):
        spec.load("mine", write(tmp_path, "mine", {"torchvision": "resnet_18"}))


def test_a_torchvision_model_that_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no classifier `fcn_resnet50`"):
        spec.load("mine", write(tmp_path, "mine", {"torchvision": "fcn_resnet50"}))
