"""Draw a sweep: how it got better, what mattered, and where in each range the good values lie."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from convoy.core import yaml
from convoy.explain import figures
from convoy.sweep.results import Results, Row
from convoy.sweep.space import Dimension

BLUE, GREY, RED = "#1f6fb4", "#9aa0a6", "#c0392b"
COLUMNS = 4
"""Panels of single keys in one row."""

ENOUGH = 4
"""Completed trials from which importances are computed; of fewer they would be noise alone."""


def draw(results: Results, study: optuna.Study, out: Path) -> Path:
    """Draw history, importances and one panel per key.

    Raises:
        RequestError: the picture cannot be written.
    """
    space = results.request.space
    rows = -(-len(space) // COLUMNS)
    figure = Figure(figsize=(11, 3.4 + 2.6 * rows), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.4, 2.6 * rows])
    top, bottom = parts
    history, weights = top.subplots(1, 2, width_ratios=[3, 2])
    _history(history, results)
    _importances(weights, importances(study, results))
    places = bottom.subplots(rows, min(COLUMNS, len(space)), squeeze=False, sharey=True)
    for place, one in zip(places.flat, space, strict=False):
        _slice(place, one, results)
    for place in places.flat[len(space) :]:
        place.set_axis_off()
    bottom.suptitle("Each key; the best trial is circled")
    for place in places[:, 0]:
        place.set_ylabel(results.request.sweep.metric)
    return figures.write(figure, out)


def importances(study: optuna.Study, results: Results) -> dict[str, float]:
    """Share the spread of completed values out to the keys (fANOVA); empty where there are too few."""
    complete = [trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    if len(complete) < ENOUGH or len(set(complete)) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = FanovaImportanceEvaluator(seed=results.request.seed)
        return get_param_importances(study, evaluator=evaluator)


def _history(place: Axes, results: Results) -> None:
    for state, color, mark in (("pruned", GREY, "x"), ("complete", BLUE, "o")):
        rows = _of(results, state)
        place.plot([row.number for row in rows], _values(rows), mark, color=color, label=state)
    complete = _of(results, "complete")
    better = np.maximum if results.request.direction == "maximize" else np.minimum
    best = better.accumulate(_values(complete))
    place.step([row.number for row in complete], best, where="post", color=RED, label="best so far")
    failed = _of(results, "failed")
    if failed:
        foot = [0.02] * len(failed)
        place.plot(
            [row.number for row in failed],
            foot,
            "|",
            color=RED,
            transform=place.get_xaxis_transform(),
            label="failed",
        )
    _scale(place, results)
    place.set(xlabel="trial", ylabel=results.request.sweep.metric, title="History")
    place.xaxis.set_major_locator(MaxNLocator(integer=True))
    place.legend(fontsize="small")


def _importances(place: Axes, shares: dict[str, float]) -> None:
    place.set_title("Importance (fANOVA over completed trials)")
    if not shares:
        place.text(0.5, 0.5, "too few completed trials", ha="center", transform=place.transAxes)
        place.set_axis_off()
        return
    names = list(reversed(shares))
    bars = place.barh(names, [shares[name] for name in names], color=BLUE)
    place.bar_label(bars, fmt="%.2f", padding=3)
    place.set(xlim=(0, 1.1), xlabel="share")


def _slice(place: Axes, one: Dimension, results: Results) -> None:
    """Draw the metric over one key; pruned trials in grey."""
    for state, color, mark in (("pruned", GREY, "x"), ("complete", BLUE, "o")):
        rows = _of(results, state)
        place.plot([_across(one, row) for row in rows], _values(rows), mark, color=color, alpha=0.8)
    if results.best:
        place.plot([_across(one, results.best)], _values([results.best]), "o", mfc="none", ms=12, color=RED)
    if one.choices:
        place.set_xticks(range(len(one.choices)), [yaml.inline(choice) for choice in one.choices])
        place.set_xlim(-0.5, len(one.choices) - 0.5)
    elif getattr(one.distribution, "log", False):
        place.set_xscale("log")
    _scale(place, results)
    place.set_xlabel(one.key)


def _scale(place: Axes, results: Results) -> None:
    """Use a log scale where losses are several times apart: the good ones would be one line else."""
    values = _values([*_of(results, "complete"), *_of(results, "pruned")])
    if results.request.sweep.metric == "val/loss" and values and max(values) > 5 * min(values) > 0:
        place.set_yscale("log")
        place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        place.yaxis.set_major_formatter("{x:g}")
        place.yaxis.set_minor_formatter("")


def _across(one: Dimension, row: Row) -> Any:  # noqa: ANN401 (a number, or the place of a choice)
    value = row.values[one.key]
    return one.choices.index(value) if one.choices else value


def _of(results: Results, state: str) -> list[Row]:
    return [row for row in results.rows if row.state == state]


def _values(rows: Sequence[Row]) -> list[float]:
    return [float("nan") if row.value is None else row.value for row in rows]
