"""Runs as the stages write them, without MLflow: what is opened, continued and ended, and their names."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from convoy.core import params, yaml
from convoy.core.errors import NetworkError, TrainingPaused
from convoy.core.inputs import InputsChanged, watch
from convoy.repo import identity
from convoy.tracking import journal, outbox, settings, stages
from convoy.tracking.journal import FILE, read, state
from convoy.tracking.run import Reference, Run, flatten_metrics
from convoy.tracking.stages import run_name
from tracking_store import journal_folder, journal_state, trained

pytestmark = pytest.mark.usefixtures("workplace")


def entries(run: Run, kind: str) -> list[dict[str, Any]]:
    return [dict(entry) for entry, _ in read(journal_folder(run) / FILE) if entry.get("kind") == kind]


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every process be gone that a run names."""
    monkeypatch.setattr(identity, "is_alive", lambda owner: False)


def test_the_default_store_lies_in_the_repository_also_for_a_queued_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "real"))
    assert settings.uri() == f"sqlite:///{tmp_path}/real/mlflow.db"
    assert outbox.folder() == tmp_path / "real/outbox"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    assert settings.uri() == "http://127.0.0.1:5001"


def test_a_training_opens_a_run_with_name_and_origin_of_params_and_data():
    run = trained()
    [opened] = entries(run, "open")
    train = yaml.read(params.PARAMS_FILE)["train"]
    assert opened["name"] == f"convnet · lr {train['lr']} · {train['epochs']} epochs"
    tags = opened["tags"]
    assert tags["convoy.run_id"] == tags["convoy.training"] == run.reference.run_id
    assert tags["convoy.data_hash"] == "d" * 64
    assert tags["convoy.data"] == "digits b9657c7", "for people: its name and the start of its hash"
    assert tags["convoy.data_md5"].endswith(".dir")
    assert len(tags["convoy.params_hash"]) == 64
    assert journal_state(run).tags["convoy.stage"] == "train done"
    assert not journal_state(run).ended


def test_evaluate_continues_the_open_run_and_export_ends_it():
    first = trained()
    for stage in ("evaluate", "export"):
        with stages.continuing(stage, "d" * 64) as run:
            assert run.reference == first.reference
    assert journal_state(first).tags["convoy.stage"] == "export running"
    with stages.finishing("export") as run:
        pass
    assert run.reference == first.reference
    assert journal_state(run).ended == "FINISHED"
    names = {name for entry in entries(run, "params") for name in entry["params"]}
    assert {"train.lr", "evaluate.batch_size", "export.max_label_flips"} <= names


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("broken"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (TrainingPaused("later"), "SCHEDULED"),
    ],
)
@pytest.mark.parametrize("stage", ["train", "evaluate", "alone"])
def test_a_stage_that_fails_ends_the_run_with_the_status_of_its_error(stage, error, status):
    def work() -> None:
        if stage == "train":
            with stages.training("d" * 64):
                raise error
        if stage == "alone":
            with stages.standalone("trial 1", {}):
                raise error
        trained()
        with stages.continuing(stage, "d" * 64):
            raise error

    with pytest.raises(type(error)):
        work()
    [folder] = outbox.journals(Path("outbox"))
    assert state(folder).ended == status


def test_ctrl_c_that_a_library_turns_into_its_own_error_ends_the_run_as_killed(monkeypatch):
    monkeypatch.setattr(stages, "is_stopped", lambda: True)
    trained()
    with pytest.raises(NetworkError), stages.continuing("export", "d" * 64) as run:
        raise NetworkError("cannot be exported")
    assert journal_state(run).ended == "KILLED"


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_a_run_whose_stages_inputs_were_edited_is_failed_and_names_them(stage, monkeypatch):
    edited = InputsChanged(["train.lr: 0.03 → 0.1 (params.yaml)", "src/a.py (edited)"], "")
    if stage == "train":
        context = stages.training("d" * 64)
    else:
        trained()
        context = stages.continuing(stage, "d" * 64)
    if stage == "export":
        with context:
            pass
        context = stages.finishing(stage)
    monkeypatch.setattr(watch, "check", Mock(side_effect=edited))
    with pytest.raises(InputsChanged), context as run:
        pass
    assert journal_state(run).ended == "FAILED"
    tags = journal_state(run).tags
    assert tags["convoy.inputs_changed"] == "train.lr: 0.03 → 0.1 (params.yaml); src/a.py (edited)"
    assert tags["convoy.stage"] == f"{stage} running"


