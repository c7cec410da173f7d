"""The picture of a sweep."""

from pathlib import Path

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.trial import TrialState

from convoy.sweep import plot
from convoy.sweep.results import Results
from convoy.sweep.study import Study


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    write = plot.figures.write

    def keep(figure: Figure, out: Path) -> Path:
        figures.append(figure)
        return write(figure, out)

    monkeypatch.setattr(plot.figures, "write", keep)
    return figures


def add(study: Study, lr: float, batch: int, value: float | None, state: TrialState) -> None:
    study.optuna.add_trial(
        optuna.trial.create_trial(
            state=state,
            value=value,
            params={"train.lr": lr, "train.batch_size": batch},
            distributions={one.key: one.distribution for one in study.request.space},
        )
    )


def test_history_importances_and_one_panel_per_key_are_drawn(here, drawn: list[Figure]) -> None:
    study = here.study()
    for place, lr in enumerate((0.01, 0.02, 0.05, 0.1, 0.2, 0.4)):
        add(study, lr, 8 if place % 2 else 16, 3 * lr, TrialState.COMPLETE)
    add(study, 0.3, 8, 2.0, TrialState.PRUNED)
    add(study, 0.35, 8, None, TrialState.FAIL)
    results = Results.of(study.request, study.trials())
    out = plot.draw(results, study.optuna, here.folder / "sweep.png")
    assert out.stat().st_size > 10_000
    history, weights, lr, batch = drawn[0].get_axes()
    labels = [text.get_text() for text in history.get_legend().get_texts()]
    assert labels == ["pruned", "complete", "best so far", "failed"]
    assert list(history.get_lines()[2].get_ydata()) == pytest.approx([0.03] * 6)
    assert [text.get_text() for text in weights.get_yticklabels()] == ["train.batch_size", "train.lr"]
    assert (lr.get_xscale(), lr.get_xlabel(), history.get_yscale()) == ("log", "train.lr", "log")
    assert [text.get_text() for text in batch.get_xticklabels()] == ["8", "16"]
    shares = plot.importances(study.optuna, results)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["train.lr"] > 0.8


def test_too_few_trials_have_no_importances(here, drawn: list[Figure]) -> None:
    study = here.study()
    add(study, 0.1, 8, 0.5, TrialState.COMPLETE)
    results = Results.of(study.request, study.trials())
    plot.draw(results, study.optuna, here.folder / "sweep.png")
    assert "too few completed trials" in [text.get_text() for text in drawn[0].get_axes()[1].texts]
