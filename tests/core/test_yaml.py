"""YAML 1.2 as DVC reads and writes it; values replaced in a file in which nothing else changes."""

from pathlib import Path

import pytest

from convoy.core import yaml
from convoy.core.errors import RequestError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    ("typed", "value"),
    [("1e-3", 0.001), ("5e-05", 0.00005), ("0.03", 0.03), ("no", "no"), ("010", 10), ("[a, {b: 2}]", ["a", {"b": 2}])],
)  # fmt: skip
def test_values_have_the_types_of_yaml_1_2(typed: str, value: object) -> None:
    assert yaml.load(f"key: {typed}\n") == {"key": value}
    assert type(yaml.load(typed)) is type(value)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a: 1\nb: 2\na: 3\n", (":3", '"a"', "twice")),
        ("a:\n\tb: 1\n", (":2", "spaces, not tabs")),
        ("a: [1\n", (":2", "not valid YAML")),
        ("- 1\n- 2\n", ("list",)),
        ("", ("NoneType",)),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused_with_its_line(
    path: Path, text: str, facts: tuple[str, ...]
) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        yaml.read(path)
    for fact in (str(path), *facts):
        assert fact in str(caught.value)


def test_a_missing_file_and_one_that_is_not_text_are_refused(path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        yaml.read(path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(RequestError, match=r"not UTF-8 text: .* byte 3"):
        yaml.read(path)


def test_windows_line_ends_are_read_and_kept(path: Path) -> None:
    path.write_bytes(b"a:\r\n  b: 1  # x\r\n  c: 2\r\n")
    assert yaml.update(path, {"a.b": 30}) == ["a.b: 1 → 30"]
    assert path.read_bytes() == b"a:\r\n  b: 30 # x\r\n  c: 2\r\n"


def test_a_caller_may_change_what_it_read(path: Path) -> None:
    path.write_text("a: {b: 1}\n", encoding="utf-8")
    yaml.read(path)["a"]["b"] = 2
    assert yaml.read(path) == {"a": {"b": 1}}


@pytest.mark.parametrize(
    "value", [0.00001, 0.1, 3.0, 12, True, "sgd", "no", "a: b", [], ["crop", "flip"], {"conv3": 2}, 1e-12, 1e22]
)  # fmt: skip
def test_a_value_on_one_line_is_read_as_the_same_value(value: object) -> None:
    text = yaml.inline(value)
    assert yaml.load(text) == value
    assert type(yaml.load(text)) is type(value)
    assert "\n" not in text
    assert "e-" not in text


def test_flat_keys_are_looked_up_and_replaced_in_a_copy() -> None:
    content = {"seed": 1, "train": {"lr": 0.1}}
    assert yaml.get(content, "train.lr") == 0.1
    assert yaml.replaced(content, {"train.lr": 0.2, "seed": 2}) == {"seed": 2, "train": {"lr": 0.2}}
    assert content == {"seed": 1, "train": {"lr": 0.1}}


def test_exactly_the_values_change_in_the_shipped_params(repository: Path, path: Path) -> None:
    before = (repository / "params.yaml").read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    values = {
        "train.lr": 0.0123,
        "seed": 12345678901,
        "train.augment": [],
        "train.transfer.freeze": "conv3",
        "train.weight_decay": 0.00001,
        "network.name": "resnet18",
    }
    changes = yaml.update(path, values)
    assert changes[0] == "seed: 1 → 12345678901"
    assert {key: yaml.get(yaml.read(path), key) for key in values} == values
    lines = zip(before.splitlines(), path.read_text(encoding="utf-8").splitlines(), strict=True)
    changed = [(old, new) for old, new in lines if old != new]
    assert len(changed) == len(changes) == len(values)
    for old, new in changed:
        assert old.partition("#")[2] == new.partition("#")[2]
        assert old.partition(":")[0] == new.partition(":")[0]
        assert old.index("#") == new.index("#")


def test_a_layout_that_a_person_chose_stays(path: Path) -> None:
    path.write_text(
        "a:\n    b:   1   # x\n    c: [1,2]\n    d: ~\ne:\n  - f # y\n\n\n# end\n", encoding="utf-8"
    )
    yaml.update(path, {"a.b": 22})
    assert path.read_text(encoding="utf-8") == (
        "a:\n    b:   22  # x\n    c: [1,2]\n    d: ~\ne:\n  - f # y\n\n\n# end\n"
    )


def test_equal_values_change_no_byte(repository: Path, path: Path) -> None:
    path.write_bytes((repository / "params.yaml").read_bytes())
    inode = path.stat().st_ino
    assert yaml.update(path, {"train.lr": yaml.get(yaml.read(path), "train.lr")}) == []
    assert path.read_bytes() == (repository / "params.yaml").read_bytes()
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("train:\n  lr: 0.1\n  augment:\n  - crop # a\n  - flip\n  b: 1\n", ("several lines", "train.augment: []")),
        ("base: &a {augment: [crop]}\ntrain: *a\n", ("anchors", "train.augment: []")),
        ("train: 1\n", ("no key train.augment", "git checkout")),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_changed_in_place_is_left_alone(
    path: Path, text: str, facts: tuple[str, ...]
) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        yaml.update(path, {"train.augment": []})
    for fact in (str(path), *facts):
        assert fact in str(caught.value)
    assert path.read_text(encoding="utf-8") == text


def test_a_full_disk_leaves_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("train:\n  lr: 0.1\n", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convoy.core.files.write_text", full)
    with pytest.raises(RequestError, match="No space left on device"):
        yaml.update(path, {"train.lr": 0.2})
    assert yaml.read(path) == {"train": {"lr": 0.1}}
