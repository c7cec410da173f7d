"""A verdict in sentences, for people who were not there: figures, limits, and what to do next."""

from convoy.gate.contender import UnavailableModel
from convoy.gate.criteria import NUMBERED
from convoy.gate.evidence import Facts
from convoy.gate.result import Comparison, Criterion
from convoy.gate.settings import GateParams
from convoy.gate.written import gain, number, p_value, sides

OVERRIDE = 'convoy promote --override "reason"'

REMEDIES = {
    "proof": "Make and prove it again: dvc repro export, then convoy register.",
    "classes": "If users of the model know of it, promote it all the same.",
    "seen": "Its test images may be ones that it was trained on. Train and register it again: dvc repro, then convoy register.",
    "images": "Deliver more test images, or raise data.splits.test in params.yaml.",
    "accuracy": "Look at its mistakes in build/evaluation/report.html.",
    "class_recall": "Look at that class's images and labels, in train and in test, and deliver more of them.",
    "class_drop": "Look at that class's images and labels, in train and in test: has it fewer than before?",
    "ece": "Its probabilities do not say how often it is right: train.label_smoothing and fewer epochs change that.",
    "champion_drop": (
        "The champion has not changed, so the data have: look at the labels of the test images before anything else. "
        "Where the change is meant, promote all the same."
    ),
    "latency_ms_p95": "Choose a smaller network or data.image_px.",
    "latency_ratio": "Choose a smaller network or data.image_px.",
    "size_mb": "Choose a smaller network.",
}

STAND_IN = (
    "Either the candidate is worse than that champion was, or the data changed meaning: look at the labels of the test "
    "images, and restore the champion's file to compare the two."
)
"""The remedy of `champion_drop` where the candidate stands in for a champion that cannot be read."""


def same(facts: Facts, breaches: list[Criterion]) -> list[str]:
    """Say that there is nothing to decide; a champion that breaks limits today is worth a word all the same."""
    champion = _champion(facts)
    said = [f"Keep {champion}: the candidate {facts.candidate.name} is the champion, byte for byte."]
    if breaches:
        said.append(f"On today's data it breaks {_count(breaches)}, and a better one is wanted:")
        said += [_upper(_breach(one)) for one in breaches]
    return said


def refuse(facts: Facts, breaches: list[Criterion], limits: GateParams) -> list[str]:
    """Name every limit that is broken, and what helps."""
    ours = facts.candidate.name
    if len(breaches) == 1:
        said = [f"Refuse {ours}: {_breach(breaches[0])}"]
    else:
        titles = ", ".join(one.title for one in breaches)
        said = [f"Refuse {ours}: it breaks {_count(breaches)} ({titles})."]
        said += [_upper(_breach(one)) for one in breaches]
    if facts.comparison:
        said.append(f"Over all images, {_compared(facts, facts.comparison, limits, ours)}.")
    unreadable = isinstance(facts.champion, UnavailableModel)
    if unreadable:
        said.append(f"Nothing was compared: {facts.no_comparison}.")
    said += dict.fromkeys(
        STAND_IN if unreadable and one.name == "champion_drop" else REMEDIES[one.name] for one in breaches
    )
    settable = [f"gate.{NUMBERED[one.name].key}" for one in breaches if one.limit is not None]
    change = f"change {', '.join(settable)} in params.yaml, or " if settable else ""
    said.append(f"To promote it all the same: {change}{OVERRIDE}")
    return said


def first(facts: Facts, limits: GateParams) -> list[str]:
    """Promote the first champion."""
    return [
        f"Promote {facts.candidate.name}: there is no champion yet, and it holds every limit; it is {_right(facts, limits)}."
    ]


def in_its_place(facts: Facts, champion: UnavailableModel, limits: GateParams) -> list[str]:
    """Promote where the champion cannot be read, loudly."""
    return [
        (
            f"Promote {facts.candidate.name}, WITHOUT A COMPARISON: the champion {champion.name} cannot be read "
            f"({champion.reason}). It holds every limit that needs no champion; it is {_right(facts, limits)}."
        ),
        (
            f"Find out what became of {champion.name}: restore its file where it should stay champion, and judge again "
            "with: convoy promote"
        ),
    ]


def better(facts: Facts, compared: Comparison, limits: GateParams) -> list[str]:
    """Promote for a gain."""
    return [
        f"Promote {facts.candidate.name}: {_compared(facts, compared, limits)}: a significant gain, and every limit holds."
    ]


