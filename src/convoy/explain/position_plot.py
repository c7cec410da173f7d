"""Draw an image, its shuffled self, and what the shuffle did to each network's accuracy."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convoy.explain import figures
from convoy.explain.position import Sheets, shuffle
from convoy.explain.position_verdict import CNN, DENSE, Verdict

INK, PAPER = "#1c2530", "#ffffff"
IN_PLACE, SHUFFLED = "#1a5fb4", "#d9480f"
BAR = 0.36
"""Width of a bar, where the next network stands 1 further."""


def draw(sheets: Sheets, verdict: Verdict, out: Path) -> None:
    """Draw the first image to learn from both ways, and a bar per arm with a dot per seed.

    Raises:
        RequestError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 3.8), facecolor=PAPER, layout="constrained")
    image, shuffled, bars = figure.subplots(1, 3, width_ratios=[1, 1, 1.7])
    one_u8 = sheets.learnt_u8[:1]
    _image(image, one_u8[0].permute(1, 2, 0).numpy(), "pixels in place")
    _image(shuffled, shuffle(one_u8, sheets.order)[0].permute(1, 2, 0).numpy(), "shuffled")
    _bars(bars, verdict, 1 / sheets.classes)
    figures.write(figure, out)


def _image(axes: Axes, image_u8: np.ndarray, title: str) -> None:
    axes.imshow(image_u8, interpolation="nearest")
    axes.set_title(title, color=INK, fontsize=11)
    axes.set_axis_off()


def _bars(axes: Axes, verdict: Verdict, chance: float) -> None:
    pairs = {CNN: verdict.cnn, DENSE: verdict.dense}
    looks = (("in place", IN_PLACE, -BAR / 2), ("shuffled", SHUFFLED, BAR / 2))
    for label, colour, offset in looks:
        arms = [pair.in_place if label == "in place" else pair.shuffled for pair in pairs.values()]
        places = np.arange(len(arms)) + offset
        means = [100 * float(np.mean(arm)) for arm in arms]
        axes.bar(places, means, BAR * 0.94, color=colour, alpha=0.35, label=label)
        for place, mean, arm in zip(places, means, arms, strict=True):
            # Side by side, since seeds that agree would cover each other.
            beside = place + np.linspace(-BAR / 4, BAR / 4, len(arm))
            axes.plot(beside, [100 * one for one in arm], "o", color=colour, markersize=4)
            axes.text(place, 3, f"{mean:.1f}", ha="center", color=INK, fontsize=11)
    axes.axhline(100 * chance, color=INK, linestyle=":", linewidth=1)
    axes.text(0.5, 100 * chance + 1, "by chance", ha="center", color=INK, fontsize=8)
    axes.set_xticks(range(len(pairs)), list(pairs), color=INK, fontsize=11)
    axes.set_ylim(0, 104)
    axes.set_ylabel("accuracy in %, dots: seeds", color=INK)
    axes.tick_params(length=0, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
