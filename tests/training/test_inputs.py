"""What makes two trainings the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from convoy.training.inputs import digest


@pytest.fixture
def given(dataset, tiny, params, starting, repository, monkeypatch, tmp_path) -> dict:
    """Work where dvc.yaml lists two files of code."""
    monkeypatch.chdir(tmp_path)
    for name in ("src/fit.py", "pipelines/train.py", "networks/tiny.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("first")
    deps = "[build/dataset, src/fit.py, pipelines/train.py, networks/tiny.yaml]"
    Path("dvc.yaml").write_text(f"stages: {{train: {{deps: {deps}}}}}")
    return {"dataset": dataset, "spec": tiny, "starting": None, "train": params(), "seed": 1}


def test_equal_inputs_have_one_digest_wherever_they_lie(given, params):
    assert digest(**given) == digest(**(given | {"train": params()}))
    assert len(digest(**given)) == 64


@pytest.mark.parametrize("key", ["dataset", "spec", "starting", "train", "seed"])
def test_every_input_counts(given, stack, params, starting, key):
    other = {
        "dataset": replace(given["dataset"], hash="1" * 64),
        "spec": stack,
        "starting": starting(given["spec"]),
        "train": params(lr=0.2),
        "seed": 2,
    }
    assert digest(**given) != digest(**(given | {key: other[key]}))


@pytest.mark.parametrize("name", ["src/fit.py", "pipelines/train.py"])
def test_the_code_that_trains_counts(given, name):
    before = digest(**given)
    Path(name).write_text("second")
    assert digest(**given) != before


def test_every_file_of_a_folder_of_code_counts(given):
    folder = Path("src/convoy/training")
    folder.mkdir(parents=True)
    text = Path("dvc.yaml").read_text().replace("src/fit.py", "src/convoy/training")
    Path("dvc.yaml").write_text(text)
    (folder / "fit.py").write_text("first")
    before = digest(**given)
    (folder / "optim.py").write_text("second")
    assert digest(**given) != before
