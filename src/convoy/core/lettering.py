"""Draw names in any script: with a font of this machine that has their letters, else with the letters spelled out."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text

from convoy.core.console import info

LIKELY = re.compile(
    r"noto sans|source han|hiragino|pingfang|arial unicode|wenquanyi|droid sans fallback|gothic|symbola",
    re.IGNORECASE,
)
"""Names of fonts that have the letters of many scripts; they are tried first."""

UNUSABLE = re.compile(r"last ?resort|color emoji", re.IGNORECASE)
"""Names of fonts that have a box for every letter, or pictures that matplotlib does not draw."""

LONGEST_RUN = 4
"""Most letters that are spelled out in a row; of a longer run the first and last two."""

PACKAGES = (
    (re.compile(r"CJK|HIRAGANA|KATAKANA|HANGUL|FULLWIDTH"), "fonts-noto-cjk", "font-noto-sans-cjk"),
    (re.compile(r".*\b(FACE|EMOJI|SIGN|SYMBOL|HEART)\b"), "fonts-symbola", "font-noto-emoji"),
)
OTHER_PACKAGE = ("fonts-noto-core", "font-noto-sans")
"""Debian's package and Homebrew's cask with the letters of a script."""


def fit(figure: Figure) -> None:
    """Make every text of a figure legible, before it is written: no letter becomes a box.

    Letters that matplotlib's own font lacks are drawn with another font of this machine. What no font has is written as
    `<65E5.672C>`, so that different names look different, and a line names the package to install.
    """
    ticks = {}
    for axes in figure.get_axes():
        for axis in (axes.xaxis, axes.yaxis):
            ticks[axis] = [label.get_text() for label in axis.get_ticklabels()]  # which creates them
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    used = "".join(text.get_text() for text in texts)
    lacking = frozenset(used) - _own() - {"\n"}
    if not lacking:
        return
    families, unknown = _fonts(lacking)
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
        text.set_text(_spelled(text.get_text(), unknown))
    for axis, labels in ticks.items():
        if unknown.intersection("".join(labels)):  # an axis writes the texts of its ticks anew
            axis.set_ticklabels([_spelled(label, unknown) for label in labels])


def _own() -> frozenset[str]:
    """Return the letters of the font that texts are drawn with."""
    return _letters(findfont(FontProperties(family=mpl.rcParams["font.family"])))


@lru_cache(maxsize=256)
def _letters(path: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # a damaged font
        return frozenset()


@lru_cache(maxsize=16)
def _fonts(lacking: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Find the fonts of this machine that have some letters, and the letters that none has, which are reported."""
    chosen, missing = [], lacking
    for family, path in _candidates():
        if found := missing & _letters(path):
            chosen.append(family)
            missing -= found
        if not missing:
            break
    # Joiners and variants of emoji have no picture of their own.
    if shown := sorted(letter for letter in missing if unicodedata.category(letter) not in ("Cf", "Mn")):
        name = unicodedata.name(shown[0], "")
        packages = (names for pattern, *names in PACKAGES if pattern.match(name))
        debian, brew = next(packages, OTHER_PACKAGE)
        info(
            f"No font of this machine has {len(shown)} letters of class names ({' '.join(shown[:5])}), so pictures spell them out. "
            f"Install one: apt-get install {debian}, or brew install --cask {brew}"
        )
    return tuple(chosen), missing


def _candidates() -> Iterator[tuple[str, str]]:
    """List the families of this machine's fonts with a file of each, the likely first; new ones are added to matplotlib's list."""
    for path in set(findSystemFonts()) - {str(entry.fname) for entry in fontManager.ttflist}:
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError, NotImplementedError):  # damaged, or of pictures
            continue
    # The last of a family counts: its regular face, as texts are drawn with, wherever a folder lists it.
    regular = sorted(
        fontManager.ttflist, key=lambda entry: (entry.style == "normal", entry.weight in (400, "normal"))
    )
    names = {entry.name: str(entry.fname) for entry in regular if not UNUSABLE.search(entry.name)}
    yield from sorted(names.items(), key=lambda item: (not LIKELY.search(item[0]), item[0]))


def _spelled(text: str, unknown: frozenset[str]) -> str:
    """Write the letters that no font has as their code points; those without a picture are left out."""
    if not unknown.intersection(text):
        return text
    parts, run = [], []
    for letter in f"{text}\0":
        if letter in unknown:
            run += [f"{ord(letter):04X}"] * (unicodedata.category(letter) not in ("Cf", "Mn"))
            continue
        if run:
            short = run if len(run) <= LONGEST_RUN else [*run[:2], "…", *run[-2:]]
            parts.append(f"<{'.'.join(short)}>".replace(".….", "…"))
            run = []
        parts.append(letter)
    return "".join(parts)[:-1]
