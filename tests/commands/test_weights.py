"""`convoy weights use` as it is typed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from convoy.commands import weights as command
from convoy.commands.weights import weights
from convoy.core.errors import NetworkError, RequestError


def test_the_network_is_that_of_params_unless_an_option_names_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def pin(*arguments: Any) -> list[str]:
        calls.append(arguments)
        return ["pinned", "Next: git add weights"]

    monkeypatch.setattr(command, "pin", pin)
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("name: convnet", "name: vgg16"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(weights, ["use", "imagenet"])
    assert first.output == "pinned\nNext: git add weights\n"
    CliRunner().invoke(weights, ["use", "imagenet", "--network", "resnet18"])
    assert calls == [("imagenet", "vgg16", tmp_path), ("imagenet", "resnet18", tmp_path)]


def test_help_has_an_example_and_the_forms_of_a_source() -> None:
    text = CliRunner().invoke(weights, ["use", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "Example: convoy weights use imagenet --network resnet18" in text
    assert "models:/NAME@ALIAS" in text


@pytest.mark.parametrize(
    ("source", "error", "code", "reason"),
    [
        ("imagnet", RequestError, 2, "did you mean `imagenet`"),
        ("../junk.pth", NetworkError, 1, "cannot be pinned"),
    ],
)
@pytest.mark.pipeline
def test_a_source_that_cannot_be_pinned_ends_with_the_exit_code_of_its_cause(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    error: type[RequestError | NetworkError],
    code: int,
    reason: str,
) -> None:
    root = tmp_path / "repository"
    (root / ".dvc").mkdir(parents=True)
    shutil.copy(repository / "params.yaml", root)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root)
    with pytest.raises(error, match=reason) as caught:
        typer.main.get_command(weights)(["use", source], standalone_mode=False)
    assert caught.value.exit_code == code