def test_a_training_that_continues_after_its_inputs_were_restored_clears_the_tag(monkeypatch):
    def edited(kept: str) -> None:
        raise InputsChanged(["seed: 1 → 2"], kept)

    with monkeypatch.context() as patch:
        patch.setattr(watch, "check", edited)
        with pytest.raises(InputsChanged, match=r"complete; its checkpoint and run") as caught:
            trained()
    [folder] = outbox.journals(Path("outbox"))
    assert folder.name in str(caught.value)
    with stages.training("d" * 64, folder.name) as again:
        pass
    assert again.reference.run_id == folder.name
    assert not journal_state(again).ended
    assert journal_state(again).tags["convoy.inputs_changed"] == "no"


@pytest.mark.parametrize("why", ["ended", "begun", "gone"])
def test_a_stage_that_cannot_continue_opens_another_run_with_the_same_training(why):
    with stages.training("d" * 64) as first:
        if why == "ended":
            first.end("FINISHED")
    if why == "begun":
        with stages.continuing("evaluate", "d" * 64) as begun:
            assert begun.reference == first.reference
    folder = journal_folder(first)
    if why == "gone":
        folder = folder.rename("delivered")
    before = (folder / FILE).read_bytes()
    with stages.continuing("evaluate", "d" * 64) as second:
        pass
    assert second.reference.training == first.reference.run_id
    assert second.reference.run_id != first.reference.run_id
    assert any("train.optimizer" in entry["params"] for entry in entries(second, "params"))
    assert (folder / FILE).read_bytes() == before, "a run was rewritten"


def attempt(stage: str, error: BaseException | None = None) -> Run:
    """Run a stage, which raises an error if there is one; `verify` is the second command of export."""
    context = stages.finishing("export") if stage == "verify" else stages.continuing(stage, "d" * 64)
    with suppress(type(error) if error else AssertionError), context as run:
        if error:
            raise error
    return run


@pytest.mark.parametrize(
    "error", [OSError(28, "full"), KeyboardInterrupt(), InputsChanged(["a"], "")], ids=repr
)
@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("failing", ["evaluate", "export", "verify"])
@pytest.mark.parametrize("trained_before", [False, True])
def test_a_stage_that_failed_continues_its_run(failing, delivered, error, trained_before):
    training = trained()
    if trained_before:  # the run that fails is another than that of the training, which came from DVC's cache
        journal.Journal(journal_folder(training)).append({"kind": "end", "status": "FINISHED"})
    order = ["evaluate", "export", "verify"]
    for stage in order[: order.index(failing)]:
        attempt(stage)
    first = attempt(failing, error)
    assert (first.reference == training.reference) != trained_before
    if delivered:
        shutil.rmtree(journal_folder(first))
    for stage in order[min(order.index(failing), 1) :]:  # DVC runs both commands of export again
        again = attempt(stage)
        assert again.reference == first.reference
    assert journal_state(again).ended == "FINISHED"
    assert journal_state(again).tags["convoy.inputs_changed"] == "no"
    names = {name for entry in entries(again, "params") for name in entry["params"]}
    assert ("train.lr" in names) != delivered, "the store has them"
    assert attempt("evaluate").reference != again.reference, "a finished run is never rewritten"


def test_a_stage_that_failed_with_other_params_opens_another_run_and_states_why(capsys):
    trained()
    first = attempt("evaluate", ValueError("broken"))
    text = params.PARAMS_FILE.read_text()
    params.PARAMS_FILE.write_text(text.replace("worst_images:", "worst_images: 3 #"))
    assert attempt("evaluate").reference != first.reference
    assert f"in run {first.reference.run_id} had other params" in capsys.readouterr().out


def test_a_run_in_which_another_process_works_on_the_stage_is_left_to_it():
    trained()
    with stages.continuing("evaluate", "d" * 64) as first:
        assert attempt("evaluate").reference != first.reference


