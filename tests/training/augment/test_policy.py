"""What `train.augment` may hold, and how it is refused."""

import re
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from torchvision.transforms import v2

from convoy.core import params as core_params
from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.training.augment import names, policy
from convoy.training.settings import TrainParams


@pytest.fixture
def read(params):
    """Read a list, or what stands for it, as YAML."""
    return lambda text, **more: params(augment=yaml.load(text), **more).augment


@pytest.fixture
def refused(params):
    """Return the lines that refuse a value."""

    def check(text, **more):
        content = params().model_dump() | {"augment": yaml.load(text)} | more
        with pytest.raises(RequestError) as caught:
            core_params.check("train", TrainParams, content)
        assert caught.value.exit_code == 2
        return [line.strip() for line in str(caught.value).splitlines()[1:]]

    return check


def test_a_word_has_usual_arguments_and_written_ones_replace_them(read):
    assert policy.described(read("[shift, {flip: {axis: vertical}}]")) == (
        "[{shift: {pixels: 2, fill: reflect}}, {flip: {axis: vertical, p: 0.5}}]"
    )


@pytest.mark.parametrize("word", policy.TRANSFORMS)
def test_what_is_written_out_reads_as_the_same_transform(read, word):
    [transform] = read(f"[{word}]")
    text = policy.described([transform])
    assert text.startswith(f"[{{{word}: ")
    assert read(text) == [transform]


def test_a_dump_of_the_params_holds_words_and_all_arguments(params):
    dumped = params(augment=["flip"]).model_dump()
    assert dumped["augment"] == [{"flip": {"axis": "horizontal", "p": 0.5}}]
    assert TrainParams.model_validate(dumped).model_dump() == dumped


@pytest.mark.parametrize("shorthand", policy.SHORTHANDS)
def test_a_shorthand_is_its_list(read, shorthand):
    assert read(shorthand) == read(yaml.inline(policy.SHORTHANDS[shorthand]))


def test_shorthands_grow(read):
    words = [
        [policy.WORDS[type(transform)] for transform in read(name)] for name in ("light", "photo", "strong")
    ]
    assert words[0] == ["resized_crop", "flip"]
    assert words[1] == [*words[0], "color_jitter"]
    assert words[2][:3] == words[1]


def test_the_order_of_the_list_changes_nothing(read):
    assert policy.described(read("[flip, shift]")) == policy.described(read("[shift, flip]"))


FOREIGN = {
    "torchvision": {
        "RandomResizedCrop": "resized_crop", "RandomHorizontalFlip": "flip", "RandomVerticalFlip": "axis: vertical",
        "ColorJitter": "color_jitter", "RandAugment": "rand_augment", "TrivialAugmentWide": "trivial_augment",
        "AutoAugment": "rand_augment", "RandomErasing": "erase", "MixUp": "mixup", "CutMix": "cutmix",
        "RandomRotation": "rotate", "RandomAffine": "affine", "RandomCrop": "shift", "AugMix": "rand_augment",
        "RandomPhotometricDistort": "color_jitter", "RandomPerspective": "affine",
    },
    "timm": {
        "hflip": "flip", "vflip": "axis: vertical", "aa": "rand_augment", "reprob": "erase", "color-jitter": "color_jitter",
        "three_augment": "rand_augment",
    },
    "kornia": {"RandomMixUpV2": "mixup", "RandomCutMixV2": "cutmix", "ColorJiggle": "color_jitter"},
    "albumentations": {
        "HorizontalFlip": "flip", "ShiftScaleRotate": "affine", "SafeRotate": "rotate", "CoarseDropout": "erase",
        "RandomBrightnessContrast": "color_jitter", "HueSaturationValue": "color_jitter", "D4": "axis: both",
    },
    "fastai": {
        "aug_transforms": "augment: photo", "RandomResizedCropGPU": "resized_crop", "Flip": "flip", "Rotate": "rotate",
        "Dihedral": "axis: both", "Zoom": "affine", "Warp": "affine", "Brightness": "color_jitter", "Hue": "color_jitter",
    },
    "Ultralytics": {
        "hsv_h": "color_jitter", "degrees": "rotate", "translate": "affine", "scale": "affine", "shear": "affine",
        "fliplr": "flip", "flipud": "axis: vertical", "erasing": "erase", "auto_augment": "rand_augment",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "answer"), [pair for library in FOREIGN.values() for pair in library.items()]
)
def test_names_of_other_libraries_are_answered_with_the_line_to_write(refused, name, answer):
    [line] = refused(f"[{name}]")
    assert line.startswith(f"train.augment.0 is '{name}': unknown transform; did you mean ")
    assert f"{answer}`" in line or f"{answer}}}`" in line or f"{answer}?" in line


