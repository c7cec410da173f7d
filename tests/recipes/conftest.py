"""A copy of what recipes read and change, and their command."""

import shutil

import pytest
from typer.testing import CliRunner

from convoy.cli import app
from convoy.core.errors import ConvoyError


@pytest.fixture
def project(repository, tmp_path, monkeypatch):
    """The copy, as the current folder."""
    shutil.copy(repository / "params.yaml", tmp_path)
    for folder in ("networks", "recipes"):
        shutil.copytree(repository / folder, tmp_path / folder)
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run():
    """Run `convoy recipe`, and return what it prints."""

    def recipe(*words):
        result = CliRunner().invoke(app, ["recipe", *words])
        if isinstance(result.exception, ConvoyError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return recipe