def test_a_second_finish_opens_another_run_of_the_same_training():
    with stages.training("d" * 64) as first, stages.continuing("export", "d" * 64):
        pass
    for _ in range(2):
        with stages.finishing("export") as run:
            pass
    assert run.reference.run_id != first.reference.run_id
    assert run.reference.training == first.reference.run_id
    assert journal_state(first).ended == journal_state(run).ended == "FINISHED"


def test_the_second_command_of_export_without_the_first_is_refused_with_the_remedy():
    remedy = r"export\.json is missing.*dvc repro export"
    with pytest.raises(Exception, match=remedy), stages.finishing("export"):
        pass


def test_a_reference_has_run_and_training_and_one_of_an_earlier_version_is_read():
    run_id = trained().reference.run_id
    path = Path("build/runs/train.json")
    assert path.read_text() == f'{{\n  "run_id": "{run_id}",\n  "training": "{run_id}"\n}}\n'
    path.write_text('{"run_id": "a", "training": "b", "mlflow_run_id": "c"}')
    assert stages.latest(["train"]) == Reference("a", "b")


def test_a_run_that_mlflow_opened_is_joined_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    offered = []
    for _ in range(2):
        run = trained()
        offered += [entry["offered"] for entry in entries(run, "open")]
    assert offered == ["0" * 32, ""]


def test_a_trial_does_not_join_the_run_that_mlflow_opened_for_the_sweep(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with (
        stages.standalone("sweep", {"convoy.sweep": "s"}) as parent,
        stages.standalone("trial 0", {}, parent.reference) as trial,
    ):
        pass
    assert entries(parent, "open")[0]["offered"] == "0" * 32
    [opened] = entries(trial, "open")
    assert (opened["offered"], opened["parent"], opened["name"]) == ("", parent.reference.run_id, "trial 0")
    assert journal_state(trial).ended == journal_state(parent).ended == "FINISHED"
    assert entries(parent, "open")[0]["tags"]["convoy.sweep"] == "s"


def test_a_resumed_training_writes_to_its_own_journal(dead):
    with stages.training("d" * 64) as first:
        first.log_points([("train/loss", 1.0, 1, 5)])
        first.end("KILLED")
    with stages.training("d" * 64, resumed=first.reference.run_id) as again:
        assert not journal_state(again).ended
        again.log_points([("train/loss", 0.9, 1, 9), ("train/loss", 0.5, 2, 9)])
    assert again.reference == first.reference
    points = [point for entry in entries(again, "points") for point in entry["points"]]
    assert points == [["train/loss", 1.0, 1, 5], ["train/loss", 0.5, 2, 9]]
    assert [entry["resumed"] for entry in entries(again, "open")] == [False, True]
    assert not journal_state(again).remade


def test_a_training_resumed_after_its_journal_was_delivered_gets_a_new_journal():
    run = trained(resumed="20260101-000000-abcdef")
    assert run.reference == Reference("20260101-000000-abcdef", "20260101-000000-abcdef")
    assert journal_state(run).remade


def test_a_run_whose_process_is_gone_is_ended_by_the_next_that_opens(dead):
    between = trained()
    with stages.training("d" * 64) as inside:
        inside.set_tags({"convoy.stage": "train running"})
        inside.close()
    inside.close()
    assert journal_state(between).ended == "FINISHED"
    folder = journal_folder(inside)
    journal.Journal(folder).append({"kind": "tags", "tags": {"convoy.stage": "train running"}})
    os.utime(folder / FILE, (1e9, 1e9))
    alive = trained()
    assert journal_state(inside).ended == "KILLED"
    assert entries(inside, "end")[0]["time_ms"] == 1_000_000_000_000, "the last sign of life"
    assert not journal_state(alive).ended


def test_a_journal_of_another_host_is_left_to_it_while_it_is_written_to(dead, monkeypatch):
    run = trained()
    monkeypatch.setattr(identity, "host", lambda: "another")
    assert not outbox.close_orphans(Path("outbox"))
    os.utime(journal_folder(run) / FILE, (1e9, 1e9))
    assert outbox.close_orphans(Path("outbox")) == [run.reference.run_id]


def test_a_process_is_alive_only_if_it_is_the_same_one_and_no_zombie():
    owner = identity.process_tags()["convoy.owner"]
    assert identity.is_alive(owner)
    assert not identity.is_alive(f"{owner.partition(':')[0]}:1.00")
    assert not identity.is_alive("")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = identity.name(psutil.Process(child.pid))
    assert identity.is_alive(name)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.is_alive(name), "it is a zombie until it is waited for"
    child.wait()


def test_an_outbox_that_may_not_be_written_is_named_with_the_remedy_and_keeps_one_run_id(
    monkeypatch, capsys, workplace
):
    with monkeypatch.context() as patch:
        patch.setattr(stages, "Journal", Mock(side_effect=PermissionError(errno.EACCES, "denied")))
        with stages.training("d" * 64) as first:
            pass
        with stages.continuing("export", "d" * 64) as second:
            pass
    assert f'sudo chown -R "$USER" {workplace}/outbox' in capsys.readouterr().err
    with stages.finishing("export") as last:
        pass
    assert last.reference == second.reference == first.reference, "the model carries one id"
    assert journal_state(last).ended == "FINISHED"
    assert stages.latest(["export"]) == last.reference
    with stages.finishing("export") as again:
        pass
    assert again.reference.run_id != last.reference.run_id, "what is recorded and ended is not rewritten"


@pytest.mark.usefixtures("git")
def test_a_full_disk_is_reported_once_a_stage_and_stops_nothing(monkeypatch, capsys):
    def full(descriptor: int, line: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "_write", full)
    with stages.training("d" * 64) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
        run.log_file(params.PARAMS_FILE)
        with run.system_metrics():
            pass
    with stages.continuing("evaluate", "d" * 64) as second:
        assert second.reference.training == run.reference.run_id
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "is incomplete: [Errno 28]" in line] == lines
    assert len(lines) == 2, "once a stage"


