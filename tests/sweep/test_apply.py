"""The best values in params.yaml: those and nothing else."""

from pathlib import Path

import pytest

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.sweep.apply import apply


def test_exactly_the_values_change_in_the_shipped_params(repository: Path, tmp_path: Path) -> None:
    before = (repository / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(before, encoding="utf-8")
    values = {
        "train.lr": 0.0123,
        "seed": 12345678901,
        "train.augment": [],
        "train.transfer.freeze": "conv3",
        "train.weight_decay": 0.00001,
        "network.name": "resnet18",
    }
    changes = apply(values, path)
    after = path.read_text(encoding="utf-8")

    assert len(changes) == len(values)
    assert changes[0] == "seed: 1 → 12345678901"
    assert yaml.read(path)["train"]["augment"] == []
    lines = list(zip(before.splitlines(), after.splitlines(), strict=True))
    differ = [(old, new) for old, new in lines if old != new]
    assert len(differ) == len(values)
    for old, new in differ:
        assert old.partition("#")[2] == new.partition("#")[2]
        assert old.partition(":")[0] == new.partition(":")[0]
        assert old.index("#") == new.index("#")


def test_values_that_stand_there_already_change_no_byte(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((repository / "params.yaml").read_bytes())
    content = yaml.read(path)
    assert apply({"train.lr": content["train"]["lr"]}, path) == []
    assert path.read_bytes() == (repository / "params.yaml").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  lr: 0.1\n  augment:\n  - crop # a\n  - flip\n  b: 1\n", "writes train.augment over several lines. Type its value yourself: \\[\\]"),
        ("base: &a {augment: [crop]}\ntrain: *a\n", "hides where its values stand"),
        ("train: 1\n", "params.yaml has no train.augment any more. Restore it"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_changed_in_place_is_left_alone(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=message):
        apply({"train.augment": []}, path)
    assert path.read_text(encoding="utf-8") == text


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  lr: 0.1\n", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convoy.core.files.write_text", full)
    with pytest.raises(
        RequestError, match=r"cannot be written: No space left on device\. Nothing was changed"
    ):
        apply({"train.lr": 0.2}, path)
