"""Checkpoints on disk: what they belong to; complete, checked, pruned, and used by one process at a time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convoy.core import files
from convoy.core.errors import TrainingError
from convoy.training.checkpoints import CheckpointStore, inputs_digest
from convoy.training.settings import CheckpointParams

INPUTS = "ab" * 32
LIMITS = CheckpointParams(every_s=1.0, keep=3, keep_days=30.0, time_budget_min=0.0)


def store(root: Path, inputs: str = INPUTS) -> CheckpointStore:
    return CheckpointStore(root, inputs, LIMITS)


def save(checkpoints: CheckpointStore, step: int, *, finished: bool = False) -> None:
    checkpoints.save(
        lambda path: torch.save({"step": torch.tensor(step)}, path),
        run_id="run",
        epoch=1,
        step=step,
        finished=finished,
    )


def names(checkpoints: CheckpointStore) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.glob("step-*"))


def test_the_newest_checkpoint_is_loaded_with_its_description(tmp_path):
    save(store(tmp_path), 5)
    save(store(tmp_path), 12)
    checkpoint = store(tmp_path).newest()
    assert checkpoint.content["step"] == 12
    assert (checkpoint.facts.step, checkpoint.facts.run_id, checkpoint.facts.inputs) == (12, "run", INPUTS)


def test_without_checkpoints_nothing_is_loaded_or_printed(tmp_path, capsys):
    assert store(tmp_path).newest() is None
    assert capsys.readouterr().out == ""


def test_two_checkpoints_are_kept_and_of_a_finished_training_one(tmp_path):
    for step in (1, 2, 3):
        save(store(tmp_path), step)
    assert names(store(tmp_path)) == [f"step-000000{n}.{end}" for n in (2, 3) for end in ("ckpt", "json")]
    save(store(tmp_path), 3, finished=True)
    assert names(store(tmp_path)) == ["step-0000003.ckpt", "step-0000003.json"]
    assert store(tmp_path).newest().facts.finished


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_description(path: Path, **changes: str) -> None:
    description = path.with_suffix(".json")
    description.write_text(json.dumps(json.loads(description.read_text()) | changes))


def hold_code(path: Path) -> None:
    """Replace the content by a pickle that would run a command, with a matching description."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {path.parent}/pwned",)

    torch.save(Evil(), path)
    change_description(path, sha256=files.sha256(path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated or damaged"),
        (flip_a_bit, "truncated or damaged"),
        (lambda path: path.with_suffix(".json").unlink(), "incomplete"),
        (
            lambda path: path.with_suffix(".json").write_text('{"sha256": '),
            "step-0000002.json does not describe it",
        ),
        (lambda path: change_description(path, note="?"), "step-0000002.json does not describe it"),
        (lambda path: change_description(path, inputs="cd" * 32), "made by other code, data or params"),
        (hold_code, f"torch {torch.__version__} cannot load it"),
    ],
)
def test_an_invalid_checkpoint_is_refused_with_the_reason_and_the_one_before_used(
    tmp_path, capsys, damage, reason
):
    save(store(tmp_path), 1)
    save(store(tmp_path), 2)
    damage(store(tmp_path).folder / "step-0000002.ckpt")
    checkpoint = store(tmp_path).newest()
    refused, used = capsys.readouterr().out.splitlines()
    assert "step-0000002.ckpt is not used" in refused
    assert reason in refused
    assert "step 1" in used
    assert checkpoint.content["step"] == 1
    assert not list(tmp_path.rglob("pwned"))


def test_if_no_checkpoint_is_valid_training_starts_from_the_beginning(tmp_path, capsys):
    save(store(tmp_path), 1)
    truncate(store(tmp_path).folder / "step-0000001.ckpt")
    assert store(tmp_path).newest() is None
    assert "starts from the beginning" in capsys.readouterr().out


def test_a_checkpoint_is_on_the_disk_before_its_name_and_description(tmp_path, monkeypatch):
    """After a power failure neither may exist for content that was never written."""
    synced = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), names(store(tmp_path))))

    monkeypatch.setattr(os, "fsync", fsync)
    save(store(tmp_path), 1)
    folder = store(tmp_path).folder.resolve()
    complete = ["step-0000001.ckpt", "step-0000001.json"]
    assert synced == [
        (str(folder / f".step-0000001.ckpt.{os.getpid()}"), []),
        (str(folder / "step-0000001.json"), complete),
        (str(folder), complete),
    ]


