"""Sections of params.yaml: every error names the key, its value and what is allowed."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from convoy.core import params
from convoy.core.errors import RequestError


class Inner(params.Section):
    depth: int


class Example(params.Section):
    rate: Annotated[float, Field(gt=0, le=1)]
    inner: Inner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 7\nexample:\n  rate: 0.5\n  inner: {depth: 3}\n", encoding="utf-8")
    return path


def test_a_section_and_the_seed_are_read(path):
    assert params.section("example", Example, path) == Example(rate=0.5, inner=Inner(depth=3))
    assert params.seed(path) == 7


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "one"])
def test_a_seed_that_a_library_would_refuse_is_refused(path, seed):
    path.write_text(f"seed: {seed}\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"params\.yaml is invalid:\n  seed is ") as caught:
        params.seed(path)
    assert seed in str(caught.value)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"rate": 2, "inner": {"depth": 1}}, ["example.rate is 2: input should be less than or equal to 1"]),
        ({"rate": "x", "inner": {"depth": 1}}, ["example.rate is 'x'", "number"]),
        ({"inner": {"depth": 1}}, ["missing key example.rate"]),
        ({"rate": 1, "inner": {"depht": 1}}, ["unknown key example.inner.depht", "`example.inner.depth`", "missing key example.inner.depth"]),
        ({"rate": 1, "inner": {"depth": 1}, "rat": 2}, ["unknown key example.rat;", "`example.rate`"]),
    ],
)  # fmt: skip
def test_every_wrong_key_is_named(content, facts):
    with pytest.raises(RequestError) as caught:
        params.check("example", Example, content)
    assert caught.value.exit_code == 2
    for fact in facts:
        assert fact in str(caught.value)


def test_a_section_that_is_missing_is_named_with_its_neighbour_and_remedy(path):
    with pytest.raises(RequestError) as caught:
        params.section("exampel", Example, path)
    for fact in ("`exampel`", "`example`", f"git checkout {path}"):
        assert fact in str(caught.value)


def test_a_digest_depends_on_values_alone():
    assert params.digest({"a": 1, "b": [2]}) == params.digest({"b": [2], "a": 1})
    assert params.digest({"a": 1}) != params.digest({"a": 1.5})


def test_nested_keys_are_flattened():
    assert params.flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_the_nearest_name_is_suggested_or_all_are_listed():
    assert params.did_you_mean("lrr", ["lr", "epochs"]) == "; did you mean `lr`?"
    assert params.did_you_mean("zzz", ["lr", "epochs"]) == "; there are: epochs, lr"
