"""Pictures of a sweep, drawn by Optuna: its history, the importance of each key, the metric over each key."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as draw

from convoy.explain import figures
from convoy.sweep.request import Request

MIN_IMPORTANCES = 4
"""Completed trials from which importances are computed; fewer would give noise alone."""


def plots(study: optuna.Study, request: Request, folder: Path) -> list[Path]:
    """Draw history.png, slices.png and, of enough trials, importances.png; at least one trial is complete.

    Raises:
        RequestError: a picture cannot be written.
    """
    mpl.use("agg")  # Optuna draws by pyplot, which would otherwise look for a screen
    import matplotlib.pyplot as plt  # noqa: PLC0415 (after the choice of a backend)

    metric = request.sweep.metric
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [trial.value for trial in complete if trial.value is not None]
    scale = "log" if metric == "val/loss" and max(values) > 5 * min(values) > 0 else "linear"
    with mpl.rc_context(), warnings.catch_warnings():  # Optuna sets a style for the whole process
        warnings.simplefilter("ignore")  # experimental; one value has no range
        history: Any = draw.plot_optimization_history(study, target_name=metric)
        slices: Any = draw.plot_slice(study, target_name=metric)
        first = np.ravel(slices)[0]  # the others share its scale
        for axes in (history, first):
            axes.set_yscale(scale)
        drawn = {"history.png": history.figure, "slices.png": first.figure}
        if len(values) >= MIN_IMPORTANCES and len(set(values)) > 1:
            importances: Any = draw.plot_param_importances(study, target_name=metric)
            drawn["importances.png"] = importances.figure
        written = []
        for name, figure in drawn.items():
            for axes in figure.get_axes():
                for axis in (axes.xaxis, axes.yaxis):
                    _label_decades(axis)
            # Optuna's own layout cuts off long names. The colour bar of a single slice is part of a grid that the
            # constrained layout cannot divide.
            single = name == "slices.png" and len(request.sweep.space) == 1
            figure.set_layout_engine("tight" if single else "constrained")
            written.append(figures.write(figure, folder / name))
            plt.close(figure)
    return written


def _label_decades(axis: Axis) -> None:
    """Label a log scale with plain numbers, at 1, 2 and 5 of each decade where there is room."""
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 40 * low else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
