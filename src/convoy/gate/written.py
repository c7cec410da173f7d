"""The judgement in words and figures that a page and a report share; plain text, which each escapes."""

from collections.abc import Mapping, Sequence
from typing import Any

from convoy.gate.names import visible
from convoy.gate.result import ClassFigures, Comparison, Criterion, Flip, GateResult, Share

NOTHING = "\N{EN DASH}"
"""Stands where there is no figure."""

FINEST = 6
"""Digits after the point at most, where a figure has to be told from its limit."""


def number(value: float | None, unit: str, digits: int | None = None) -> str:
    """Write a figure with its unit: shares and points in hundredths, such as `93.4 %`.

    Args:
        value: None where there is none.
        unit: as `Criterion.unit`.
        digits: after the point; None for what is usual for the unit.
    """
    if value is None:
        return NOTHING
    if unit == "images":
        return f"{round(value):,}"
    usual = {"share": 1, "points": 1, "ms": 2, "MB": 2, "times": 2}.get(unit, 4)
    scale = 100 if unit in {"share", "points"} else 1
    text = f"{scale * value:,.{usual if digits is None else digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")  # no `-0.0`
    return text + {"share": " %", "points": " points", "ms": " ms", "MB": " MB", "times": " times"}.get(
        unit, ""
    )


def gain(value: float) -> str:
    """Write a difference of shares with its sign, such as `+1.2`; in points."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval(share: Share | None) -> str:
    """Write an accuracy with its interval."""
    if share is None:
        return NOTHING
    return (
        f"{number(share.accuracy, 'share')} ({number(share.low, 'share')} to {number(share.high, 'share')})"
    )


def p_value(p: float) -> str:
    """Write a probability so that a small one is not zero."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"


def sides(criterion: Criterion) -> tuple[str, str]:
    """Write a criterion's figure, and its limit as it was typed; with as many digits as tell them apart.

    `50.0 %` beside `at least 50 %`, breached, would look like a mistake of the gate.
    """
    figure, limit, unit = criterion.figure, criterion.limit, criterion.unit
    found = number(figure, unit)
    if limit is None:
        return found, "none" if criterion.held is None else NOTHING
    asked = _typed(limit, unit)
    for digits in range(2, FINEST + 1):
        if figure is None or figure == limit or _apart(found, asked):
            break
        found = number(figure, unit, digits)
    return found, f"{criterion.sense} {asked}"


def _typed(limit: float, unit: str) -> str:
    """Write a limit with as few digits as it has."""
    full = number(limit, unit, FINEST)
    head, _, tail = full.partition(".")
    if not tail:
        return full
    digits = tail[:FINEST].rstrip("0")
    return (f"{head}.{digits}" if digits else head) + tail[FINEST:]


def _apart(found: str, asked: str) -> bool:
    """Tell whether two written figures differ as numbers, not only in their zeros."""
    one, other = (float(text.split()[0].replace(",", "")) for text in (found, asked))
    return one != other


def outcome(criterion: Criterion) -> str:
    """Say held, breached, not asked (no limit is set) or not compared (nothing to compare with)."""
    if criterion.held is None:
        return "not asked" if criterion.limit is None else "not compared"
    return "held" if criterion.held else "breached"


def ordered(criteria: Sequence[Criterion]) -> list[Criterion]:
    """Put what is breached first, then what is held, then what was not asked."""
    places = {False: 0, True: 1, None: 2}
    return sorted(criteria, key=lambda one: places[one.held])


def headline(judgement: GateResult) -> str:
    """Say in a few words what the verdict means for who serves."""
    candidate, champion = visible(judgement.candidate), visible(judgement.champion or "")
    if judgement.verdict == "promote":
        after = f" after {champion}" if champion else ""
        return f"{candidate} should be the champion{after}"
    stays = f"{champion} stays champion" if champion else "there is still no champion"
    if judgement.verdict == "refuse":
        return f"{candidate} is refused: {stays}"
    return stays[0].upper() + stays[1:] if not champion else stays


