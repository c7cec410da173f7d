"""YAML 1.2 as DVC reads and writes it; values replaced in a file in which nothing else changes."""

from pathlib import Path

import pytest

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.core.yaml import line_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        *((text, 0.001) for text in ("1e-3", "1.0e-3", "0.001", "1E-3", "1000e-6", ".1e-2", "0.00001e2")),
        *(("5e-05", 0.00005), ("no", "no"), ("on", "on"), ("010", 10), ("[a, {b: 2}]", ["a", {"b": 2}])),
        *(("1e3x", "1e3x"), ("'1e3'", "1e3"), ("12:30", "12:30")),
    ],
)
def test_values_have_the_types_of_yaml_1_2(typed, value):
    assert yaml.load(f"key: {typed}\n") == {"key": value}
    assert type(yaml.load(typed)) is type(value)


def test_a_missing_file_is_refused(path):
    with pytest.raises(RequestError, match="does not exist"):
        yaml.read(path)


def test_windows_line_ends_are_read_and_kept(path):
    path.write_bytes(b"a:\r\n  b: 1  # x\r\n  c: 2\r\n")
    assert yaml.update(path, {"a.b": 30}) == ["a.b: 1 → 30"]
    assert path.read_bytes() == b"a:\r\n  b: 30 # x\r\n  c: 2\r\n"


def test_a_caller_may_change_what_it_read(path):
    path.write_text("a: {b: 1}\n", encoding="utf-8")
    yaml.read(path)["a"]["b"] = 2
    assert yaml.read(path) == {"a": {"b": 1}}


@pytest.mark.parametrize(
    "value", [0.00001, 0.1, 3.0, 12, True, "sgd", "no", "a: b", [], ["crop", "flip"], {"conv3": 2}, 1e-12, 1e22]
)  # fmt: skip
def test_a_value_on_one_line_is_read_as_the_same_value(value):
    text = yaml.inline(value)
    assert yaml.load(text) == value
    assert type(yaml.load(text)) is type(value)
    assert "\n" not in text
    assert "e-" not in text


def test_flat_keys_are_looked_up_and_replaced_in_a_copy():
    content = {"seed": 1, "train": {"lr": 0.1}}
    assert yaml.get(content, "train.lr") == 0.1
    assert yaml.replaced(content, {"train.lr": 0.2, "seed": 2}) == {"seed": 2, "train": {"lr": 0.2}}
    assert content == {"seed": 1, "train": {"lr": 0.1}}


def test_exactly_the_values_change_in_the_shipped_params(repository, path):
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


def test_a_layout_that_a_person_chose_stays(path):
    path.write_text(
        "a:\n    b:   1   # x\n    c: [1,2]\n    d: ~\ne:\n  - f # y\n\n\n# end\n", encoding="utf-8"
    )
    yaml.update(path, {"a.b": 22})
    assert path.read_text(encoding="utf-8") == (
        "a:\n    b:   22  # x\n    c: [1,2]\n    d: ~\ne:\n  - f # y\n\n\n# end\n"
    )


def test_equal_values_change_no_byte(repository, path):
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
def test_a_file_that_cannot_be_changed_in_place_is_left_alone(path, text, facts):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        yaml.update(path, {"train.augment": []})
    for fact in (str(path), *facts):
        assert fact in str(caught.value)
    assert path.read_text(encoding="utf-8") == text


def test_a_full_disk_leaves_the_file(path, monkeypatch):
    path.write_text("train:\n  lr: 0.1\n", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convoy.core.files.write_text", full)
    with pytest.raises(RequestError, match="No space left on device"):
        yaml.update(path, {"train.lr": 0.2})
    assert yaml.read(path) == {"train": {"lr": 0.1}}


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "some.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("read", [yaml.read, yaml.read_located])
def test_windows_line_ends_are_read_like_others(file, read):
    content = read(file("a: 1\r\nb: [1,\r\n  2]\r\nc: >\r\n  some\r\n  text\r\n"))
    assert content == {"a": 1, "b": [1, 2], "c": "some text\n"}


def test_every_key_and_item_has_its_line(file):
    content = yaml.read_located(file("a: 1\r\nb:\r\n  - x\n  - {c: 2,\n     3: y}\n"))

    assert content == {"a": 1, "b": ["x", {"c": 2, "3": "y"}]}
    assert [line_of(content, "a"), line_of(content, "b")] == [1, 2]
    assert [line_of(content["b"], 0), line_of(content["b"], 1)] == [3, 4]
    assert [line_of(content["b"][1], "c"), line_of(content["b"][1], "3")] == [4, 5]


def test_values_that_come_from_no_file_have_no_line():
    assert [line_of(["x"], 0), line_of({"a": 1}, "a")] == [0, 0]


@pytest.mark.parametrize("read", [yaml.read, yaml.read_located])
@pytest.mark.parametrize(
    ("content", "line", "fragments"),
    [
        ("layers: [relu\n", ":2", ["not valid YAML", "expected ',' or ']'"]),
        ("a:\n\tb: 1\n", ":2", ["spaces, not tabs"]),
        ("layers: *a\n", ":1", ["undefined alias 'a'"]),
        ("a: 1\nb: {c: 1,\n  c: 2}\n", ":3", ["`c` occurs twice"]),
        ("layers:\n  - \x07\n", "", ["unacceptable character #x0007"]),
        (b"layers:\n  - \xff\n", ":2", ["UTF-8", "byte 0xff after `  - `", "iconv -f ISO-8859-1 -t UTF-8"]),
        ("", "", ["`key: value`", "nothing"]),
        ("- relu\n", "", ["`key: value`", "a list"]),
        ("relu\n", "", ["`key: value`", "a single value"]),
        ("a: " + "[" * 500, "", ["nested too deeply"]),
    ],
)  # fmt: skip
def test_a_file_that_is_not_valid_is_refused_with_its_line(file, read, content, line, fragments):
    path = file(content)

    with pytest.raises(RequestError) as caught:
        read(path)

    message = str(caught.value)
    assert message.removeprefix(f"{path}{line}")[0] in ": "
    assert all(fragment in message for fragment in fragments)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "line", "fragment"),
    [
        ("a: 1\nb: &x\n  - relu\n  - {c: *x}\n", 2, "an alias contains itself"),
        ("a: 1\nb: !!int x\n", 2, "'x'"),
        ("a: 1\nb: 2024-13-45\n", 2, "month must be in 1..12"),
    ],
)
def test_a_value_that_cannot_be_made_is_refused_with_its_line(file, content, line, fragment):
    path = file(content)

    with pytest.raises(RequestError) as caught:
        yaml.read_located(path)

    assert str(caught.value).startswith(f"{path}:{line} is not valid YAML: ")
    assert fragment in str(caught.value)


@pytest.mark.parametrize("read", [yaml.read, yaml.read_located])
def test_aliases_of_aliases_share_their_values_and_are_not_written_into_messages(file, read):
    bomb = "[x]"
    for number in range(30):
        bomb = f"[&a{number} {bomb}, *a{number}]"

    content = read(file(f"a: {bomb}\n"))
    assert content["a"][0] is content["a"][1]

    with pytest.raises(RequestError, match=r":3: the key `b` occurs twice") as caught:
        read(file(f"a: {bomb}\nb: 1\nb: *a29\n"))
    assert len(str(caught.value)) < 300


def test_a_folder_in_place_of_a_file_is_an_invalid_request(tmp_path):
    with pytest.raises(RequestError, match=r"is no file.*git checkout"):
        yaml.read(tmp_path)
