"""The confusion matrix as a picture."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

MOST_COUNTS = 20
"""Most classes whose cells still have room for a number."""
MOST_NAMES = 50
"""Most classes whose axes still have room for every name."""
LONGEST_NAME = 18
"""Characters of a class name that an axis has room for."""

LIGHT = {"ink": "#1c2530", "paper": "#ffffff", "low": "#f4f7fa", "high": "#1a5fb4", "on_high": "#ffffff"}
DARK = {"ink": "#dfe6ee", "paper": "#161c24", "low": "#1d2530", "high": "#78aeed", "on_high": "#0c1118"}


def draw(counts: npt.NDArray[np.int64], classes: Sequence[str], *, dark: bool = False) -> bytes:
    """Draw (K, K) counts as a PNG: rows are actual classes, shaded by their share of the row.

    Shading by share shows a rare class's mistakes as clearly as a frequent one's.
    """
    look = DARK if dark else LIGHT
    total = len(classes)
    side = min(max(3.6, 0.42 * total + 1.6), 12.0)
    figure = Figure(figsize=(side, side), dpi=144, facecolor=look["paper"], layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(look["paper"])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The square root lifts a share of 2 % out of the background, where mistakes are looked for.
    shade = np.sqrt(share)
    axes.imshow(
        shade, cmap=LinearSegmentedColormap.from_list("share", [look["low"], look["high"]]), vmin=0, vmax=1
    )
    axes.set_xlabel("predicted", color=look["ink"], fontsize=12)
    axes.set_ylabel("actual", color=look["ink"], fontsize=12)
    if total <= MOST_NAMES:
        names = [name if len(name) <= LONGEST_NAME else f"{name[:9]}…{name[-8:]}" for name in classes]
        upright = 0 if max(map(len, names)) <= 3 else 90
        # A `$` would start a formula and swallow the rest of the name.
        axes.set_xticks(range(total), names, rotation=upright, parse_math=False)
        axes.set_yticks(range(total), names, parse_math=False)
    axes.tick_params(colors=look["ink"], length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if total <= MOST_COUNTS:
        for actual, row in enumerate(counts):
            for predicted, count in enumerate(row):
                if count:
                    ink = look["on_high"] if shade[actual, predicted] > 0.6 else look["ink"]
                    axes.text(predicted, actual, f"{count}", ha="center", va="center", color=ink, fontsize=9)
    content = io.BytesIO()
    # Without these, the file would name the matplotlib that drew it and change with it.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
