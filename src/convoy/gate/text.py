"""The verdict in words: the sentences, labels and tables that the command line, the page and the report render.

Everything is plain text. Whoever renders it escapes it: class names, paths and errors come from others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from convoy.core.escaping import visible
from convoy.core.params import flatten
from convoy.gate.result import ClassFigures, Comparison, Criterion, Decision, GateResult, Share

NOTHING = "\N{EN DASH}"  # where there is no figure
FINEST = 6  # decimals, where a figure has to be distinguished from its limit

UNITS = {
    "share": (100, 1, " %"),
    "points": (100, 1, " points"),
    "ms": (1, 2, " ms"),
    "MB": (1, 2, " MB"),
    "times": (1, 2, " times"),
}
"""Factor, usual decimals and name of each unit of a figure."""

OVERRIDE = 'convoy promote --override "reason"'
MORE_IMAGES = "deliver more, or raise data.splits.test in params.yaml."

LOSS = "{figures}; the loss is at most {loss} (gate.equal_within: {allowed})."

REASONS: dict[Decision, str] = {
    "identical": "Keep {champion}: the candidate {candidate} is the champion, byte for byte.",
    "first": "Promote {candidate}: it is the first champion and meets every limit; {accuracy}.",
    "champion_unavailable": (
        "Promote {candidate}, WITHOUT A COMPARISON: the champion {champion} cannot be read ({problem}). The candidate "
        "meets every limit that needs no champion; {accuracy}."
    ),
    "better": "Promote {candidate}: it is significantly better than {champion} and meets every limit. {figures}.",
    "equal_promoted": (
        "Promote {candidate}: it equals {champion} and is newer, which is enough with gate.on_equal: promote. "
        + LOSS
    ),
    "equal_kept": "Keep {champion}: {candidate} equals it and is not better. " + LOSS,
    "equal_not_newer": "Keep {champion}: {candidate} equals it and is not newer. " + LOSS,
    "worse": "Keep {champion}: {candidate} is significantly worse. {figures}.",
    "not_significant": "Keep {champion}: the gain of {candidate} is not significant. {figures}.",
    "no_gain": (
        "Keep {champion}: {candidate} shows no gain. {figures}; the loss may be {loss}, more than gate.equal_within "
        "({allowed})."
    ),
}
"""The first sentence on every decision but `limits`, whose sentences name the breaches."""

REMEDIES = {
    "proof": "Export and verify it again: dvc repro export, then convoy register.",
    "classes": "If its users expect these classes, override the verdict.",
    "seen": "Test images may be among its training images. Train and register it again: dvc repro, then convoy register.",
    "images": "Deliver more test images, or raise data.splits.test in params.yaml.",
    "accuracy": "Its mistakes are listed in build/evaluation/report.html.",
    "class_recall": "Check that class's images and labels, in train and in test, and deliver more of them.",
    "class_drop": "Check that class's images and labels, in train and in test: are there fewer than before?",
    "ece": "Its probabilities do not match its accuracy: train.calibrate: true and more validation images change that.",
    "champion_drop": (
        "The champion has not changed, so the data have: check the labels of the test images first. "
        "If the change is intended, override the verdict."
    ),
    "latency_ms_p95": "Choose a smaller network or data.image_px.",
    "latency_ratio": "Choose a smaller network or data.image_px.",
    "size_mb": "Choose a smaller network.",
}

STAND_IN_REMEDY = (
    "Either the candidate is worse than that champion was, or the meaning of the data changed: check the labels of the "
    "test images, and restore the champion's file to compare the two."
)
"""The remedy of `champion_drop` where the champion is unreadable."""


# Names and figures


class Name(str):
    """A class name, path or version: shown literally, and shortened where it is long."""

    __slots__ = ()


def number(value: float | None, unit: str, digits: int | None = None) -> str:
    """Format a figure with its unit: shares and points in hundredths, such as `93.4 %`; by default with usual decimals."""
    if value is None:
        return NOTHING
    if unit == "images":
        return f"{round(value):,}"
    scale, usual, name = UNITS.get(unit, (1, 4, ""))
    # `z`: no `-0.0`.
    return f"{scale * value:z,.{usual if digits is None else digits}f}{name}"


def gain(value: float) -> str:
    """Format a difference of shares in points, with its sign, such as `+1.2`."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """Format a probability so that a small one is not zero."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"


def interval(share: Share, digits: int = 1) -> str:
    """Format the interval of an accuracy."""
    return f"{number(share.low, 'share', digits)} to {number(share.high, 'share', digits)}"


