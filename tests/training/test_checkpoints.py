"""Checkpoints: what they belong to; complete, checked, pruned, used by one process; a killed run resumes exactly."""

import hashlib
import itertools
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch

from convoy.core import files
from convoy.core.errors import TrainingError, TrainingPaused
from convoy.core.inputs import InputsChanged, watch
from convoy.training import checkpoints, prefetch
from convoy.training.checkpoints import (
    COST,
    CheckpointCallback,
    CheckpointStore,
    DirectIO,
    inputs_digest,
    random_states,
    restore_random_states,
)
from convoy.training.fit import fit
from convoy.training.optim import WARMUP_START
from convoy.training.settings import CheckpointParams

INPUTS = "ab" * 32
LIMITS = CheckpointParams(every_s=1.0, keep=3, keep_days=30.0, time_budget_min=0.0)


def store(root, inputs=INPUTS):
    return CheckpointStore(root, inputs, LIMITS)


def save(checkpoints, step, *, finished=False, write=None):
    write = write or (lambda path: torch.save({"step": torch.tensor(step)}, path))
    checkpoints.save(write, run_id="run", epoch=1, step=step, finished=finished)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.glob("step-*"))


def test_the_newest_checkpoint_is_loaded_with_its_description(tmp_path):
    save(store(tmp_path), 5)
    save(store(tmp_path), 12)
    checkpoint = store(tmp_path).newest()
    assert checkpoint.content["step"] == 12
    assert (checkpoint.facts.step, checkpoint.facts.run_id, checkpoint.facts.inputs) == (12, "run", INPUTS)
    assert checkpoint.facts.threads == torch.get_num_threads()
    assert store(tmp_path, "cd" * 32).newest() is None


def test_two_checkpoints_are_kept_and_of_a_finished_training_one(tmp_path):
    for step in (1, 2, 3):
        save(store(tmp_path), step)
    assert names(store(tmp_path)) == [f"step-000000{n}.{end}" for n in (2, 3) for end in ("ckpt", "json")]
    save(store(tmp_path), 3, finished=True)
    assert names(store(tmp_path)) == ["step-0000003.ckpt", "step-0000003.json"]
    assert store(tmp_path).newest().facts.finished


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def describe(path, **changes):
    description = path.with_suffix(".json")
    description.write_text(json.dumps(json.loads(description.read_text()) | changes))


