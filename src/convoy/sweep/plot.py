"""Pictures of a sweep, drawn by Optuna: its history, the importance of each key, the metric over each key."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
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
        written = [figures.write(figure, folder / name) for name, figure in drawn.items()]
        for figure in drawn.values():
            plt.close(figure)
    return written
