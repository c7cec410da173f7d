"""timm's classifiers in one-line specs: names and tags, published weights, networks, and their blocks and table."""

import socket

import pytest
import torch
from torch import nn

from convoy.core.errors import NetworkError, RequestError
from convoy.explain.table import tabulate
from convoy.models import timm, trained
from convoy.models.build import assemble, build
from convoy.models.spec import Spec
from convoy.training.freezing import blocks

SMALL = ["convnextv2_atto", "edgenext_xx_small", "efficientnet_b0", "fastvit_t8", "ghostnet_100",
         "mobilenetv4_conv_small", "regnety_002", "resnet18d", "tf_efficientnetv2_b0", "vit_tiny_patch16_224"]  # fmt: skip
QUICK = {"convnextv2_atto", "mobilenetv4_conv_small"}
MEMBERS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
"""Small members of families that differ in kind."""


def of(name):
    return Spec(name="mine", timm=name)


def test_a_network_of_timm_is_one_line(load, refusal):
    assert load("timm: resnet18d\n") == of("resnet18d")
    assert load("timm: resnet18d.ra2_in1k\n").classifier == ("timm", "resnet18d.ra2_in1k")
    assert Spec.model_validate(of("resnet18d").model_dump()) == of("resnet18d")
    message = refusal("timm: resnet18d\ntwin: resnet18\n")
    assert message.startswith("networks/mine.yaml:2: `twin` cannot be combined with `timm:`")
    assert "Keep either `layers:` or `timm: NAME`" in message
    assert "`torchvision` cannot be combined" in refusal("timm: resnet18d\ntorchvision: resnet18\n")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "ghostnet",
            ["no network `ghostnet`", "did you mean `ghostnet_", "convoy network list --all --filter"],
        ),
        ("zzzzzzzzz", ["no network `zzzzzzzzz`.", "convoy network list --all --filter"]),
        ("hf-hub:timm/resnet18d", ["no network `hf-hub:timm/resnet18d`"]),
        ("resnet18d.ra9_in1k", ["no weights `resnet18d.ra9_in1k`", "resnet18d.ra2_in1k"]),
        ("resnet18d.", ["no weights `resnet18d.`", "resnet18d.ra2_in1k"]),
    ],
)
def test_an_unknown_network_or_tag_is_refused_at_its_line_with_what_there_is(refusal, name, facts):
    message = refusal(f"timm: {name}\n")
    assert message.startswith("networks/mine.yaml:1: timm ")
    assert [fact for fact in facts if fact not in message] == []


def test_published_weights_have_address_preprocessing_classes_and_licence(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    weights = timm.pretrained("convnextv2_atto")
    assert weights.label == "convnextv2_atto.fcmae_ft_in1k"
    assert weights.url == f"https://huggingface.co/timm/{weights.label}/resolve/main/model.safetensors"
    assert (weights.mean, len(weights.classes)) == ([0.485, 0.456, 0.406], 1000)
    assert weights.classes[0].startswith("tench")
    preprocessing, licence = weights.notes
    for fact in ("224 px", "bicubic", "data.image_px: 224", "data.fit: crop", "data.crop_share: 0.875"):
        assert fact in preprocessing
    assert "cc-by-nc-4.0" in licence
    assert timm.pretrained("mixer_b16_224.goog_in21k").mean == [0.5] * 3
    larger = timm.pretrained("convnextv2_nano", "convnextv2_nano.fcmae_ft_in22k_in1k_384")
    assert "384 px" in larger.notes[0]
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/")
    assert timm.pretrained("resnet18d").url.startswith("https://mirror.example.org/timm/resnet18d.")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@mirror.example.org")
    with pytest.raises(RequestError) as caught:
        timm.pretrained("resnet18d")
    assert "secret" not in str(caught.value)


def test_weights_that_cannot_be_used_are_refused_with_those_that_can():
    with pytest.raises(
        NetworkError,
        match=r"convnextv2_atto\.fcmae cannot be used.*Those that fit: convnextv2_atto\.fcmae_ft_in1k\.",
    ):
        timm.pretrained("convnextv2_atto.fcmae")  # without a classifier
    with pytest.raises(
        NetworkError,
        match=r"`resnet18d\.v9` for resnet18d; there are: resnet18d\.ra2_in1k.*convoy weights use imagenet",
    ):
        timm.pretrained("resnet18d", "resnet18d.v9")


def test_building_downloads_nothing_and_drops_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("a network was built over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    made = build(of("mobilenetv4_conv_small.e2400_r224_in1k"), 3, 32)
    assert all(module.p == 0 for module in made.modules() if isinstance(module, nn.Dropout))
    assert made.training
    assert made(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("name", MEMBERS)
def test_assembling_allocates_no_weights_and_the_head_is_the_last_block(name):
    made = assemble(of(name), 7, 64)
    assert {value.device.type for value in made.parameters()} == {"meta"}
    parts = blocks(made)
    names = [name for part in parts for name in part.parameters()]
    assert sorted(names) == sorted(name for name, _ in made.named_parameters())
    head = {id(value) for value in made.get_classifier().parameters()}
    assert head <= {id(value) for value in parts[-1].parameters().values()}
    assert len(parts) > 4


@pytest.mark.parametrize("name", MEMBERS)
def test_the_table_counts_every_parameter(name):
    made, table = assemble(of(name), 7, 64), tabulate(of(name), 7, 64)
    assert table.total("parameters") == sum(value.numel() for value in made.parameters())
    assert table.total("macs") > 0
    assert not [row for row in table.layers if row.operation == "Identity"]


def test_stages_can_be_frozen_by_their_names():
    names = [block.name for block in blocks(assemble(of("mobilenetv4_conv_small"), 7, 64))]
    assert (names[0], names[-1]) == ("conv_stem", "classifier")
    assert {name.rpartition(".")[0] for name in names if name.startswith("blocks.")} == {
        f"blocks.{n}" for n in range(5)
    }


def test_a_network_of_one_side_is_built_for_that_of_the_images_and_refuses_others_with_the_next():
    made = assemble(of("vit_tiny_patch16_224"), 3, 48)
    assert made.pos_embed.shape[1] == 1 + 3 * 3
    with pytest.raises(
        NetworkError, match=r"does not take images of 15 px: (.|\n)*The smallest that works is 16:"
    ):
        assemble(of("vit_tiny_patch16_224"), 3, 15)


def test_a_trained_network_of_timm_is_saved_and_loaded(tmp_path):
    facts = trained.ModelFacts(
        network="mine", spec=of("mobilenetv4_conv_small"), classes=["a", "b"], image_px=32, fit="squash",
        mean=[0.5] * 3, std=[0.25] * 3,
    )  # fmt: skip
    model = trained.make(facts)
    trained.save(tmp_path, model, facts)
    again, read = trained.load(tmp_path)
    assert read == facts
    pixels = torch.rand(2, 3, 32, 32) * 255
    assert torch.equal(again(pixels), model.eval()(pixels))