@pytest.mark.usefixtures("git")
@pytest.mark.parametrize("part", ["the model", "the end of the attempt"])
def test_a_run_that_lacks_something_is_not_finished(monkeypatch, capsys, part):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "outbox")

    with stages.training("d" * 64) as run:
        pass
    Path("model.onnx").write_bytes(b"x")
    with stages.continuing("evaluate", "d" * 64):
        pass
    with stages.continuing("export", "d" * 64):
        pass
    with stages.finishing("export") as run:
        if part == "the model":
            monkeypatch.setattr(journal.Journal, "copy_in", refuse)
            run.log_onnx(Path("model.onnx"))
        else:
            monkeypatch.setattr(Path, "unlink", refuse)
    ended = journal_state(run)
    assert ended.ended == "FAILED"
    assert "Permission denied" in ended.tags["convoy.incomplete"]
    assert ended.tags["convoy.stage"] == "export done"
    assert capsys.readouterr().err.count("is incomplete: [Errno 13]") == 1


def test_metrics_flatten_to_where_and_what():
    nested = {"test": {"accuracy": 0.5, "passed": True, "note": "x"}}
    assert flatten_metrics(nested) == {"test/accuracy": 0.5}


def test_no_stage_imports_mlflow(repository, python):
    code = (
        "import runpy, sys; [runpy.run_path(path, run_name='imported') for path in sys.argv[1:]];"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'mlflow'))"
    )
    names = ("prepare", "train", "evaluate", "export", "repro")
    done = python("-c", code, *(str(repository / f"pipelines/{name}.py") for name in names))
    assert done.stdout == "[]\n"


WHOLE = """
import sys
sys.modules["mlflow"] = None  # an import of it fails
from pathlib import Path
from convoy.tracking import outbox, stages
outbox.start_uploader = lambda *_: None
outbox.WAIT_SECONDS = 0
with stages.training("d" * 64) as run:
    run.log_metrics({"train/loss": 1.0}, 1)
    run.log_points([("step/loss", 1.0, 1, 5)])
    run.log_file(Path("params.yaml"), "pipeline")
    with run.system_metrics():
        pass
with stages.continuing("export", "d" * 64) as run:
    pass
with stages.finishing("export") as run:
    run.log_onnx(Path("params.yaml"))
with stages.standalone("sweep", {}) as parent, stages.standalone("trial", {}, parent.reference) as trial:
    trial.log_params({"lr": 0.1})
print("done")
"""


