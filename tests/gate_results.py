"""Results of the gate with given figures, for pages and reports."""

from dataclasses import replace

import numpy as np
from scipy.stats import binomtest

from convoy.gate.result import ClassFigures, Comparison, Criterion, Flip, GateResult, Share

DIGITS = tuple(str(digit) for digit in range(10))

HOSTILE = (
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<!-- -->", "</details>", "&amp;"),
    *("a|b", "\\|", "|", "`tick`", "``", "new\nline", "\r\n# heading", "- item", "**bold** _it_ ~~no~~"),
    *("[x](http://evil.example)", "![x](http://evil.example/x.png)", "@everyone", "{{ 7*7 }}", "$\\frac{$"),
    *("\u202egpj.exe", "zero\u200bwidth\u0000", "\ud800", "日本語", "שלום", " padded ", "x" * 300),
)
"""Names that would break a page, a table, a link or the direction of reading, if they were not escaped."""


def share(correct, images):
    ends = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return Share(correct, images, correct / images, float(ends.low), float(ends.high))


def comparison(both_right, b, c, both_wrong):
    images = both_right + b + c + both_wrong
    low, high, p = 0.0, 0.0, 1.0
    if b + c:
        test = binomtest(b, b + c)
        ends = test.proportion_ci(0.95, method="exact")
        low, high = ((2 * float(end) - 1) * (b + c) / images for end in ends)
        p = float(test.pvalue)
    return Comparison(
        images, both_right, b, c, both_wrong, (b - c) / images, low, high, p, None, showable=True
    )


def criterion(name, **values):
    met = Criterion(name, name.replace("_", " "), None, None, "at least", "", held=True, note="")
    return replace(met, **values)


CRITERIA = (
    criterion("proof", title="verification of model.onnx", note="passed with these bytes"),
    criterion("images", figure=357, limit=50, unit="images"),
    criterion("accuracy", figure=0.9552, limit=0.5, unit="share"),
    criterion("class_recall", figure=0.86, limit=0.3, unit="share", note="`8`"),
    criterion("class_drop", figure=0.03, limit=0.2, sense="at most", unit="points"),
    criterion("latency_ms_p95", figure=0.91, limit=200.0, sense="at most", unit="ms"),
    criterion("size_mb", figure=1.21, sense="at most", unit="MB", held=None, note="no limit set"),
)


def classes(names=DIGITS):
    return tuple(
        ClassFigures(name, 30 + number, 0.8 + (number % 7) / 40, 0.9 - (number % 5) / 50)
        for number, name in enumerate(names)
    )


def flips(fixed, broken, names=DIGITS):
    def flip(number, kind):
        label, other = names[number % len(names)], names[(number + 3) % len(names)]
        answers = (label, other) if kind == "broken" else (other, label)
        return Flip(f"{label}/{kind}_{number:04}.png", label, *answers, 0.61, 0.72, kind)

    return (*(flip(n, "broken") for n in range(broken)), *(flip(n, "fixed") for n in range(fixed)))


def gate_result(**values):
    """Make a promotion for a gain of 14 to 2 on 357 images, with other values."""
    return GateResult(
        **{
            "verdict": "promote",
            "decision": "better",
            "reasons": ("Promote convoy/8: it is better.", "Every limit holds."),
            "candidate": "convoy/8",
            "champion": "convoy/7",
            "candidate_sha256": "a" * 64,
            "champion_sha256": "b" * 64,
            "champion_problem": "",
            "data_hash": "c" * 64,
            "images": 357,
            "excluded": {"in the champion's training": 12},
            "candidate_share": share(341, 357),
            "champion_share": share(329, 357),
            "criteria": CRITERIA,
            "comparison": comparison(327, 14, 2, 14),
            "classes": classes(),
            "flips": flips(14, 2),
            "conditions": {
                "moment": "2026-11-23T22:10:05+00:00",
                "confidence": 0.95,
                "equal_within": 0.02,
                "latency": {"threads": 1},
                "versions": {"onnxruntime": "1.32.0"},
            },
            **values,
        }
    )


def without_champion(**values):
    alone = tuple(ClassFigures(row.name, row.images, row.candidate, None) for row in classes())
    return gate_result(
        champion=None,
        champion_sha256=None,
        champion_share=None,
        comparison=None,
        classes=alone,
        flips=(),
        excluded={},
        **values,
    )


def identical():
    """Keep a candidate that is the champion, with nothing measured."""
    return gate_result(
        verdict="keep",
        decision="identical",
        reasons=("Keep convoy/7: the candidate convoy/7 is the champion, byte for byte.",),
        candidate="convoy/7",
        candidate_sha256="b" * 64,
        candidate_share=None,
        champion_share=None,
        comparison=None,
        criteria=(),
        classes=(),
        flips=(),
        images=0,
        excluded={},
    )


def hostile():
    """Refuse, with every text that comes from a delivery being hostile."""
    sentence = " ".join(HOSTILE)
    return gate_result(
        verdict="refuse",
        decision="limits",
        reasons=(sentence, *(f"`{name}` has collapsed." for name in HOSTILE)),
        criteria=(criterion("class_recall", figure=0.1, limit=0.3, unit="share", held=False, note=sentence),),
        classes=classes(HOSTILE),
        flips=flips(30, 30, HOSTILE),
        comparison=comparison(270, 30, 30, 27),
        excluded={HOSTILE[0]: 3},
        conditions={"confidence": 0.95, HOSTILE[1]: HOSTILE[2]},
    )


def thumbnails(result):
    """Draw a gray of its own for each image that flipped."""
    return {
        flip.path: np.full((8, 8, 3), 10 + number, dtype=np.uint8) for number, flip in enumerate(result.flips)
    }