def shares(judgement: GateResult) -> list[tuple[str, Share]]:
    """Give each model that was measured its accuracy, the champion first; a candidate that is the champion once."""
    found = []
    if (
        judgement.champion
        and judgement.champion_share
        and judgement.champion_sha256 != judgement.candidate_sha256
    ):
        found.append((judgement.champion, judgement.champion_share))
    if judgement.candidate_share:
        found.append((judgement.candidate, judgement.candidate_share))
    return found


def rivals(judgement: GateResult) -> bool:
    """Tell whether there are recalls of a champion to stand beside the candidate's."""
    return any(one.champion is not None for one in judgement.classes)


def difference(one: ClassFigures) -> str:
    """Write how far a class's recall rose above the champion's, or fell below it."""
    if one.candidate is None or one.champion is None:
        return NOTHING
    return gain(one.candidate - one.champion)


def flips(judgement: GateResult) -> list[tuple[str, str, int, list[Flip]]]:
    """Give each kind of flip that there is: kind, title, how many, and those that the judgement names.

    It names only the first ones of each kind.
    """
    both = judgement.comparison
    found = []
    for kind, title, total in (
        ("broken", "Only the champion is right", both.only_champion if both else 0),
        ("fixed", "Only the candidate is right", both.only_candidate if both else 0),
    ):
        named = [flip for flip in judgement.flips if flip.kind == kind]
        if named:
            found.append((kind, title, max(total, len(named)), named))
    return found


def compared(judgement: GateResult) -> list[str]:
    """Explain the comparison so that no statistics are needed to follow it, with the figures of one who has them."""
    both = judgement.comparison
    if both is None:
        return []
    at = confidence(judgement.conditions)
    said = [_agreed(both), *_differed(both, at)]
    said.append(
        f"Gain of the candidate: {gain(both.gain)} points of accuracy; on images like these it lies between "
        f"{gain(both.low)} and {gain(both.high)} points ({at} confidence, "
        "Clopper-Pearson over the images on which they differ, widened to Tango's score interval)."
    )
    return said


def _agreed(both: Comparison) -> str:
    same = both.both_right + both.both_wrong
    return (
        f"Both answered the same {_images(both.images)}. On {same:,} of them both were right ({both.both_right:,}) or "
        f"both wrong ({both.both_wrong:,}); these do not tell which of the two is better."
    )


def _differed(both: Comparison, at: str) -> list[str]:
    b, c = both.only_candidate, both.only_champion
    if not b + c:
        return [
            "There is no image on which only one of them was right, so neither is shown to be better (p = 1, b = 0, c = 0)."
        ]
    return [
        f"On the other {_images(b + c)} only one was right: the candidate on {b:,}, the champion on {c:,}.",
        f"If they were equally good, each of those would fall to either side as by the toss of a coin, and a split as "
        f"uneven as {b:,} to {c:,} would come about in {_of_hundred(both.p_value)} (exact two-sided McNemar test: "
        f"p {p_value(both.p_value)}, b = {b:,}, c = {c:,}). "
        + (
            f"That is rare enough for {at} confidence that the candidate is {'better' if b > c else 'worse'}."
            if _significant(both)
            else f"That is too often for {at} confidence: it may be chance."
        ),
    ]


def _significant(both: Comparison) -> bool:
    """Tell what the test said; the gate's interval leaves 0 out exactly where it does."""
    return both.low > 0 or both.high < 0


def _of_hundred(p: float) -> str:
    """Put a probability in words, such as `1.3 of 100 cases`."""
    if p < 0.0001:
        return "less than 1 of 10,000 cases"
    if p < 0.01:
        return f"{10_000 * p:.0f} of 10,000 cases"
    return f"{100 * p:.1f} of 100 cases".replace(".0 of", " of")


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def confidence(conditions: Mapping[str, Any]) -> str:
    """Write the confidence of test and intervals, such as `95 %`."""
    share = conditions.get("confidence", 0.95)
    return f"{100 * share:g} %"
