from pathlib import Path

import pytest

from convoy.core.errors import RequestError
from convoy.models.yaml_lines import at, brief, line_of, read


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "some.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_item_and_key_knows_its_line(tmp_path):
    content = read(write(tmp_path, "a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n"))

    assert content == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert [line_of(content, "a"), line_of(content, "b")] == [1, 2]
    assert [line_of(content["b"], 0), line_of(content["b"], 1)] == [3, 4]
    assert [line_of(content["b"][1], "c"), line_of(content["b"][1], "d")] == [4, 5]


def test_what_was_not_read_from_a_file_has_no_line():
    assert line_of(["x"], 0) == 0
    assert line_of({"a": 1}, "a") == 0


def test_a_message_begins_with_file_and_line_as_far_as_they_are_known():
    assert [at("n.yaml", 3), at("n.yaml", 0), at("", 3)] == ["n.yaml:3, ", "n.yaml, ", ""]


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "1E-3", "1000e-6", ".1e-2", "0.00001e2"])
def test_a_power_of_ten_is_a_number_with_or_without_a_point(tmp_path, written):
    assert read(write(tmp_path, f"a: {written}\n")) == {"a": 0.001}


def test_what_only_begins_like_a_power_of_ten_stays_text(tmp_path):
    assert read(write(tmp_path, "a: 1e3x\nb: '1e3'\n")) == {"a": "1e3x", "b": "1e3"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("layers: [relu\n", ":2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("layers: *a\n", ":1: not valid YAML: found undefined alias 'a'"),
        ("layers:\n  - \x07\n", ": not valid YAML: unacceptable character #x0007"),
        ("a: 1\nb: !!int x\n", ":2: not valid YAML: 'x': invalid literal for int()"),
        (b"layers:\n  - \xff\n", ": not valid YAML: it is no UTF-8 text (invalid start byte)"),
        ("", " must hold `key: value` lines, such as `layers:` and a list below it."),
        ("- relu\n", " must hold `key: value` lines, such as `layers:` and a list below it."),
        ("a: 1\n? [b, c]\n: 2\n", ":2: a key must be one word, found a list or a mapping."),
        ("a: 1\nb: {c: 1,\n  c: 2}\n", ":3: `c` stands here and on line 2. Keep one of them."),
        ("a: 1\nb: &x\n  - relu\n  - {c: *x}\n", ":2: the alias here contains itself. Write the layers out"),
        ("a: " + "[" * 500, ": lists and mappings stand too deep in each other. Use blocks."),
    ],
)
def test_what_is_no_sound_yaml_is_refused_with_its_place(tmp_path, content, said):
    path = write(tmp_path, content)

    with pytest.raises(RequestError) as caught:
        read(path)

    assert str(caught.value).startswith(f"{path}{said}")
    assert caught.value.exit_code == 2


def test_aliases_share_what_they_stand_for(tmp_path):
    nested = "[x]"
    for n in range(30):
        nested = f"[&a{n} {nested}, *a{n}]"

    content = read(write(tmp_path, f"a: {nested}\n"))

    assert content["a"][0] is content["a"][1]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (3, "3"),
        ("relu", "'relu'"),
        (None, "None"),
        ([["relu"]], "[['relu']]"),
        ({"a": 1, "b": [2]}, "{a: 1, b: [2]}"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, 4, …]"),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, "{a: 1, b: 2, c: 3, d: 4, …}"),
        ([[[1]]], "[[[…]]]"),
        ("x" * 100, "'" + "x" * 78 + "…"),
    ],
)
def test_a_value_is_written_short(value, written):
    assert brief(value) == written
