"""Optuna's pictures of a sweep."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from optuna.trial import TrialState

from convoy.sweep import results
from convoy.sweep.study import Request


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    write = results.figures.write

    def keep(figure: Figure, out: Path) -> Path:
        figures[out.name] = figure
        return write(figure, out)

    monkeypatch.setattr(results.figures, "write", keep)
    return figures


def test_history_importances_and_slices_are_drawn(project, figures):
    study = project.study()
    for index, lr in enumerate((0.01, 0.05, 0.1, 0.4)):
        project.add(study, {"train.lr": lr, "train.batch_size": "8" if index % 2 else "16"}, value=3 * lr)
    project.add(study, {"train.lr": 0.3, "train.batch_size": "8"}, value=2.0, state=TrialState.PRUNED)
    project.add(study, {"train.lr": 0.35, "train.batch_size": "8"}, state=TrialState.FAIL)
    paths = results.plots(study, Request.read(), project.folder)
    assert {path.name for path in paths} == {"history.png", "importances.png", "slices.png"}
    assert all(path.stat().st_size > 5_000 for path in paths)
    [history] = figures["history.png"].get_axes()
    assert (history.get_ylabel(), history.get_yscale()) == ("val/loss", "log")
    bars = figures["importances.png"].get_axes()[0]
    assert {text.get_text() for text in bars.get_yticklabels()} == {"train.batch_size", "train.lr"}
    slices = figures["slices.png"].get_axes()[:2]
    assert {axes.get_xlabel() for axes in slices} == {"train.batch_size", "train.lr"}


def test_too_few_trials_have_no_importances(project):
    study = project.study()
    for lr in (0.1, 0.2, 0.3):
        project.add(study, {"train.lr": lr, "train.batch_size": "8"}, value=lr)
    paths = results.plots(study, Request.read(), project.folder)
    assert {path.name for path in paths} == {"history.png", "slices.png"}


def test_a_baseline_outside_the_space_is_no_point_of_the_slices_and_counts_for_no_importance(
    project, figures
):
    project.set(train__lr=0.9)
    study = project.study()
    baseline = study.ask()
    baseline.suggest_categorical("train.batch_size", ["8", "16"])
    study.tell(baseline, 0.5)
    for lr in (0.1, 0.2, 0.3):
        project.add(study, {"train.lr": lr, "train.batch_size": "8"}, value=lr)
    assert "importances.png" not in {
        path.name for path in results.plots(study, Request.read(), project.folder)
    }
    project.add(study, {"train.lr": 0.4, "train.batch_size": "16"}, value=0.4)
    assert "importances.png" in {path.name for path in results.plots(study, Request.read(), project.folder)}
    bars = figures["importances.png"].get_axes()[0]
    assert {text.get_text() for text in bars.get_yticklabels()} == {"train.batch_size", "train.lr"}
