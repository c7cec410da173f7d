"""Runs are named by what differs."""

from pathlib import Path

import pytest

from clones import Clone
from convoy.tracking.stages import run_name

COMMITTED = """\
seed: 1
data:
  image_px: 32
network:
  name: convnet
train:
  epochs: 10
  lr: 0.03
  weight_decay: 0.0005
  label_smoothing: 0.1
  augment: [crop]
export:
  latency_runs: 100
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a committed params.yaml, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(COMMITTED)
    for words in (
        ("init", "-q"),
        ("config", "user.name", "test"),
        ("config", "user.email", "test@example.invalid"),
        ("add", "-A"),
        ("commit", "-q", "-m", "params"),
    ):
        Clone(tmp_path).run("git", *words)
    return tmp_path


def change(repository: Path, **replaced: str) -> None:
    text = COMMITTED
    for key, value in replaced.items():
        [line] = [line for line in text.splitlines() if line.strip().startswith(f"{key}:")]
        text = text.replace(line, f"{line.partition(':')[0]}: {value}")
    (repository / "params.yaml").write_text(text)


def test_a_name_says_network_learning_rate_and_epochs(repository: Path) -> None:
    assert run_name("train") == "convnet · lr 0.03 · 10 epochs"
    change(repository, name="lenet5", lr="0.020", epochs="1")
    assert run_name("train") == "lenet5 · lr 0.02 · 1 epoch"


def test_a_name_says_what_else_differs_from_the_commit(repository: Path) -> None:
    change(repository, weight_decay="0.001", seed="2")
    assert run_name("train") == "convnet · lr 0.03 · 10 epochs · seed 2 · weight_decay 0.001"
    Clone(repository).run("git", "commit", "-q", "-am", "adopted")
    assert run_name("train") == "convnet · lr 0.03 · 10 epochs"


def test_a_name_stays_short_where_much_differs(repository: Path) -> None:
    change(repository, seed="2", image_px="64", weight_decay="0", label_smoothing="0", augment="[crop, flip]")
    assert (
        run_name("train") == "convnet · lr 0.03 · 10 epochs · seed 2 · image_px 64 · weight_decay 0 · 2 more"
    )
    change(repository, augment="[crop, flip, rotate, colour, erase]")
    assert run_name("train").endswith(" · augment crop+flip+rotate+colour…")
    change(repository, augment="[]")
    assert run_name("train").endswith(" · augment none")


def test_a_name_leaves_out_what_cannot_change_the_run(repository: Path) -> None:
    change(repository, latency_runs="10")
    assert run_name("train") == "convnet · lr 0.03 · 10 epochs"
    assert run_name("train", "export") == "convnet · lr 0.03 · 10 epochs · latency_runs 10"


@pytest.mark.parametrize("committed", ["", "a: b: c", "- 1"])
def test_a_commit_without_readable_params_leaves_the_first_words(repository: Path, committed: str) -> None:
    (repository / "params.yaml").write_text(committed)
    Clone(repository).run("git", "commit", "-q", "-am", "no params")
    change(repository, seed="2")
    assert run_name("train") == "convnet · lr 0.03 · 10 epochs"