@pytest.mark.parametrize("line", sorted(set(names.COUNTERPARTS.values())))
def test_every_answer_is_valid_in_params(read, line):
    assert read(line if line in policy.SHORTHANDS else f"[{{{line}}}]" if ":" in line else f"[{line}]")


@pytest.mark.parametrize("name", sorted(names.COUNTERPARTS.keys() | names.REASONS.keys()))
def test_no_word_is_taken_for_one_of_another_library(name):
    assert name not in {names.normal(word) for word in [*policy.TRANSFORMS, *policy.SHORTHANDS]}


@pytest.mark.parametrize(
    ("name", "why"), [("mosaic", "detection"), ("GaussianBlur", "blurs"), ("ToTensor", "Convoy")]
)
def test_what_has_no_counterpart_is_refused_with_what_exists(refused, name, why):
    [line] = refused(f"[flip, {name}]")
    assert line.startswith(f"train.augment.1 is '{name}': no counterpart")
    assert why in line
    for word in [*policy.TRANSFORMS, *policy.SHORTHANDS]:
        assert word in line


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("[flop]", ("augment.0 is 'flop'", "did you mean `flip`")),
        ("[zzz]", ("augment.0 is 'zzz'", "resized_crop", "cutmix", "photo")),
        ("phot", ("augment is 'phot'", "did you mean `photo`")),
        ("flip", ("augment is 'flip'", "[flip]")),
        ("[photo]", ("augment.0 is 'photo'", "augment: photo", "color_jitter")),
        ("[3]", ("augment.0 is 3", "shift: {pixels: 2}")),
        ("[{flip: {}, shift: {}}]", ("augment.0", "one word with its arguments")),
        ("[{shift: 2}]", ("shift takes its arguments by name", "shift: {pixels: 2", "pixels, fill")),
        ("[{trivial_augment: 3}]", ("trivial_augment takes its arguments by name",)),
        ("[{shift: {pixel: 2}}]", ("unknown key shift.pixel", "`shift.pixels`")),
        ("[{shift: {pixels: -1}}]", ("shift.pixels is -1", "greater than or equal to 0")),
        ("[{shift: {pixels: 1.5}}]", ("shift.pixels is 1.5", "valid integer")),
        ("[{shift: {fill: mirror}}]", ("shift.fill is 'mirror'", "'reflect', 'edge' or 'black'")),
        ("[{flip: {p: 2}}]", ("flip.p is 2", "less than or equal to 1")),
        ("[{flip: {axis: diagonal}}]", ("flip.axis is 'diagonal'", "'horizontal', 'vertical' or 'both'")),
        ("[{resized_crop: {scale: [0.3, 1.5]}}]", ("resized_crop.scale.1 is 1.5", "less than or equal to 1")),
        ("[{resized_crop: {scale: [0.9, 0.3]}}]", ("low first: [0.3, 0.9]",)),
        ("[{resized_crop: {scale: 0.3}}]", ("resized_crop.scale is 0.3", "valid list")),
        ("[{resized_crop: {scale: [0.3]}}]", ("resized_crop.scale is [0.3]", "at least 2 items")),
        ("[{color_jitter: {hue: 0.7}}]", ("color_jitter.hue is 0.7", "less than or equal to 0.5")),
        ("[{rand_augment: {strength: 9}}]", ("rand_augment.strength is 9", "less than or equal to 1")),
        ("[{mixup: {alpha: 0}}]", ("mixup.alpha is 0", "greater than 0")),
        ("[{erase: {scale: [0, 0.1]}}]", ("erase.scale.0 is 0", "greater than 0")),
        ("[flip, shift, flip]", ("flip occurs 2 times",)),
        ("[flip, alternating_flip]", ("flip and alternating_flip", "{axis: vertical}")),
        ("[{flip: {axis: both}}, alternating_flip]", ("flip and alternating_flip",)),
        ("[trivial_augment, rand_augment]", ("trivial_augment and rand_augment", "Remove one")),
        ("[{rotate: {fill: edge}}, {affine: {fill: black}}]", ("rotate and affine", "edge and black")),
        ("[{mixup: {p: 0.7}}, cutmix]", ("0.7 and 0.5", "at most once")),
        ("3", ("augment is 3", "valid list")),
        ("{flip: {}}", ("augment is {'flip': {}}", "valid list")),
    ],
)  # fmt: skip
def test_what_cannot_be_a_policy_is_refused_with_what_can(refused, text, facts):
    [line] = refused(text)
    for fact in facts:
        assert fact in line


def test_all_wrong_items_are_named_at_once(refused):
    lines = refused("[flop, shift, {flip: {p: 2}}]")
    assert ["train.augment.0" in lines[0], "train.augment.2" in lines[1]] == [True, True]


def test_a_vertical_flip_goes_with_an_alternating_one(read):
    assert len(read("[{flip: {axis: vertical}}, alternating_flip]")) == 2