def hold_code(path):
    """Replace the content by a pickle that would run a command, with a matching description."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {path.parent}/pwned",)

    torch.save(Evil(), path)
    describe(path, sha256=files.sha256(path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated or damaged"),
        (flip_a_bit, "truncated or damaged"),
        (lambda path: path.with_suffix(".json").unlink(), "incomplete"),
        (
            lambda path: path.with_suffix(".json").write_text('{"sha'),
            "step-0000002.json does not describe it",
        ),
        (lambda path: describe(path, note="?"), "step-0000002.json does not describe it"),
        (lambda path: describe(path, inputs="cd" * 32), "made by other code, data or params"),
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
    truncate(store(tmp_path).folder / "step-0000001.ckpt")
    assert store(tmp_path).newest() is None
    assert "starts from the beginning" in capsys.readouterr().out


def test_a_checkpoint_is_on_the_disk_before_its_name_and_description(tmp_path, monkeypatch):
    """After a power failure neither may exist for content that was never written."""
    synced = []
    real = os.fsync

    def fsync(handle):
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

    def fail(path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save(store(tmp_path), 2, write=fail)
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


def make_old(checkpoints, seconds):
    when = time.time() - seconds
    for path in (*checkpoints.folder.iterdir(), checkpoints.folder):
        os.utime(path, (when, when))


@pytest.mark.parametrize(
    ("ages_days", "left"),
    [
        ({"c": 0.1, "d": 0.2, "e": 0.3, "f": 0.4}, "acd"),  # with this training, three are kept
        ({"c": 29, "d": 31}, "ac"),
    ],
)
def test_other_trainings_are_pruned_by_number_and_by_age(tmp_path, ages_days, left):
    for inputs, days in ages_days.items():
        save(store(tmp_path, inputs * 64), 1)
        make_old(store(tmp_path, inputs * 64), days * 86_400)
    with store(tmp_path).exclusive():
        store(tmp_path).prune()
    assert "".join(sorted(path.name[0] for path in tmp_path.iterdir())) == left


def test_a_running_training_is_not_pruned(tmp_path):
    save(store(tmp_path, "g" * 64), 1)
    with store(tmp_path, "g" * 64).exclusive(), store(tmp_path).exclusive():
        make_old(store(tmp_path, "g" * 64), 1e7)
        store(tmp_path).prune()
    assert store(tmp_path, "g" * 64).newest() is not None


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
    outs = [{"path": reference.as_posix(), "md5": md5}]
    Path("dvc.lock").write_text(json.dumps({"stages": {"train": {"outs": outs}}}))
    assert (checkpoints.resume(reference) is None) is recorded
    assert (checkpoints.newest() is None) is recorded
    save(checkpoints, 2)
    assert checkpoints.resume(reference) is not None, "the repeated training resumes too"


@pytest.fixture
def inputs(dataset, tiny, params, monkeypatch, tmp_path):
    """Arguments of `inputs_digest`, in a folder whose dvc.yaml lists two files and a folder of code."""
    monkeypatch.chdir(tmp_path)
    for name in ("src/fit.py", "src/convoy/training/optim.py", "pipelines/train.py", "networks/tiny.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("first")
    deps = "build/dataset, src/fit.py, src/convoy/training, pipelines/train.py, networks/tiny.yaml"
    Path("dvc.yaml").write_text(f"stages: {{train: {{deps: [{deps}]}}}}")
    return {"dataset": dataset, "spec": tiny, "starting": None, "train": params(), "seed": 1}


@pytest.mark.parametrize("key", ["dataset", "spec", "starting", "train", "seed", "teacher"])
def test_every_input_changes_the_digest(inputs, stack, params, starting, key):
    other = {
        "dataset": replace(inputs["dataset"], hash="1" * 64),
        "spec": stack,
        "starting": starting(inputs["spec"]),
        "train": params(lr=0.2),
        "seed": 2,
        "teacher": SimpleNamespace(sha256="1" * 64),
    }
    digest = inputs_digest(**inputs)
    assert digest == inputs_digest(**(inputs | {"train": params()}))
    assert digest != inputs_digest(**(inputs | {key: other[key]}))


@pytest.mark.parametrize("name", ["src/fit.py", "src/convoy/training/optim.py", "pipelines/train.py"])
def test_every_file_of_code_changes_the_digest(inputs, name):
    before = inputs_digest(**inputs)
    Path(name).write_text("second")
    assert inputs_digest(**inputs) != before


def test_the_digest_is_of_the_code_at_the_start_of_the_stage(inputs):
    """Edited while torch is imported, the code would else make a checkpoint that restored code does not find."""
    Path("params.yaml").write_text("seed: 1")
    before = inputs_digest(**inputs)
    with suppress(InputsChanged), watch.held("train"):
        Path("src/fit.py").write_text("second")
        assert inputs_digest(**inputs) == before
    assert inputs_digest(**inputs) != before


HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_validation_start", "on_validation_batch_end",
         "on_validation_end", "on_train_epoch_end")  # fmt: skip


class Kill(BaseException):
    """The end of a process: nothing in the code under test catches it."""


class KillAt(pl.Callback):
    """Die at the n-th call of any hook of a training."""

    def __init__(self, call):
        self.left = call

    def count(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise Kill


for hook in HOOKS:
    setattr(KillAt, hook, KillAt.count)


class Journal:
    """Take points as the journal of a run does: once for each name and step."""

    def __init__(self):
        self.points: dict[tuple[str, int], float] = {}
        self.offered: list[tuple[str, int]] = []

    def publish(self, points):
        self.offered += [(point.name, point.step) for point in points]
        for point in points:
            self.points.setdefault((point.name, point.step), point.value)


COSINE = {"epochs": 4, "schedule": "cosine", "optimizer": "adamw", "lr": 0.01, "early_stop": 1}
TRANSFER = {"freeze": "residual1", "release": 1, "lr_factor": 0.5, "batch_norm": "frozen"}
PLANS = {
    "average of weights": {"epochs": 3, "ema": 0.9},
    "cosine, adamw, early stop": COSINE,
    "transfer": {"epochs": 3, "ema": 0.5, "transfer": TRANSFER},
    "whitening and stochastic depth": {"epochs": 2, "ema": 0.5},
}


def assert_equal(actual, expected):
    for name in ("weights.pt", "model.json", "history.csv"):
        assert (actual / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.fixture
def run(dataset, tiny, params, tmp_path, resumable):
    """Train into the folder of a name, with checkpoints beside it; keywords are those of params or `resumable`."""

    def run(name, *callbacks, journal=None, plan=None, folder=None, spec=tiny, starting=None, **limits):
        make = resumable((journal or Journal()).publish, folder=folder or f"{name}-checkpoints", **limits)
        how = {"starting": starting, "callbacks": callbacks, "resumable": make}
        return fit(dataset, spec, params(**(plan or {})), 1, tmp_path / name, **how)

    return run


@pytest.mark.parametrize("plan", PLANS)
def test_a_training_that_is_killed_often_ends_with_identical_results(
    run, stack, whitened, starting, tmp_path, plan
):
    how = {"plan": PLANS[plan]}
    if plan == "transfer":
        how |= {"spec": stack, "starting": starting(stack)}
    if plan == "whitening and stochastic depth":
        how["spec"] = whitened
    whole, broken = Journal(), Journal()
    expected = run("whole", journal=whole, **how)
    for call in [7, 3, 9, 1, 5, 12, 2]:
        with suppress(Kill):
            result = run("broken", KillAt(call), journal=broken, **how)
            break  # the training ended before that call
    else:
        result = run("broken", journal=broken, **how)
    del expected["train"]["seconds"], result["train"]["seconds"]
    assert result == expected
    assert_equal(tmp_path / "broken", tmp_path / "whole")
    assert broken.points == whole.points
    assert len(whole.offered) == len(set(whole.offered)), "no point twice"


def test_a_training_killed_at_any_call_ends_with_identical_results(run, tmp_path, monkeypatch):
    plan, whole = {"epochs": 2, "ema": 0.9, "batch_size": 24}, Journal()
    run("whole", journal=whole, plan=plan)
    monkeypatch.setattr(
        prefetch, "THREADED", frozenset({"cpu", "cuda"})
    )  # batches were prepared in turn before
    for call in itertools.count():
        broken, name = Journal(), f"killed-{call}"
        try:
            run(name, KillAt(call), journal=broken, plan=plan)
            break  # there are not as many calls
        except Kill:
            run(name, journal=broken, plan=plan)
        assert_equal(tmp_path / name, tmp_path / "whole")
        assert broken.points == whole.points
    assert call > 2 * (2 + 2 + 3), "every batch, validation and end of an epoch was an occasion"


def test_what_an_older_checkpoint_computes_again_is_published_once_and_equal(run, tmp_path, capsys):
    """The newest checkpoint may be damaged: its points were published, and cannot be taken back."""
    whole, broken = Journal(), Journal()
    run("whole", journal=whole)
    with pytest.raises(Kill):
        run("broken", KillAt(12), journal=broken)
    truncate(max((tmp_path / "broken-checkpoints").rglob("step-*.ckpt")))
    capsys.readouterr()
    run("broken", journal=broken)
    assert_equal(tmp_path / "broken", tmp_path / "whole")
    assert broken.points == whole.points
    printed = capsys.readouterr().out
    assert re.search(r"Resuming from epoch 2, step 3 \(.*step-0000003\.ckpt\)", printed)
    assert "epoch 1/2" not in printed
    assert "epoch 2/2" in printed


def test_a_finished_training_is_not_repeated_and_reports_the_very_same(run, tmp_path, capsys):
    how = {"plan": {"epochs": 3, "ema": 0.9}, "folder": "checkpoints"}
    first = run("first", **how)
    capsys.readouterr()
    assert run("again", KillAt(0), **how) == first, "the seconds too"
    assert "already complete (step" in capsys.readouterr().out
    assert_equal(tmp_path / "again", tmp_path / "first")


def test_a_spent_time_budget_saves_and_names_the_step_to_resume_from(run, tmp_path):
    run("whole")
    for epoch, step in ((1, 2), (1, 3), (2, 1)):
        where = rf"checkpoints\.time_budget_min \(1\).*dvc repro.*epoch {epoch} of 2, step {step} of 3"
        with pytest.raises(TrainingPaused, match=where):
            run("paused", time_budget_min=1.0, spent_s=61, every_s=3600.0)
    run("paused", time_budget_min=1.0, spent_s=30)  # minutes, not seconds
    assert_equal(tmp_path / "paused", tmp_path / "whole")


def test_a_training_killed_in_its_second_epoch_resumes_there_whatever_the_interval(run, tmp_path, capsys):
    run("whole")
    with pytest.raises(Kill):
        run("killed", KillAt(12), every_s=3600.0)
    capsys.readouterr()
    run("killed", every_s=3600.0)
    assert "Resuming from epoch 2, step 3" in capsys.readouterr().out
    assert_equal(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("write_s", "epoch_s", "saves"), [(1.0, 1.0, 6), (1.0, 5.0, 25), (0.01, 1.0, 99), (1.0, 60.0, 99)]
)
def test_checkpoints_at_the_ends_of_short_epochs_take_a_twentieth_of_the_time(
    monkeypatch, write_s, epoch_s, saves
):
    now = 0.0

    def write(*_, **__):
        nonlocal now
        now += write_s
        return True

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    target = Mock(save=Mock(side_effect=write), params=LIMITS.model_copy(update={"every_s": 3600.0}))
    callback = CheckpointCallback(Mock(store=target), Mock(), Mock())
    trainer = Mock(max_epochs=101, should_stop=False)
    for epoch in range(100):
        now += epoch_s
        trainer.current_epoch = epoch
        callback.on_train_epoch_end(trainer)
    assert abs(target.save.call_count - saves) <= 1
    assert target.save.call_args_list[0].kwargs["epoch"] == 2, "the first epoch's end has one"
    assert (target.save.call_count - 1) * write_s <= COST * now


def test_an_earlier_attempt_without_a_checkpoint_is_named(tmp_path, capsys):
    reference = tmp_path / "reference.json"
    assert store(tmp_path).resume(reference) is None
    assert capsys.readouterr().out == "", "the first attempt"
    store(tmp_path).begin("20261123-100000-aaaaaa")
    assert store(tmp_path).resume(reference) is None
    printed = capsys.readouterr().out
    assert "run 20261123-100000-aaaaaa) left no checkpoint" in printed
    assert "starts from the beginning" in printed
    save(store(tmp_path), 1)
    assert store(tmp_path).resume(reference).facts.step == 1
    assert capsys.readouterr().out == ""


def test_points_are_published_only_with_a_checkpoint_that_comes_after_them(run):
    journal = Journal()
    with pytest.raises(Kill):
        run("model", KillAt(5), journal=journal, every_s=60.0)
    assert not journal.points
    run("model", journal=journal, every_s=60.0)
    assert {step for name, step in journal.points if name == "step/loss"} == set(range(1, 7))
    assert {step for name, step in journal.points if name == "val/loss"} == {1, 2}
    rate = journal.points["step/lr", 1]
    assert rate == pytest.approx(0.1 * WARMUP_START), "the rate that the step was done with"


def test_a_full_disk_stops_no_training_and_is_reported_once(run, tmp_path, on, monkeypatch, capsys):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(DirectIO, "save_checkpoint", Mock(side_effect=full))
    journal = Journal()

    def look(*_):
        assert not journal.points, "what no checkpoint holds may be computed again"

    run("model", on("on_train_end", look), journal=journal)
    assert ("val/loss", 2) in journal.points, "nothing is computed again"
    printed = capsys.readouterr().out
    assert printed.count("The checkpoint could not be written to") == 1
    assert "No space left on device" in printed
    assert not list((tmp_path / "model-checkpoints").rglob("*.ckpt*"))
    assert (tmp_path / "model/weights.pt").exists()


@pytest.mark.parametrize(("devices", "restored"), [(2, True), (1, False)])
def test_the_random_states_of_as_many_gpus_are_restored(monkeypatch, devices, restored):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["first", "second"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    set_states = Mock()
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", set_states)
    restore_random_states(random_states())
    assert [call.args for call in set_states.mock_calls] == [(["first", "second"],)] * restored
