"""Files of weights as others write them, good and bad."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy.core.errors import NetworkError
from convoy.training.weight_files import Facts, read

TENSORS = {"conv1.weight": torch.arange(6.0).view(2, 3), "conv1.bias": torch.ones(2)}
FACTS = {"classes": ["a"], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def save(content: object, **how: Any) -> Path:
        torch.save(content, tmp_path / "w.pth", **how)
        return tmp_path / "w.pth"

    return save


def prefixed(*prefixes: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"model": TENSORS, "epoch": 3},
        {"model_state_dict": TENSORS},
        prefixed("module."),
        {"state_dict": prefixed("model.network.")},
        {"state_dict": prefixed("model._orig_mod.")},
        {"state_dict": prefixed("_orig_mod.module.")},
        TENSORS | {"epoch": 3},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_found_wherever_checkpoints_keep_them(
    write: Callable[..., Path], content: object, *, zipped: bool
) -> None:
    found = read(write(content, _use_new_zipfile_serialization=zipped))
    assert list(found.tensors) == list(TENSORS)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert found.facts is None


def test_a_checkpoint_of_convoys_brings_its_facts_and_its_network_alone(write: Callable[..., Path]) -> None:
    state = prefixed("model.network.") | {"val_accuracy.tp": torch.zeros(1)}
    found = read(write({"state_dict": state, "convoy": json.dumps(FACTS | {"fit": "crop"})}))
    assert list(found.tensors) == list(TENSORS)
    assert found.facts == Facts(**FACTS)


def test_names_that_only_some_tensors_begin_with_are_kept(write: Callable[..., Path]) -> None:
    mixed = {"model.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert list(read(write(mixed)).tensors) == list(mixed)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [(Bomb(), r"posix\.mkdir"), ({"hyper": argparse.Namespace()}, r"argparse\.Namespace")],
)
def test_pickled_code_is_refused_by_name_and_never_runs(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, content: object, named: str, *, zipped: bool
) -> None:
    path = write({"conv1.weight": torch.zeros(1), "x": content}, _use_new_zipfile_serialization=zipped)
    monkeypatch.chdir(path.parent)
    with pytest.raises(
        NetworkError,
        match=rf"w\.pth holds pickled code \({named}\), which could run anything, and is not loaded \(weights_only\)"
        r"\. Save a network's tensors alone: torch\.save",
    ):
        read(path)
    assert not (path.parent / "exploded").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(NetworkError, match=r"w\.pkl holds a pickle of more than tensors.*weights_only"):
        read(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"<html>404</html>", bytes(range(1, 200))])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=r"w\.pth is no file of weights: torch\.load cannot read it"):
        read(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(write: Callable[..., Path], share: float, *, zipped: bool) -> None:
    path = write({"w": torch.zeros(5000)}, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        NetworkError,
        match=r"w\.pth is damaged or no file of weights: .+\nFetch it again .*: convoy weights use SOURCE",
    ):
        read(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"is damaged or no file of weights: .*Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "state_dict": {}}, r"holds no tensors \(its keys: epoch, state_dict\)"),
        ({}, r"holds no tensors \(its keys: none\)"),
        ({str(n): n for n in range(9)}, r"its keys: 0, 1, 2, 3, 4, …\)"),
        (torch.zeros(3), r"holds a Tensor, not tensors by name"),
    ],
)
def test_a_file_without_tensors_by_name_is_refused(
    write: Callable[..., Path], content: object, said: str
) -> None:
    with pytest.raises(NetworkError, match=said + r".* Save a network's tensors alone"):
        read(write(content))


@pytest.mark.parametrize("text", ["{", '{"classes": ["a"]}'])
def test_facts_that_cannot_be_read_are_refused(write: Callable[..., Path], text: str) -> None:
    with pytest.raises(
        NetworkError, match=r"w\.pth does not say classes, mean and std as Convoy writes them"
    ):
        read(write({"state_dict": TENSORS, "convoy": text}))
