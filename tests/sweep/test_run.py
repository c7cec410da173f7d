"""`convoy sweep` as it is typed; trials run in this process."""

import json
import shutil
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from convoy import cli
from convoy.core import yaml
from convoy.core.console import info
from convoy.core.errors import ConvoyError, DataError, RequestError, TrainingError
from convoy.sweep import conflicts, run, worker
from convoy.sweep.request import Request
from convoy.sweep.study import Study


@pytest.fixture(autouse=True)
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run trials here: processes of their own take seconds to start (test_leader.py has them)."""

    def lead(study: Study, target: int, workers: int, parent: Any, show: Any) -> None:
        study.request.save(study.folder / "request.json")
        worker.main(study.folder, target, 1, {"run_id": parent.run_id, "training": parent.training})
        show.update(run.Results.of(study.request, study.trials()))

    def wait_until_uploaded(*_: object) -> dict[str, str]:
        info("deliver 3 run(s): 1 of 2 kB of entries")  # as it does where that takes long
        return {}

    monkeypatch.setattr(run, "lead", lead)
    monkeypatch.setattr(run.outbox, "wait_until_uploaded", wait_until_uploaded)


def convoy(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["sweep", *words])


def refused(kind: type[ConvoyError], *words: str) -> str:
    with pytest.raises(kind) as caught:
        typer.main.get_command(cli.app)(["sweep", *words], standalone_mode=False)
    return str(caught.value)


def test_each_trial_is_one_line_and_the_best_values_are_a_command(here) -> None:
    done = convoy("--trials", "2")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith(("trial 0  ", "trial 1  "))]
    assert len(lines) == 2
    assert "lr 0.1 · batch_size 16  complete" in lines[0]
    assert "train tiny" not in done.output
    best = run.Results.of(here.study().request, here.study().trials()).best
    assert (
        f"dvc exp run -S train.lr={best.values['train.lr']} -S train.batch_size={best.values['train.batch_size']}"
        in done.output
    )
    again = convoy()
    assert "2 of 4 trials are done; going on" in again.output


def test_no_trials_shows_what_is_there_and_makes_nothing(here) -> None:
    done = convoy("--trials", "0")
    assert done.exit_code == 0
    assert (
        "has no trial yet: train.lr 0.01 to 0.5, train.batch_size 8 | 16. Begin: convoy sweep" in done.output
    )
    assert not (here.folder / "sweeps").exists()


def test_json_is_all_that_standard_output_holds(here) -> None:
    done = convoy("--trials", "2", "--json")
    found = json.loads(done.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete"]
    assert found["best"] in found["trials"]
    assert (found["metric"], found["direction"]) == ("val/loss", "minimize")
    assert found["trials"][0]["values"] == {"train.lr": 0.1, "train.batch_size": 16}
    assert "trial 0" in done.stderr


def test_the_best_values_go_into_params_and_nothing_else_does(here) -> None:
    convoy("--trials", "3")
    best = here.results().best
    before = (here.folder / "params.yaml").read_text(encoding="utf-8")
    done = convoy("--trials", "0", "--apply")
    after = (here.folder / "params.yaml").read_text(encoding="utf-8")
    assert done.output.rstrip().endswith("Train with them: dvc repro")
    content = yaml.read(here.folder / "params.yaml")
    assert {key: yaml.get(content, key) for key in best.values} == best.values
    changed = [old for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert all(line.strip().startswith(("lr:", "batch_size:")) for line in changed)
    assert "holds the values of trial" in convoy("--trials", "0", "--apply").output


def test_nothing_is_applied_where_no_trial_is_complete(here) -> None:
    said = refused(RequestError, "--trials", "0", "--apply")
    assert "has no completed trial, so there is nothing to apply. Run some: convoy sweep" in said


def test_the_higher_accuracy_is_the_better_one(here) -> None:
    here.space("train.lr: [0.1, 0.000001]", metric="val/accuracy")
    convoy("--trials", "2")
    results = here.results()
    assert results.best.values == {"train.lr": 0.1}
    assert results.best.value > results.rows[1].value


def test_a_space_that_was_tried_whole_ends_the_sweep(here) -> None:
    here.space("train.batch_size: [8, 16]")
    done = convoy("--trials", "4")
    assert "2 trials: 2 complete, 0 pruned, 0 failed; all 2 combinations were tried" in done.output
    assert "going on" not in convoy("--trials", "4").output


def test_another_space_says_that_a_new_study_begins_and_why(here) -> None:
    convoy("--trials", "1")
    here.set(train__epochs=2)
    assert "a new study: params changed since sweeps/ was last added to" in convoy("--trials", "1").output


def test_no_dataset_says_how_to_make_it(here) -> None:
    shutil.rmtree(here.folder / "build")
    assert "dvc repro prepare" in refused(DataError)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["train.transfer.freeze: {low: 0, high: 1}"], "with freeze 1: train.transfer.freeze is 1, but network.weights is none"),
        (["train.transfer.batch_norm: [adapt, frozen]"], "with batch_norm frozen: train.transfer.batch_norm is frozen"),
        (["train.transfer.release: [0, {conv1: 1}]"], "with release {conv1: 1}: train.transfer.release: `conv1` is not frozen"),
    ],
)  # fmt: skip
def test_values_that_exclude_each_other_are_found_before_any_trial(
    here, lines: list[str], message: str
) -> None:
    here.space(*lines)
    said = refused(RequestError)
    assert "sweep.space allows what cannot be trained: " + message in said
    assert not (here.folder / "sweeps").exists()


def test_more_frozen_blocks_than_a_network_has_are_found_before_any_trial(here) -> None:
    here.space("train.transfer.freeze: {low: 0, high: 2}")
    request = Request.read()
    content = request.content | {"network": {"name": "tiny", "weights": "./best.ckpt"}}
    with pytest.raises(
        RequestError, match=r"with freeze 2: train\.transfer\.freeze: 2 holds all 2 blocks of tiny"
    ):
        conflicts.check(request.model_copy(update={"content": content}), 3, 8)


def test_a_sweep_whose_trials_all_fail_says_why_and_ends_with_1(here) -> None:
    (here.folder / "networks/large.yaml").write_text(
        "layers:\n  - conv: {filters: 8, kernel: 11}\n  - flatten\n  - dense: classes\n", encoding="utf-8"
    )
    here.set(network__name="large")
    with pytest.raises(
        TrainingError, match="every trial failed:\nlarge does not take images of 8 px"
    ) as caught:
        run.sweep(2, 1, into_params=False, as_json=False)
    assert caught.value.exit_code == 1


def test_a_full_disk_is_said_and_the_study_is_kept(here, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "lead", full)
    assert "is full. Make room. The study is kept; `convoy sweep` goes on with it." in refused(TrainingError)


def test_ctrl_c_says_how_to_go_on(here, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(study: Study, *_: object) -> None:
        study.ask(4)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "lead", stop)
        done = convoy()
    assert done.exit_code == 1
    assert "stopped. The study is kept; `convoy sweep` goes on with it." in done.stderr
    assert [trial.state.name for trial in here.study().trials()] == ["FAIL", "WAITING"]


def test_the_run_of_a_sweep_gathers_its_trials_and_goes_on_with_them(here) -> None:
    convoy("--trials", "2")
    study = here.study()
    first = study.optuna.user_attrs["run"]
    convoy("--trials", "5")
    assert study.optuna.user_attrs["run"] == first
    folders = sorted((here.folder / "outbox").glob("*/journal.jsonl"))
    assert len(folders) == 6
    entries = [
        json.loads(line)
        for line in (here.folder / "outbox" / first / "journal.jsonl").read_text().splitlines()
    ]
    points = [point for entry in entries if entry["kind"] == "points" for point in entry["points"]]
    last = {name: value for name, value, *_ in points}
    best = here.results().best
    assert last["sweep/best_value"] == best.value
    assert last["sweep/trials"] == 5
    tags = {
        key: value for entry in entries if entry["kind"] == "tags" for key, value in entry["tags"].items()
    }
    assert yaml.load(tags["best.train.lr"]) == best.values["train.lr"]
    kept = [entry for entry in entries if entry["kind"] == "files" and entry["folder"] == "sweep"]
    assert len(kept) == 6
