"""Specs as text, read as the file networks/mine.yaml, which messages then name."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from convoy.core.errors import NetworkError, RequestError
from convoy.models import spec
from convoy.models.fitting import placed
from convoy.models.spec import Spec

Say = Callable[[str], str]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Spec]:
    monkeypatch.chdir(tmp_path)
    Path("networks").mkdir()

    def read(text: str) -> Spec:
        Path("networks/mine.yaml").write_text(dedent(text), encoding="utf-8")
        return spec.load("mine")

    return read


@pytest.fixture
def refusal(load: Callable[[str], Spec]) -> Say:
    """What reading says to a spec that asks for something that there is not, which exits 2."""

    def say(text: str) -> str:
        with pytest.raises(RequestError) as caught:
            load(text)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return say


@pytest.fixture
def misfit(load: Callable[[str], Spec]) -> Say:
    """What is said to layers that do not fit each other for 8 px and 4 classes, which exits 1."""

    def say(text: str) -> str:
        with pytest.raises(NetworkError) as caught:
            placed(load(text), 4, 8)
        assert caught.value.exit_code == 1
        return str(caught.value)

    return say
