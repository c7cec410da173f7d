"""Delivered images, and models whose predictions are fixed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.gate.evidence import ModelUnderTest
from gate_project import GateProject, deliver, deliver_three_classes


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> GateProject:
    """120 test images of three classes. Only models are added to it."""
    return deliver_three_classes(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="session")
def champion(project: GateProject) -> ModelUnderTest:
    """Wrong on 12 of 120 images, four of each class."""
    return project.model("convoy/3", range(12))


@pytest.fixture
def delivered(tmp_path: Path) -> Callable[..., GateProject]:
    """Deliver other images: `delivered(labels, test)`."""
    return lambda labels, test: deliver(tmp_path, labels, test)
