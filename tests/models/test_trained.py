import json
import os

import pytest
import torch
from torch import nn

from convoy.core.errors import NetworkError
from convoy.models import trained
from convoy.models.trained import ModelFacts, NormalizedModel
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
    assert not loaded.training
    torch.testing.assert_close(loaded(pixels), model.eval()(pixels))  # another memory format, other rounding


def test_equal_weights_make_equal_files(tmp_path):
    model = trained.make(FACTS)
    for name in ("one", "two"):
        trained.save(tmp_path / name, model, FACTS)
    for file in (trained.WEIGHTS, trained.FACTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_facts_are_readable_without_convoy(tmp_path):
    trained.save(tmp_path, trained.make(FACTS), FACTS)
    facts = json.loads((tmp_path / trained.FACTS).read_text())
    assert facts["network"] == "mine"
    assert facts["classes"] == ["cat", "dog"]
    assert facts["spec"]["layers"][2] == {"relu": {}}


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


def test_a_missing_model_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(NetworkError, match=r"model\.json does not exist.*dvc repro train"):
        trained.load(tmp_path)


@pytest.mark.parametrize("file", [trained.WEIGHTS, trained.FACTS])
def test_a_truncated_file_is_refused(tmp_path, file):
    trained.save(tmp_path, trained.make(FACTS), FACTS)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(NetworkError, match=r"holds no model that this version can read(.|\n)*dvc checkout"):
        trained.load(tmp_path)


def test_facts_with_a_layer_that_this_version_does_not_have_are_refused(tmp_path):
    trained.save(tmp_path, trained.make(FACTS), FACTS)
    facts = (tmp_path / trained.FACTS).read_text().replace("relu", "relu9")
    (tmp_path / trained.FACTS).write_text(facts)
    with pytest.raises(
        NetworkError, match=r"holds no model that this version can read: layer 3: unknown layer `relu9`"
    ):
        trained.load(tmp_path)


HEADS = (
    {"auxiliary": {"weight": 0.3, "layers": HEAD}},
    {"auxiliary": {"weight": 0.3, "layers": HEAD, "name": "late"}},
)
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


def test_auxiliary_heads_are_built_on_request_only():
    assert isinstance(trained.make(WITH_HEADS).train()(torch.zeros(2, 3, 8, 8)), torch.Tensor)


def test_pixels_are_normalised_with_the_statistics_of_each_channel():
    pixels = torch.tensor([255.0, 0.0, 51.0]).view(1, 3, 1, 1)
    normalised = NormalizedModel(nn.Flatten(), mean=[0.5, 0.5, 0.1], std=[0.25, 0.5, 0.2])(pixels)
    assert normalised.tolist()[0] == pytest.approx([2.0, -1.0, 0.5])


def test_a_channel_that_never_varies_stays_finite():
    pixels = torch.full((1, 3, 1, 1), 128.0)
    normalised = NormalizedModel(nn.Flatten(), mean=[128 / 255, 0.0, 0.0], std=[0.0, 1.0, 1.0])(pixels)
    assert normalised.isfinite().all()
    assert normalised[0, 0] == 0


def test_the_statistics_are_not_saved_with_the_weights():
    assert not NormalizedModel(nn.Flatten(), [0.5] * 3, [0.5] * 3).state_dict()
