"""A second training is compared with the run: to the bit, and with what may explain a difference."""

import shutil
from pathlib import Path

import pytest
import torch

from convoy.core import files
from convoy.lineage import verify
from convoy.lineage.runs import Record
from convoy.repo import dvc
from convoy.repo.dvc_cache import RestoreError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(3)}
PROOF = {
    "hardware": {"processor": "one", "system": "Linux x86_64", "cores": 2},
    "versions": {"torch": "2.14.1", "python": "3.11.7"},
}


def save(path: Path, **changes: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(WEIGHTS | {key.replace("_", "."): value for key, value in changes.items()}, path)
    return path


def test_equal_tensors_are_equal_in_whatever_file(tmp_path: Path) -> None:
    first = save(tmp_path / "1.pt")
    second = save(tmp_path / "2.pt", b_weight=torch.ones(1))
    torch.save(dict(reversed(WEIGHTS.items())), tmp_path / "3.pt")
    assert verify.compare_weights(first, tmp_path / "3.pt") == verify.Tensors(2, {})
    assert verify.compare_weights(first, second).differing == {"b.weight": float("inf")}


def test_tensors_differ_by_a_bit_a_type_or_a_shape(tmp_path: Path) -> None:
    first = save(tmp_path / "1.pt")
    weight = WEIGHTS["a.weight"].clone()
    weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(9.0))
    found = verify.compare_weights(first, save(tmp_path / "2.pt", a_weight=weight))
    assert found.differing == {"a.weight": pytest.approx(4.8e-7, rel=0.01)}
    assert verify.compare_weights(
        first, save(tmp_path / "2.pt", a_weight=WEIGHTS["a.weight"].double())
    ).differing == {"a.weight": 0.0}
    reshaped = verify.compare_weights(
        first, save(tmp_path / "2.pt", a_weight=WEIGHTS["a.weight"].reshape(3, 2))
    )
    assert reshaped.differing == {"a.weight": float("inf")}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `verify` reads of a restored clone."""
    folder = tmp_path / "clone"
    save(folder / verify.WEIGHTS)
    files.write_json(
        folder / verify.METRICS / "train.json", {"val": {"loss": 0.25}, "train": {"seconds": 9.0}}
    )
    files.write_json(folder / verify.PROOF, PROOF)
    files.write_text(folder / "dvc.lock", "as restored\n")
    files.write_text(folder / "params.yaml", "train: {precision: auto}\n")
    return folder


def run(metrics: dict[str, float]) -> Record:
    return Record("20261123-100000-aaaaaa", "", "name", "FINISHED", 0, {}, {}, metrics)


@pytest.fixture
def words(clone: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that DVC was given; none is run, and forcing the training changes the lock."""
    given: list[tuple[str, ...]] = []

    def note(folder: Path, *said: str) -> str:
        given.append(said)
        if "--force" in said and "train" in said:
            files.write_text(folder / "dvc.lock", "trained again\n")
        return ""

    monkeypatch.setattr(verify, "_dvc", note)
    monkeypatch.setattr(dvc, "run", note)
    return given


def test_a_training_that_comes_out_the_same_is_equal_whatever_time_it_took(
    clone: Path, words: list[tuple[str, ...]]
) -> None:
    found = verify.verify(clone, run({"val/loss": 0.25, "train/seconds": 3.0, "system/cpu": 1.0}))
    assert found.equal
    assert (found.compared, found.total) == (1, 2)
    assert "".join(verify.lines(found)).startswith("weights  equal to the bit: 2 tensors")
    assert words == [("repro", "--force", "--single-item", "train"), ("repro",), ("checkout", "--force")]
    assert (clone / "dvc.lock").read_text() == "as restored\n", "the run's outputs are back"


def test_what_differs_is_named_with_what_is_known_to_be_other(
    clone: Path, words: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, *said: str) -> None:
        save(folder / verify.WEIGHTS, a_weight=WEIGHTS["a.weight"] + 0.5)
        changed = {
            "hardware": PROOF["hardware"] | {"processor": "other"},
            "versions": PROOF["versions"] | {"torch": "2.11"},
        }
        files.write_json(folder / verify.PROOF, changed)

    monkeypatch.setattr(verify, "_dvc", train)
    found = verify.verify(clone, run({"val/loss": 0.5}))
    assert not found.equal
    text = "\n".join(verify.lines(found))
    assert "1 of 2 tensors differ, by up to 0.5: a.weight" in text
    assert "val/loss  0.5 → 0.25" in text
    assert "processor: one → other" in text
    assert "torch 2.14.1 → 2.11; the clone's requirements.txt is the lock of then" in text
    assert "train.precision is auto" in text


def test_a_training_that_fails_leaves_the_clone_and_says_so(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify.sys, "executable", shutil.which("false"))
    with pytest.raises(
        RestoreError, match=r"`dvc repro --force --single-item train` failed in .*The clone is kept"
    ):
        verify.verify(clone, run({}))
    assert (clone / verify.WEIGHTS).exists()