@pytest.mark.parametrize(
    ("augment", "line"),
    [
        (["crop"], "[{shift: {pixels: 3}}]"),
        (["crop", "flip"], "[{shift: {pixels: 3}}, flip]"),
        ([], "[]"),
    ],
)
def test_former_params_are_answered_with_the_line_that_replaces_them(refused, read, augment, line):
    lines = refused(yaml.inline(augment), crop_padding=3)
    assert lines[0].startswith("train: crop_padding is now an argument")
    assert lines[1] == f"augment: {line}"
    read(line)


def test_a_former_word_alone_is_answered_with_its_new_one(refused):
    [line] = refused("[crop]")
    assert "did you mean `shift`, such as shift: {pixels: 2, fill: reflect}" in line


@pytest.mark.parametrize(
    ("text", "px", "facts"),
    [
        ("[{shift: {pixels: 32}}]", 32, ("shift.pixels is 32", "32 px", "at most 31", "shift: {pixels: 4}")),
        ("[{resized_crop: {scale: [0.01, 1]}}]", 32, ("resized_crop.scale starts at 0.01", "4 × 4", "0.02")),
        ("[{erase: {scale: [0.001, 0.01]}}]", 8, ("erase.scale ends at 0.01", "8 px", "0.02")),
    ],
)
def test_a_policy_that_images_are_too_small_for_is_refused(read, text, px, facts):
    with pytest.raises(RequestError) as caught:
        policy.check(read(text), image_px=px, store_px=px, batch_size=8)
    for fact in facts:
        assert fact in str(caught.value)
    policy.check(read(text), image_px=64, store_px=64, batch_size=8)


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
def test_mixing_needs_two_images_in_each_batch(read, word):
    sides = {"image_px": 32, "store_px": 32}
    with pytest.raises(
        RequestError, match=rf"{word} mixes.*batch_size: 1 a batch has 1\. Set train.batch_size to 4"
    ):
        policy.check(read(f"[{word}]"), **sides, batch_size=1)
    with pytest.raises(RequestError, match=rf"batch_size: 2 a batch has 1.*remove {word}"):
        policy.check(read(f"[{word}]"), **sides, batch_size=2, smallest=1)
    policy.check(read(f"[{word}]"), **sides, batch_size=2, smallest=2)
    policy.check(read("[flip]"), **sides, batch_size=1)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("train.augment=photo", ["resized_crop", "flip", "color_jitter"]),
        ("train.augment=[flip]", ["flip"]),
        ("train.augment=[]", []),
        ("train.augment=[{shift:{pixels:4}},flip]", ["shift", "flip"]),
    ],
)
def test_what_dvc_writes_for_an_experiment_is_read(repository, tmp_path, typed, words):
    path = tmp_path / "params.yaml"
    path.write_bytes((repository / "params.yaml").read_bytes())
    apply_overrides(path, [typed])
    read = core_params.section("train", TrainParams, path)
    assert [policy.WORDS[type(transform)] for transform in read.augment] == words
    again = core_params.section("train", TrainParams, Path(repository / "params.yaml"))
    assert policy.described(again.augment) == "[{shift: {pixels: 2, fill: reflect}}]"


ELSEWHERE = {
    "torchvision": [name for name in dir(v2) if name[0].isupper() and name != "InterpolationMode"],
    "timm": "RandomResizedCropAndInterpolation RandomErasing AugMixAugment RandomCropOrPad ThreeAugment hflip reprob rkrr resplit rand-m9-mstd0.5-inc1",
    "kornia": "ColorJiggle RandomCutMixV2 RandomJigsaw RandomRotation90 RandomPlasmaShadow RandomFisheye RandomClahe PadTo AugmentationSequential",
    "albumentations": "D4 ShiftScaleRotate Transpose PadIfNeeded RandomSizedCrop FancyPCA CoarseDropout GlassBlur ShotNoise Spatter ToTensorV2 OneOf",
    "fastai": "aug_transforms FlipItem DeterministicDihedral RandomResizedCropGPU Warp LightingTfm cutout_gaussian MixUp RatioResize Normalize",
    "Ultralytics": "hsv_h degrees perspective flipud bgr mosaic copy_paste erasing crop_fraction auto_augment close_mosaic",
    "Keras": "RandomTranslation RandomZoom RandomColorDegeneration RandomPosterization Solarization GridMask Rescaling Resizing AugMix Pipeline",
}


@pytest.mark.parametrize("library", ELSEWHERE)
def test_every_name_of_a_library_is_answered(refused, library):
    names_ = ELSEWHERE[library]
    for name in names_.split() if isinstance(names_, str) else names_:
        if name in policy.TRANSFORMS:
            continue
        [line] = refused(f"['{name}']")
        assert re.search(r"did you mean `|did you mean augment: |no counterpart: ", line), line