def test_nothing_that_a_stage_calls_imports_mlflow(python):
    done = python("-c", WHOLE, check=False)
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


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
  augment: [{shift: {pixels: 2}}]
  transfer:
    freeze: 0
export:
  latency_runs: 100
"""


@pytest.fixture
def committed(workplace: Path, git: Callable[..., str]) -> Path:
    """A repository with a small committed params.yaml, which is the current folder."""
    (workplace / "params.yaml").write_text(COMMITTED)
    git("commit", "-q", "-am", "params")
    return workplace


def change(committed: Path, **replaced: str) -> None:
    text = COMMITTED
    for key, value in replaced.items():
        [line] = [line for line in text.splitlines() if line.strip().startswith(f"{key}:")]
        text = text.replace(line, f"{line.partition(':')[0]}: {value}")
    (committed / "params.yaml").write_text(text)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "convnet · lr 0.03 · 10 epochs"),
        ({"name": "lenet5", "lr": "0.020", "epochs": "1"}, "lenet5 · lr 0.02 · 1 epoch"),
        (
            {"weight_decay": "0.001", "seed": "2"},
            "convnet · lr 0.03 · 10 epochs · seed 2 · weight_decay 0.001",
        ),
        (
            {"seed": "2", "image_px": "64", "augment": "[]"}
            | dict.fromkeys(("weight_decay", "label_smoothing"), "0"),
            "convnet · lr 0.03 · 10 epochs · image_px 64 · seed 2 · weight_decay 0 · label_smoothing 0 · 1 more",
        ),
        (
            {"freeze": "inception_block_of_layers_4e"} | dict.fromkeys(("seed", "weight_decay"), "2"),
            "convnet · lr 0.03 · 10 epochs · freeze inception_block_of_layers_4e · seed 2 · weight_decay 2",
        ),
        (
            {"augment": "[{resized_crop: {scale: [0.3, 1.0]}}, flip, color_jitter]"},
            "convnet · lr 0.03 · 10 epochs · augment resized_crop+flip+color…",
        ),
        ({"augment": "[]"}, "convnet · lr 0.03 · 10 epochs · augment none"),
        ({"latency_runs": "10"}, "convnet · lr 0.03 · 10 epochs"),
    ],
)
def test_a_run_is_named_by_network_rate_epochs_and_uncommitted_params(committed, git, changed, name):
    change(committed, **changed)
    assert run_name("train") == name
    git("commit", "-q", "--allow-empty", "-am", "adopted")
    assert run_name("train").count("·") == 2


def test_the_name_of_an_experiment_comes_first_and_one_that_dvc_chose_last(committed, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "slow-lr")
    assert run_name("train") == "slow-lr · convnet · lr 0.03 · 10 epochs"
    monkeypatch.setenv("DVC_EXP_NAME", "oaken-pots")
    assert run_name("train") == "convnet · lr 0.03 · 10 epochs · oaken-pots"
    monkeypatch.setenv("DVC_EXP_NAME", "x" * 300)
    assert len(run_name("train")) == 250


def test_other_data_than_the_commits_are_named_by_their_source_or_hash(committed):
    pin = "deps:\n- path: {}\nouts:\n- md5: {}\n  path: data\n"
    before = Path("data.dvc").read_text()
    assert run_name("train").count("·") == 2
    Path("data.dvc").write_text(pin.format("https://host/a/photos.zip?sig=s3cret", "1234567890.dir"))
    assert run_name("train").endswith("epochs · data photos.zip")
    source = yaml.load(before)["deps"][0]["path"]
    Path("data.dvc").write_text(pin.format(source, "1234567890.dir"))
    assert run_name("train").endswith("epochs · data 1234567")


def test_a_name_has_the_params_of_the_given_stages(committed):
    change(committed, latency_runs="10")
    assert run_name("train", "export") == "convnet · lr 0.03 · 10 epochs · latency_runs 10"


@pytest.mark.parametrize("content", ["", "a: b: c", "- 1"])
def test_a_commit_without_readable_params_leaves_the_first_words(committed, git, content):
    (committed / "params.yaml").write_text(content)
    git("commit", "-q", "-am", "no params")
    change(committed, seed="2")
    assert run_name("train") == "convnet · lr 0.03 · 10 epochs"
