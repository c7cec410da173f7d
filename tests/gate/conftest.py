"""Delivered images and contenders whose answers are chosen (`tests/world.py`)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gate_project import TEST, World, by_turns, deliver


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """120 test images of three classes. Only models are added to it."""
    return deliver(tmp_path_factory.mktemp("gate"), by_turns(TEST), TEST)


@pytest.fixture
def delivered(tmp_path: Path) -> Callable[..., World]:
    """Deliver other images: `delivered(labels, test)`."""
    return lambda labels, test: deliver(tmp_path, labels, test)