def figure_and_limit(criterion: Criterion) -> tuple[str, str]:
    """Format a criterion's figure, and its limit as it was typed; with as many digits as distinguish them.

    `50.0 %` beside `at least 50 %`, breached, would look like a mistake of the gate.
    """
    figure, limit, unit = criterion.figure, criterion.limit, criterion.unit
    if limit is None:
        return number(figure, unit), "none" if criterion.held is None else NOTHING
    scale, digits, name = UNITS.get(unit, (1, 4, ""))
    if figure is not None and figure != limit:
        while digits < FINEST and round(scale * figure, digits) == round(scale * limit, FINEST):
            digits += 1
    typed = f"{scale * limit:,.{FINEST}f}".rstrip("0").rstrip(".")
    return number(figure, unit, digits), f"{criterion.sense} {typed}{name}"


def status(criterion: Criterion) -> str:
    """Label a criterion: met, breached, no limit, or not compared (there is nothing to compare with)."""
    if criterion.held is None:
        return "no limit" if criterion.limit is None else "not compared"
    return "met" if criterion.held else "breached"


def count(number: int, noun: str) -> str:
    """Format a number of things, such as `1 image` or `2 images`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


# Sentences


def describe(result: GateResult) -> GateResult:
    """Fill in the reasons, the headline first, and make names in the notes visible."""
    criteria = tuple(replace(criterion, note=visible(criterion.note)) for criterion in result.criteria)
    result = replace(result, criteria=criteria)
    return replace(
        result, reasons=tuple(_refused(result) if result.decision == "limits" else _reasons(result))
    )


def headline(result: GateResult) -> str:
    """State in a few words what the verdict means for what is served."""
    candidate, champion = visible(result.candidate), visible(result.champion or "")
    if result.verdict == "promote":
        return f"{candidate} should {f'replace {champion}' if champion else 'be the champion'}"
    stays = f"{champion} stays champion" if champion else "there is still no champion"
    return f"{candidate} is refused: {stays}" if result.verdict == "refuse" else stays


def _reasons(result: GateResult) -> list[str]:
    comparison, share, champion = result.comparison, result.candidate_share, result.champion
    values = {"candidate": result.candidate, "champion": champion, "problem": result.champion_problem}
    if share:
        images = count(share.images, "unseen test image")
        values["accuracy"] = f"accuracy {number(share.accuracy, 'share')} on {images}"
    if comparison:
        values["figures"] = _compared(result, comparison)
        values["loss"] = number(-comparison.low, "points")
        values["allowed"] = number(result.conditions["equal_within"], "points")
    reasons = [REASONS[result.decision].format(**values)]
    if result.decision == "identical" and result.breaches:
        limits = count(len(result.breaches), "limit")
        reasons.append(f"It breaches {limits} on today's data, so a better model is needed:")
        reasons += [_upper(_breach(criterion)) for criterion in result.breaches]
    elif result.decision == "champion_unavailable":
        reasons.append(
            f"If {champion} should stay champion, restore its file and judge again: convoy promote"
        )
    elif comparison and result.decision not in ("identical", "first", "better"):
        reasons += _images_needed(result, comparison)
        rule = "For an equal but newer model to take over, set gate.on_equal: promote in params.yaml; for this candidate"
        anyway = rule if result.decision == "equal_kept" else "To promote it anyway"
        if result.decision != "equal_promoted":
            reasons.append(f"{anyway}: {OVERRIDE}")
    return reasons


def _refused(result: GateResult) -> list[str]:
    """Name every breached limit, and the remedies."""
    breaches, refuse, unavailable = result.breaches, f"Refuse {result.candidate}", result.champion_problem
    reasons = [f"{refuse}: {_breach(breaches[0])}"]
    if len(breaches) > 1:
        titles = ", ".join(criterion.title for criterion in breaches)
        reasons = [f"{refuse}: it breaches {len(breaches)} limits ({titles})."]
        reasons += [_upper(_breach(criterion)) for criterion in breaches]
    if result.comparison:
        reasons.append(f"{_compared(result, result.comparison)}.")
    if unavailable:
        reasons.append(f"Nothing was compared: the champion {result.champion} cannot be read: {unavailable}.")
    remedies = REMEDIES | {"champion_drop": STAND_IN_REMEDY} if unavailable else REMEDIES
    known = [criterion for criterion in breaches if criterion.figure is not None or not criterion.unit]
    reasons += dict.fromkeys(remedies[criterion.name] for criterion in known or breaches)
    keys = [f"gate.{criterion.key}" for criterion in breaches if criterion.limit is not None]
    change = f"change {', '.join(keys)} in params.yaml, or " if keys else ""
    return [*reasons, f"To promote it anyway: {change}{OVERRIDE}"]


def _breach(criterion: Criterion) -> str:
    if criterion.unit == "" or criterion.limit is None:
        return f"{criterion.note}."
    if criterion.figure is None:
        return f"{criterion.title} cannot be measured: {criterion.note}."
    figure, limit = figure_and_limit(criterion)
    note = f" ({criterion.note})" if criterion.note else ""
    return f"{criterion.title}: {figure}, and gate.{criterion.key} requires {limit}{note}."


def _compared(result: GateResult, comparison: Comparison) -> str:
    """Format both accuracies, the gain with its interval, and the test."""
    ours, theirs = (
        (comparison.both_right + only) / comparison.images
        for only in (comparison.only_candidate, comparison.only_champion)
    )
    return (
        f"Accuracy {number(ours, 'share')}, {result.champion} {number(theirs, 'share')}, on "
        f"{count(comparison.images, 'test image')} that neither was trained on. The gain is {gain(comparison.gain)} points, "
        f"{confidence(result)} interval {gain(comparison.low)} to {gain(comparison.high)} ({comparison.only_candidate:,} "
        f"fixed, {comparison.only_champion:,} regressed, p {p_value(comparison.p_value)})"
    )


def _images_needed(result: GateResult, comparison: Comparison) -> list[str]:
    """State how many images would show a gain, first of all where this split could not have shown any."""
    needed = f"{comparison.images_needed or 0:,} test images"
    if comparison.showable:
        if comparison.images_needed is None or result.decision == "equal_promoted":
            return []
        return [
            f"If the gain is real, about {needed} would show it (80 % power); there are {comparison.images:,}: {MORE_IMAGES}"
        ]
    mistakes = comparison.only_candidate + comparison.both_wrong
    made, why, about = "no mistake", "", "at least"
    if mistakes:
        made, about = count(mistakes, "mistake"), "about"
        why = ", and even fixing all of them would not be significant"
    gained = "a gain of this size" if comparison.gain > 0 else "that all its mistakes are fixed"
    return [
        (
            f"This test split cannot show any gain: {result.champion} makes {made} on {comparison.images:,} images{why}. "
            f"It takes {about} {needed} to show {gained} (80 % power): {MORE_IMAGES}"
        )
    ]


# Tables and sections


@dataclass(frozen=True)
class Table:
    """Hold a table of plain text.

    Attributes:
        header: names of the columns; `>` in front aligns a column right.
        total: number of rows before shortening; 0 where all are listed.
        breached: number of first rows that are breaches.
    """

    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    total: int = 0
    breached: int = 0
    title: str = ""


@dataclass(frozen=True)
class Section:
    """Hold a part of the page or report: sentences, the figure `<name>.png` with its alternative text, and tables."""

    name: str
    title: str
    sentences: Sequence[str]
    tables: Sequence[Table]
    figure: str = ""


def criterion_line(criterion: Criterion) -> str:
    """Format a criterion in one line: `met: 98.1 % (at least 50 %)`."""
    figure, limit = figure_and_limit(criterion)
    figure = f": {figure}" if criterion.figure is not None else ""
    limit = f" ({limit})" if criterion.limit is not None else ""
    return f"{status(criterion)}{figure}{limit}" + (f"; {criterion.note}" if criterion.note else "")


def sections(result: GateResult, most_classes: int, most_flips: int) -> Iterator[Section]:
    """Lay out criteria, accuracy, recall per class and changed predictions, as far as there are any.

    Lists at most so many classes, those whose recall fell most, and so many images of each kind of flip.
    """
    if result.criteria:
        yield _criteria_section(result)
    if result.candidate_share:
        yield _accuracy_section(result)
    if result.classes:
        yield _classes_section(result, most_classes)
    if result.flips:
        why = "Check these images for wrong labels, and for what the new model has unlearned."
        tables = [table for kind in FLIP_TITLES if (table := _flips_table(result, kind, most_flips)).rows]
        yield Section("flips", "Changed predictions", [why], tables, "changed predictions")


def _criteria_section(result: GateResult) -> Section:
    order, breached = {False: 0, True: 1, None: 2}, len(result.breaches)
    ordered = sorted(result.criteria, key=lambda criterion: order[criterion.held])
    rows = [(_upper(row.title), *figure_and_limit(row), status(row), row.note) for row in ordered]
    summary = f"{breached} of {len(rows)} criteria breached" if breached else "No limit is breached"
    sentence = f"{summary}. The limits are in params.yaml, section gate."
    header = ("Criterion", ">Value", ">Limit", "Status", "Note")
    return Section("criteria", "Criteria", [sentence], [Table(header, rows, breached=breached)])


def _accuracy_section(result: GateResult) -> Section:
    rows: list[Sequence[str]] = []
    for name, share in shares(result):
        accuracy = number(share.accuracy, "share", 2)
        rows.append((Name(name), f"{share.correct:,}", f"{share.images:,}", accuracy, interval(share, 2)))
    title, sentences = "Accuracy", list[str]()
    if comparison := result.comparison:
        title, sentences = "Is the candidate better?", _explained(result, comparison)
        ends = f"{gain(comparison.low)} to {gain(comparison.high)}"
        rows.append(("gain", "", "", f"{gain(comparison.gain)} points", ends))
    table = Table(("Model", ">Correct", ">Images", ">Accuracy", f">{confidence(result)} interval"), rows)
    return Section("gain", title, sentences, [table], "accuracies and gain, with intervals")


def _classes_section(result: GateResult, most: int) -> Section:
    rows = []
    for row in most_fallen(result.classes, most):
        change = NOTHING if None in (row.candidate, row.champion) else gain(-_fall(row))
        recalls = (number(row.champion, "share"), number(row.candidate, "share"), change)
        rows.append((Name(row.name), f"{row.images:,}", *recalls))
    header = ("Class", ">Images", ">Champion", ">Candidate", ">Change, points")
    table = Table(header, rows, total=len(result.classes))
    explained = "Recall: share of a class's images that are classified correctly."
    return Section("classes", "Recall per class", [explained], [table], "recall per class")


def _fall(row: ClassFigures) -> float:
    return 0.0 if row.champion is None else row.champion - (row.candidate or 0.0)


def most_fallen(classes: Sequence[ClassFigures], most: int) -> list[ClassFigures]:
    """Choose the classes whose recall fell most, then the lowest recalls, then those without an image; in their own order."""
    ranked = sorted(
        range(len(classes)),
        key=lambda n: (-_fall(classes[n]), not classes[n].images, classes[n].candidate or 0.0),
    )
    return [classes[n] for n in sorted(ranked[:most])]


def _flips_table(result: GateResult, kind: str, most: int) -> Table:
    rows = []
    for flip in [flip for flip in result.flips if flip.kind == kind][:most]:
        champion = (Name(flip.champion), f"{flip.champion_probability:.2f}")
        candidate = (Name(flip.candidate), f"{flip.candidate_probability:.2f}")
        rows.append((Name(flip.path), Name(flip.label), *champion, *candidate))
    header = ("File", "Label", "Champion", ">Probability", "Candidate", ">Probability")
    total = flip_count(result, kind)
    return Table(header, rows, total=total, title=f"{FLIP_TITLES[kind]}: {total:,}")


FLIP_TITLES = {
    "broken": "Regressed: only the champion is right",
    "fixed": "Fixed: only the candidate is right",
}


def flip_count(result: GateResult, kind: str) -> int:
    """Count the images of a kind of flip, of which `result.flips` lists the first."""
    if result.comparison is None:
        return 0
    return result.comparison.only_champion if kind == "broken" else result.comparison.only_candidate


def shares(result: GateResult) -> list[tuple[str, Share]]:
    """List each measured model's accuracy, the champion's first; once where the candidate is the champion."""
    measured = [(result.candidate, result.candidate_share)]
    if result.champion and result.champion_sha256 != result.candidate_sha256:
        measured.insert(0, (result.champion, result.champion_share))
    return [(name, share) for name, share in measured if share]


def conditions_table(result: GateResult) -> Table:
    """List what was compared, and how."""
    champion = f"{result.champion or 'none yet'} {result.champion_sha256 or ''}".strip()
    champion += " (cannot be read)" if result.champion and not result.champion_sha256 else ""
    rows = [
        ("Candidate", f"{result.candidate} {result.candidate_sha256}"),
        ("Champion", champion),
        ("Data", result.data_hash),
        ("Test images judged", f"{result.images:,}"),
        *((f"Left out, {reason}", f"{images:,}") for reason, images in result.excluded.items() if images),
    ]
    for name, value in flatten(result.conditions).items():
        label = name.replace(".", ", ").replace("_", " ")
        rows.append((label, NOTHING if value is None else str(value)))
    return Table(("What", "Value"), rows)


def _explained(result: GateResult, comparison: Comparison) -> list[str]:
    """Explain how the models were compared."""
    b, c, level = comparison.only_candidate, comparison.only_champion, confidence(result)
    # The gate's interval leaves 0 out exactly where the test is significant.
    finding = "it may be chance"
    if comparison.low > 0 or comparison.high < 0:
        finding = f"the candidate is significantly {'better' if comparison.low > 0 else 'worse'}"
    return [
        (
            f"Both models are right on {comparison.both_right:,} and wrong on {comparison.both_wrong:,} of "
            f"{count(comparison.images, 'image')}. Only the candidate is right on {b:,} (fixed), only the champion on "
            f"{c:,} (regressed)."
        ),
        (
            f"McNemar's exact two-sided test of {b:,} against {c:,}: p {p_value(comparison.p_value)}. At {level} "
            f"confidence, {finding}. The {level} interval of the gain is Clopper-Pearson's over the images on which they "
            "differ, widened to Tango's score interval."
        ),
    ]


def confidence(result: GateResult) -> str:
    """Format the confidence of test and intervals, such as `95 %`."""
    return f"{100 * result.conditions['confidence']:g} %"
