"""Specs as text, read as the file networks/mine.yaml, and the shipped ones."""

from pathlib import Path
from textwrap import dedent

import pytest

from convoy.core.errors import NetworkError, RequestError
from convoy.models import spec
from convoy.models.shapes import infer
from convoy.models.spec import Spec

SHIPPED = Path(__file__).parents[1] / "networks"
HEAD = ("flatten", {"dense": "classes"})


def network(*layers, **others):
    return Spec.model_validate({"name": "mine", "layers": list(layers), **others})


def made_for(name):
    """A shipped network with the classes and image side it was made for, else 10 classes and 32 px."""
    shipped = spec.load(name, SHIPPED)
    return shipped, *((shipped.made_for.classes, shipped.made_for.image_px) if shipped.made_for else (10, 32))


def slow_but(quick, names):
    """Parameters of a test that is slow but for some names."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("networks").mkdir()

    def read(text):
        Path("networks/mine.yaml").write_text(dedent(text), encoding="utf-8")
        return spec.load("mine")

    return read


@pytest.fixture
def refusal(load):
    """Message of the error, with exit code 2, about an invalid spec."""

    def message(text):
        with pytest.raises(RequestError) as caught:
            load(text)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return message


@pytest.fixture
def misfit(load):
    """Message of the error, with exit code 1, about layers that do not fit each other at 8 px and 4 classes."""

    def message(text):
        with pytest.raises(NetworkError) as caught:
            infer(load(text), 4, 8)
        assert caught.value.exit_code == 1
        return str(caught.value)

    return message
