"""The shipped params.yaml is complete, commented and accepted."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from convoy import preflight
from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.core.params import Section
from convoy.gate.settings import GateParams


@pytest.fixture
def here(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(repository)
    return repository


def test_the_shipped_params_pass_the_check(here):
    preflight.check({})


def test_every_value_has_a_comment(here):
    written = comments((here / "params.yaml").read_text(encoding="utf-8"))
    assert len(written) > 50
    bare = [key for key, comment in written.items() if not comment and key not in preflight.SECTIONS]
    assert not bare


def comments(text: str) -> dict[str, str]:
    """Map flat keys of params.yaml to the comments on their lines."""
    found, parents = {}, []
    for line in text.splitlines():
        if match := re.match(r"( *)([\w.]+):[^#]*(?:# (.*))?$", line):
            depth = len(match[1]) // 2
            parents = [*parents[:depth], match[2]]
            found[".".join(parents)] = match[3] or ""
    return found


def fields(kind: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        if (
            isinstance(field.annotation, type)
            and issubclass(field.annotation, Section)
            and block(field.annotation)
        ):
            yield from fields(field.annotation, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", field


def block(kind: type[Section]) -> bool:
    """Check whether a section has a line per key; others are written as `{limit: 1, action: report}` with one comment."""
    return any(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize("section", preflight.SECTIONS)
def test_a_comment_begins_with_the_description_of_its_field(here, section):
    written = comments((here / "params.yaml").read_text(encoding="utf-8"))
    described = list(fields(preflight.SECTIONS[section], section))
    assert described
    for key, field in described:
        assert field.description, f"{key} has no description"
        assert written[key].startswith(field.description), f"{key}: {written[key]!r}: {field.description!r}"


def test_no_section_declares_a_second_default():
    for name, kind in preflight.SECTIONS.items():
        for key, field in kind.model_fields.items():
            assert field.is_required(), f"{name}.{key} has a default in code"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.lrr", "1", r"unknown key train\.lrr; did you mean `train\.lr`\?"),
        ("trian.lr", "1", r"unknown key trian\.lr; did you mean `train\.lr`\?"),
        ("train.lr", "-1", r"train\.lr is -1.*greater than 0"),
        ("train.optimizer", "adam", r"train\.optimizer is 'adam'.*'sgd', 'adamw' or 'muon'"),
        ("data.image_px", "4", r"data\.image_px is 4.*greater than or equal to 8"),
        ("data.image_px", "32.5", r"data\.image_px is 32\.5.*valid integer"),
        ("data.splits.test", "0.9", r"data\.splits\.test is 0\.9.*less than or equal to 0\.5"),
        ("export.max_label_flips", "-1", r"export\.max_label_flips is -1"),
        ("network.name", "convnett", r"convnett.*convnet"),
        ("gate.min_accuracy", "1.5", r"gate\.min_accuracy is 1\.5.*less than or equal to 1"),
        ("gate.max_latency_ratio", "0.5", r"gate\.max_latency_ratio is 0\.5.*greater than or equal to 1"),
        ("gate.on_equal", "maybe", r"gate\.on_equal is 'maybe'.*'keep' or 'promote'"),
        ("tracking.registered_model", "a/b", r"tracking\.registered_model is 'a/b'"),
        ("seed", "one", r"seed is 'one': input should be a valid integer"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(here, key, value, message):
    with pytest.raises(RequestError, match=re.compile(message, re.DOTALL)) as caught:
        preflight.check({key: value})
    assert caught.value.exit_code == 2


def test_augmentation_is_checked_against_the_stored_size(here):
    crops = {"data.image_px": "12", "train.augment": "[{resized_crop: {scale: [0.1, 1.0]}}]"}
    with pytest.raises(
        RequestError, match=r"resized_crop\.scale starts at 0\.1.*of the 12 × 12 stored pixels"
    ):
        preflight.check(crops)
    preflight.check(crops | {"data.store_px": "16"})


def test_images_that_are_stored_larger_for_nothing_are_named_once(here, capsys):
    stored = {"data.store_px": "40"}
    preflight.check(stored)
    assert capsys.readouterr().out.splitlines() == [
        (
            "data.store_px 40 changes nothing but time and space: of train.augment, only resized_crop cuts from images that are "
            "stored larger than data.image_px 32. Add resized_crop to train.augment, or set data.store_px: 0"
        )
    ]
    preflight.check(stored | {"train.augment": "photo"})
    preflight.check({"data.store_px": "32"})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("typed", ["0.00005", "5e-05", "5e-5", "1e-5", "0", "1E-4"])
def test_a_number_in_any_notation_is_a_number(here, typed):
    preflight.check({"train.weight_decay": typed})
    with pytest.raises(RequestError, match=r"train\.epochs is '1e-5x'"):
        preflight.check({"train.weight_decay": typed, "train.epochs": "1e-5x"})


def test_a_gate_without_limits_is_refused_since_it_gives_no_verdict(here):
    limits = {f"gate.{key}": "null" for key in GateParams.model_fields if key.startswith(("min_", "max_"))}
    with pytest.raises(
        RequestError, match=r"gate: a gate without limits gives no verdict\. Set at least one, such as"
    ) as caught:
        preflight.check(limits)
    assert caught.value.exit_code == 2
    preflight.check(limits | {"gate.max_ece": "0.1"})


def test_an_unknown_section_is_refused_with_the_nearest_name(here, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((here / "params.yaml").read_text().replace("\ntrain:", "\ntrian:"))
    with pytest.raises(RequestError, match=r"unknown key trian; did you mean `train`\?"):
        preflight.check({}, path)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (r"\n  lr: .*", "missing key train.lr: its default is 0.03. Add this line to `train` in {}:\n    lr: 0.03"),
        (r"\nseed: .*", "missing key seed: its default is 1. Add this line without indentation in {}:\n    seed: 1"),
        (r"\n    lr_factor: .*", "Add this line to `train.transfer` in {}:\n    lr_factor: 1.0"),
        (r"\n  augment: .*", "\n    augment: [{{shift: {{pixels: 2}}}}]"),
        (r"\n  splits:.*\n.*\n.*", "missing key data.splits: its default is {{val: 0.15, test: 0.2}}."),
        (r"\n    small: .*", "Add this line to `data.checks` in {}:\n    small: {{limit: 8, action: report, max_share: 1.0}}"),
        (r"(?<=small: {)limit: 8, ", "missing key data.checks.small.limit: its default is 8."),
        (r"\nevaluate:\n(  .*\n)+", "has no `evaluate`; did you mean `gate`? Restore it: git checkout {}"),
        (r"\nevaluate:\n(  .*\n)+", "\nevaluate:\n  batch_size: 256\n  worst_images: 24\n  feature_classes: 10\n"),
    ],
)  # fmt: skip
def test_a_missing_key_is_named_with_its_default_and_the_lines_to_add(here, tmp_path, removed, message):
    path = tmp_path / "params.yaml"
    text = (here / "params.yaml").read_text()
    shorter = re.sub(removed, "\n" if removed.startswith(r"\n") and removed.endswith("+") else "", text)
    assert shorter != text
    path.write_text(shorter)
    with pytest.raises(RequestError) as caught:
        preflight.check({}, path)
    assert message.format(params.PARAMS_FILE) in str(caught.value).replace(str(path), "params.yaml")


def test_the_default_of_every_key_is_its_value_in_the_shipped_file(here):
    shipped = yaml.read(here / "params.yaml")
    kinds = {"seed": params.TopLevel, **preflight.SECTIONS}
    for section, kind in kinds.items():
        defaults = params.default_at(kind, [])
        assert defaults == (shipped[section] if section != "seed" else {"seed": shipped["seed"]}), section


def test_words_without_a_value_are_refused():
    with pytest.raises(RequestError, match=r"such as: --train\.epochs 3"):
        preflight.parse(["--train.epochs"])
