import json
import os

import pytest
import torch
from torch import nn

from convoy.core.errors import NetworkError
from convoy.models import trained
from convoy.models.trained import ModelFacts, NormalizedModel, full_float32
from network_specs import HEAD, network

LAYERS = [{"conv": {"filters": 4, "kernel": 3}}, "norm", "relu", "global_avg_pool", *HEAD]
FACTS = ModelFacts(
    network="mine",
    spec=network(*LAYERS),
    classes=["cat", "dog"],
    image_px=8,
    fit="squash",
    mean=[0.5, 0.4, 0.3],
    std=[0.2, 0.2, 0.1],
)


def test_a_loaded_model_gives_the_logits_of_the_saved_one(tmp_path):
    model = trained.make(FACTS).to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (5, 3, 8, 8)).float()
    model(pixels)  # moves the running statistics of the norm
    trained.save(tmp_path, model, FACTS)
    loaded, facts = trained.load(tmp_path)
    assert facts == FACTS
    assert json.loads((tmp_path / trained.FACTS).read_text())["spec"]["layers"][2] == {"relu": {}}
    assert not loaded.training
    torch.testing.assert_close(loaded(pixels), model.eval()(pixels))  # another memory format, other rounding


def test_logits_are_divided_by_the_temperature_in_evaluation_mode_only(tmp_path):
    model = trained.make(FACTS).eval()
    trained.save(tmp_path, model, FACTS.model_copy(update={"temperature": 2.5}))
    loaded = trained.load(tmp_path)[0]
    pixels = torch.randint(0, 256, (5, 3, 8, 8)).float()
    torch.testing.assert_close(loaded(pixels) * 2.5, model(pixels))
    torch.testing.assert_close(loaded.train()(pixels), model.train()(pixels))


def test_a_model_of_an_earlier_version_has_the_temperature_1(tmp_path):
    model = trained.make(FACTS).eval()
    trained.save(tmp_path, model, FACTS)
    content = json.loads((tmp_path / trained.FACTS).read_text())
    del content["temperature"]
    (tmp_path / trained.FACTS).write_text(json.dumps(content))
    loaded, facts = trained.load(tmp_path)
    pixels = torch.randint(0, 256, (5, 3, 8, 8)).float()
    assert facts.temperature == 1
    assert torch.equal(loaded(pixels), model(pixels))


def test_equal_weights_make_equal_files(tmp_path):
    model = trained.make(FACTS)
    for name in ("one", "two"):
        trained.save(tmp_path / name, model, FACTS)
    for file in (trained.WEIGHTS, trained.FACTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_weights_with_code_in_them_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    trained.save(tmp_path, trained.make(FACTS), FACTS)
    torch.save({"conv1.weight": Bomb()}, tmp_path / trained.WEIGHTS)
    with pytest.raises(NetworkError, match=r"holds pickled code and is not loaded.*dvc checkout"):
        trained.load(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    trained.save(tmp_path, trained.make(FACTS), FACTS)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / trained.WEIGHTS)
    with pytest.raises(NetworkError, match=r"weights\.pt does not match(.|\n)*dvc checkout"):
        trained.load(tmp_path)


def halve(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("file", "damage", "cause"),
    [
        (trained.WEIGHTS, halve, ""),
        (trained.FACTS, halve, ""),
        (trained.FACTS, lambda facts: facts.replace(b"relu", b"relu9"), "layer 3: unknown layer `relu9`"),
    ],
    ids=["truncated weights", "truncated facts", "a layer of another version"],
)
def test_a_file_that_this_version_cannot_read_is_refused(tmp_path, file, damage, cause):
    trained.save(tmp_path, trained.make(FACTS), FACTS)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    message = rf"no model that this version can read: {cause}(.|\n)*dvc checkout"
    with pytest.raises(NetworkError, match=message):
        trained.load(tmp_path)


def test_a_missing_model_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(NetworkError, match=r"model\.json does not exist.*dvc repro train"):
        trained.load(tmp_path)


HEADS = [{"auxiliary": {"weight": 0.3, "layers": HEAD, **name}} for name in ({}, {"name": "late"})]
WITH_HEADS = FACTS.model_copy(update={"spec": network(*LAYERS[:2], *HEADS, *LAYERS[2:])})


def test_auxiliary_heads_are_not_saved(tmp_path):
    model = trained.make(WITH_HEADS, auxiliary=True)
    pixels = torch.randint(0, 256, (5, 3, 8, 8)).float()
    assert len(model.train()(pixels).auxiliary) == 2
    trained.save(tmp_path, model, WITH_HEADS)
    loaded, facts = trained.load(tmp_path)
    names = set(torch.load(tmp_path / trained.WEIGHTS, weights_only=True))
    assert {name.split(".")[0] for name in names} == {"conv1", "norm1", "dense1"}
    assert torch.equal(loaded(pixels), model.eval()(pixels))
    assert facts.spec.model_dump() == WITH_HEADS.spec.model_dump()
    assert trained.make(facts, auxiliary=True).network.late.weight == 0.3
    assert isinstance(trained.make(facts).train()(pixels), torch.Tensor)


def test_pixels_are_normalised_with_the_statistics_of_each_channel_which_no_weights_file_repeats():
    pixels = torch.tensor([255.0, 0.0, 51.0]).view(1, 3, 1, 1)
    model = NormalizedModel(nn.Flatten(), mean=[0.5, 0.5, 0.1], std=[0.25, 0.5, 0.2])
    assert model(pixels).tolist()[0] == pytest.approx([2.0, -1.0, 0.5])
    assert not model.state_dict()
    constant = NormalizedModel(nn.Flatten(), mean=[1 - 1 / 255, 0.0, 0.2], std=[0.0, 1.0, 0.0])
    assert constant(pixels).tolist()[0] == pytest.approx([1.0, 0.0, 0.0], abs=1e-4)


def test_the_precision_that_was_set_before_is_set_again():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