def as_good(facts: Facts, compared: Comparison, limits: GateParams, *, promote: bool) -> list[str]:
    """Decide by rule where there is no difference to speak of."""
    champion = _champion(facts)
    within = f"at worst it loses {_points(-compared.low)}, and gate.equal_within allows {_points(limits.equal_within)}"
    said = f"{_compared(facts, compared, limits)}; {within}"
    if promote:
        return [
            (
                f"Promote {facts.candidate.name}: it is as good as {champion} and newer, which is enough by "
                f"gate.on_equal: promote. {_upper(said)}."
            ),
            *_too_small(facts, compared),
        ]
    if limits.on_equal == "promote":
        why, next_ = "is as good, and not newer", f"To promote it all the same: {OVERRIDE}"
    else:
        why = "is as good, and no better"
        next_ = f"To let an equal but newer model take over, set gate.on_equal: promote in params.yaml; this one alone: {OVERRIDE}"
    return [f"Keep {champion}: {facts.candidate.name} {why}. {_upper(said)}.", *_more(facts, compared), next_]


def no_gain(facts: Facts, compared: Comparison, limits: GateParams) -> list[str]:
    """Keep the champion, and say whether more images would change that."""
    champion, ours = _champion(facts), facts.candidate.name
    said = _compared(facts, compared, limits)
    if compared.high < 0:
        verdict = f"{ours} is worse. {_upper(said)}."
    elif compared.gain > 0:
        verdict = f"the gain of {ours} is not significant. {_upper(said)}."
    else:
        verdict = (
            f"{ours} shows no gain. {_upper(said)}; it may lose {_points(-compared.low)}, more than the "
            f"{_points(limits.equal_within)} that gate.equal_within calls as good."
        )
    return [f"Keep {champion}: {verdict}", *_more(facts, compared), f"To promote it all the same: {OVERRIDE}"]


def _more(facts: Facts, compared: Comparison) -> list[str]:
    """Say how many images would show a gain."""
    if not compared.showable:
        return _too_small(facts, compared)
    if compared.images_needed is None:
        return []
    return [
        (
            f"If the gain is real, about {compared.images_needed:,} test images would show it (80 % power); there are "
            f"{compared.images:,}: deliver more, or raise data.splits.test in params.yaml."
        )
    ]


def _too_small(facts: Facts, compared: Comparison) -> list[str]:
    """Say that this split could not have shown any gain, where that is so, and how many images could."""
    if compared.showable:
        return []
    champion = _champion(facts)
    mistakes = compared.only_candidate + compared.both_wrong
    if mistakes:
        why = (
            f"{champion} makes {mistakes:,} mistake{'s' * (mistakes != 1)} on {compared.images:,} images, and even "
            "mending all of them would not be significant"
        )
    else:
        why = f"{champion} makes no mistake on {compared.images:,} images"
    several = f"about {compared.images_needed:,}" if mistakes else f"at least {compared.images_needed:,}"
    what = "a gain of this size" if compared.gain > 0 else "that all its mistakes are mended"
    return [
        (
            f"This test split cannot show any gain: {why}. It takes {several} test images to show {what} (80 % power): "
            "deliver more, or raise data.splits.test in params.yaml."
        )
    ]


def _compared(facts: Facts, compared: Comparison, limits: GateParams, who: str = "it") -> str:
    """Give both accuracies, the gain with its interval, and the test."""
    ours = (compared.both_right + compared.only_candidate) / compared.images
    theirs = (compared.both_right + compared.only_champion) / compared.images
    confidence = f"{100 * limits.confidence:g} %"
    return (
        f"{who} is right on {number(ours, 'share')} of {compared.images:,} test images that neither has seen, "
        f"{_champion(facts)} on {number(theirs, 'share')}. The gain is {gain(compared.gain)} points, at {confidence} "
        f"confidence {gain(compared.low)} to {gain(compared.high)} ({compared.only_candidate:,} mended, "
        f"{compared.only_champion:,} broken, p {p_value(compared.p_value)})"
    )


def _right(facts: Facts, limits: GateParams) -> str:
    share = facts.ours.share(limits.confidence)
    if share is None:
        raise AssertionError("a candidate without a test image is refused")
    return f"right on {number(share.accuracy, 'share')} of {share.images:,} test images that it has not seen"


def _breach(one: Criterion) -> str:
    """Say what is broken: figure and limit where there are, what the figure alone does not say."""
    if one.unit == "" or one.limit is None:
        return f"{one.note}."
    if one.figure is None:
        return f"{one.title} cannot be judged: {one.note}."
    figure, limit = sides(one)
    note = f" ({one.note})" if one.note else ""
    found = f"{figure} {one.title} are left" if one.unit == "images" else f"{one.title} is {figure}"
    return f"{found}, and gate.{NUMBERED[one.name].key} asks for {limit}{note}."


def _points(share: float) -> str:
    return number(share, "points")


def _champion(facts: Facts) -> str:
    if facts.champion is None:
        raise AssertionError("there is no champion to name")
    return facts.champion.name


def _count(breaches: list[Criterion]) -> str:
    return f"{len(breaches)} limit{'s' * (len(breaches) != 1)}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