def test_a_write_that_fails_leaves_the_earlier_checkpoint_and_no_scratch_file(tmp_path):
    save(store(tmp_path), 1)

    def fail(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store(tmp_path).save(fail, run_id="run", epoch=1, step=2, finished=False)
    left = {path.name for path in store(tmp_path).folder.iterdir()}
    assert left == {"step-0000001.ckpt", "step-0000001.json"}
    assert store(tmp_path).newest().facts.step == 1


def test_a_second_process_on_the_same_inputs_is_refused_with_the_owner(tmp_path):
    with (
        store(tmp_path).exclusive(),
        pytest.raises(TrainingError, match=rf"process {os.getpid()} on \S+ since .*dvc repro") as caught,
        store(tmp_path).exclusive(),
    ):
        pass
    assert str(store(tmp_path).folder) in str(caught.value)


def test_a_dead_process_holds_no_lock(tmp_path):
    code = f"""
import time
from pathlib import Path
from convoy.training.checkpoints import CheckpointStore
with CheckpointStore(Path({str(tmp_path)!r}), {INPUTS!r}, None).exclusive():
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match=f"process {holder.pid} on"), store(tmp_path).exclusive():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with store(tmp_path).exclusive():
        pass


def make_old(checkpoints: CheckpointStore, seconds: float) -> None:
    when = time.time() - seconds
    for path in (*checkpoints.folder.iterdir(), checkpoints.folder):
        os.utime(path, (when, when))


def test_other_trainings_are_pruned_by_number_and_by_age_but_not_a_running_one(tmp_path):
    for age, inputs in enumerate("cdefg"):
        save(store(tmp_path, inputs * 64), 1)
        make_old(store(tmp_path, inputs * 64), 31 * 86_400 if inputs == "c" else age * 60)
    mine, running = store(tmp_path), store(tmp_path, "g" * 64)
    with running.exclusive(), mine.exclusive():
        make_old(running, 1e7)
        mine.prune()
        left = sorted(path.name[0] for path in tmp_path.iterdir())
    # a is this training; d and e make it three; g is locked; c is too old, f exceeds the number.
    assert left == ["a", "d", "e", "g"]


def test_checkpoints_that_are_too_old_are_pruned_even_within_the_number(tmp_path):
    for inputs, days in (("c", 29), ("d", 31)):
        save(store(tmp_path, inputs * 64), 1)
        make_old(store(tmp_path, inputs * 64), days * 86_400)
    with store(tmp_path).exclusive():
        store(tmp_path).prune()
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c"]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_training_is_repeated_once_dvc_has_recorded_its_result(tmp_path, monkeypatch, recorded):
    monkeypatch.chdir(tmp_path)
    reference = Path("build/runs/train.json")
    reference.parent.mkdir(parents=True)
    reference.write_text('{"run_id": "a"}')
    checkpoints = store(tmp_path / "checkpoints")
    save(checkpoints, 1, finished=True)
    assert checkpoints.resume(reference) is not None
    checkpoints.record_result(reference)
    md5 = hashlib.md5(reference.read_bytes(), usedforsecurity=False).hexdigest() if recorded else "0" * 32
    Path("dvc.lock").write_text(
        json.dumps({"stages": {"train": {"outs": [{"path": reference.as_posix(), "md5": md5}]}}})
    )
    assert checkpoints.is_recorded(reference) is recorded
    assert (checkpoints.resume(reference) is None) is recorded
    assert (checkpoints.newest() is None) is recorded


@pytest.fixture
def inputs(dataset, tiny, params, repository, monkeypatch, tmp_path) -> dict:
    """Arguments of `inputs_digest`, in a folder whose dvc.yaml lists two files of code."""
    monkeypatch.chdir(tmp_path)
    for name in ("src/fit.py", "pipelines/train.py", "networks/tiny.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("first")
    deps = "[build/dataset, src/fit.py, pipelines/train.py, networks/tiny.yaml]"
    Path("dvc.yaml").write_text(f"stages: {{train: {{deps: {deps}}}}}")
    return {"dataset": dataset, "spec": tiny, "starting": None, "train": params(), "seed": 1}


def test_equal_inputs_have_the_same_digest(inputs, params):
    assert inputs_digest(**inputs) == inputs_digest(**(inputs | {"train": params()}))
    assert len(inputs_digest(**inputs)) == 64


@pytest.mark.parametrize("key", ["dataset", "spec", "starting", "train", "seed"])
def test_every_input_changes_the_digest(inputs, stack, params, starting, key):
    other = {
        "dataset": replace(inputs["dataset"], hash="1" * 64),
        "spec": stack,
        "starting": starting(inputs["spec"]),
        "train": params(lr=0.2),
        "seed": 2,
    }
    assert inputs_digest(**inputs) != inputs_digest(**(inputs | {key: other[key]}))


@pytest.mark.parametrize("name", ["src/fit.py", "pipelines/train.py"])
def test_every_file_of_code_changes_the_digest(inputs, name):
    before = inputs_digest(**inputs)
    Path(name).write_text("second")
    assert inputs_digest(**inputs) != before


def test_every_file_of_a_folder_of_code_changes_the_digest(inputs):
    folder = Path("src/convoy/training")
    folder.mkdir(parents=True)
    Path("dvc.yaml").write_text(Path("dvc.yaml").read_text().replace("src/fit.py", str(folder)))
    (folder / "fit.py").write_text("first")
    before = inputs_digest(**inputs)
    (folder / "optim.py").write_text("second")
    assert inputs_digest(**inputs) != before
