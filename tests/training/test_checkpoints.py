"""Checkpoints on disk: whole, checked, pruned, and used by one process at a time."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convoy.core import files
from convoy.core.errors import TrainingError
from convoy.training.checkpoints import CheckpointStore
from convoy.training.settings import CheckpointParams

INPUTS = "ab" * 32
LIMITS = CheckpointParams(every_s=1.0, keep=3, keep_days=30.0, time_budget_min=0.0)


def kept(root: Path, inputs: str = INPUTS) -> CheckpointStore:
    return CheckpointStore(root, inputs, LIMITS)


def save(there: CheckpointStore, step: int, *, finished: bool = False) -> None:
    there.save(
        lambda path: torch.save({"step": torch.tensor(step)}, path),
        run_id="run",
        epoch=1,
        step=step,
        finished=finished,
    )


def names(there: CheckpointStore) -> list[str]:
    return sorted(path.name for path in there.folder.glob("step-*"))


def test_the_newest_checkpoint_is_found_with_what_it_is(tmp_path):
    save(kept(tmp_path), 5)
    save(kept(tmp_path), 12)
    found = kept(tmp_path).newest()
    assert found.content["step"] == 12
    assert (found.note.step, found.note.run_id, found.note.inputs) == (12, "run", INPUTS)


def test_without_checkpoints_there_is_nothing_to_go_on_from(tmp_path, capsys):
    assert kept(tmp_path).newest() is None
    assert capsys.readouterr().out == ""


def test_two_checkpoints_are_kept_and_of_a_finished_training_one(tmp_path):
    for step in (1, 2, 3):
        save(kept(tmp_path), step)
    assert names(kept(tmp_path)) == [f"step-000000{n}.{end}" for n in (2, 3) for end in ("ckpt", "json")]
    save(kept(tmp_path), 3, finished=True)
    assert names(kept(tmp_path)) == ["step-0000003.ckpt", "step-0000003.json"]
    assert kept(tmp_path).newest().note.finished


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forget_the_note(path: Path) -> None:
    path.with_suffix(".json").unlink()


def garble_the_note(path: Path) -> None:
    path.with_suffix(".json").write_text('{"sha256": ')


def come_from_other_inputs(path: Path) -> None:
    note = path.with_suffix(".json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"inputs": "cd" * 32}))


def hold_code(path: Path) -> None:
    """Replace the content by a pickle that would run a command, with a note that vouches for it."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {path.parent}/pwned",)

    torch.save(Evil(), path)
    note = path.with_suffix(".json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sha256": files.sha256(path)}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, "it is truncated or damaged: its sha256 is not the one that was noted"),
        (flip_a_bit, "it is truncated or damaged: its sha256 is not the one that was noted"),
        (forget_the_note, "it was not written to its end"),
        (garble_the_note, r"step-0000002.json does not say what it is \("),
        (come_from_other_inputs, "it was made by other code, data or params"),
        (hold_code, rf"torch {re.escape(torch.__version__)} does not read it \("),
    ],
)
def test_a_checkpoint_that_may_not_be_used_is_refused_with_reason_and_the_one_before_taken(
    tmp_path, capsys, damage, why
):
    save(kept(tmp_path), 1)
    save(kept(tmp_path), 2)
    damage(kept(tmp_path).folder / "step-0000002.ckpt")
    found = kept(tmp_path).newest()
    said = capsys.readouterr().out
    assert re.search(rf"step-0000002\.ckpt is not used: {why}", said)
    assert "The one before it is taken: step 1." in said
    assert found.content["step"] == 1
    assert not list(tmp_path.rglob("pwned"))


def test_if_none_may_be_used_the_training_starts_anew_and_says_so(tmp_path, capsys):
    save(kept(tmp_path), 1)
    truncate(kept(tmp_path).folder / "step-0000001.ckpt")
    assert kept(tmp_path).newest() is None
    assert "No checkpoint is left that may be used: the training starts from its beginning." in (
        capsys.readouterr().out
    )


def test_a_write_that_fails_leaves_the_earlier_checkpoint_and_no_rest(tmp_path):
    save(kept(tmp_path), 1)

    def fail(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        kept(tmp_path).save(fail, run_id="run", epoch=1, step=2, finished=False)
    assert sorted(path.name for path in kept(tmp_path).folder.iterdir()) == [
        "step-0000001.ckpt",
        "step-0000001.json",
    ]
    assert kept(tmp_path).newest().note.step == 1


def test_a_process_that_trains_on_the_same_inputs_is_refused_and_told_which_one_does(tmp_path):
    with (
        kept(tmp_path).alone(),
        pytest.raises(TrainingError, match=rf"already: process {os.getpid()} on .* since .*type: dvc repro"),
        kept(tmp_path).alone(),
    ):
        pass


def test_a_dead_process_holds_no_lock(tmp_path):
    code = f"""
import time
from pathlib import Path
from convoy.training.checkpoints import CheckpointStore
from convoy.training.settings import CheckpointParams
with CheckpointStore(Path({str(tmp_path)!r}), {INPUTS!r}, CheckpointParams(every_s=1.0, keep=3, keep_days=30.0, time_budget_min=0.0)).alone():
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match=f"process {holder.pid} on"), kept(tmp_path).alone():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with kept(tmp_path).alone():
        pass


def test_other_trainings_are_pruned_by_number_and_by_age_but_not_one_at_work(tmp_path):
    now = time.time()
    for place, inputs in enumerate("cdefg"):
        other = kept(tmp_path, inputs * 64)
        save(other, 1)
        age = 31 * 86_400 if inputs == "c" else place * 60
        for path in (*other.folder.iterdir(), other.folder):
            os.utime(path, (now - age, now - age))
    mine, held = kept(tmp_path), kept(tmp_path, "g" * 64)
    with held.alone(), mine.alone():
        for path in (*held.folder.iterdir(), held.folder):
            os.utime(path, (now - 1e7, now - 1e7))
        mine.prune()
        left = sorted(path.name[0] for path in tmp_path.iterdir())
    # a is at work; d and e fill up the number to three; g is held; c is too old, f one too many.
    assert left == ["a", "d", "e", "g"]


def test_what_is_too_old_is_pruned_even_if_there_is_room(tmp_path):
    for inputs, days in (("c", 29), ("d", 31)):
        other = kept(tmp_path, inputs * 64)
        save(other, 1)
        for path in (*other.folder.iterdir(), other.folder):
            os.utime(path, (time.time() - days * 86_400,) * 2)
    with kept(tmp_path).alone():
        kept(tmp_path).prune()
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c"]


@pytest.mark.parametrize(("same", "recorded"), [(True, True), (False, False)])
def test_a_training_is_recorded_once_the_lock_has_its_reference(tmp_path, monkeypatch, same, recorded):
    monkeypatch.chdir(tmp_path)
    reference = Path("build/runs/train.json")
    reference.parent.mkdir(parents=True)
    reference.write_text('{"run_id": "a"}')
    there = kept(tmp_path / "checkpoints")
    save(there, 1, finished=True)
    assert not there.is_recorded(reference)
    there.note_result(reference)
    md5 = hashlib.md5(reference.read_bytes(), usedforsecurity=False).hexdigest() if same else "0" * 32
    Path("dvc.lock").write_text(
        json.dumps({"stages": {"train": {"outs": [{"path": reference.as_posix(), "md5": md5}]}}})
    )
    assert there.is_recorded(reference) is recorded
    there.clear()
    assert there.newest() is None
    assert not there.is_recorded(reference)
