"""The verdict in words: names, figures, one sentence per decision, and the tables that page and report share."""

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gate_results
from convoy.core.escaping import short, visible
from convoy.gate import text
from convoy.gate.criteria import LIMITED
from convoy.gate.result import ClassFigures

MINUS = "\N{MINUS SIGN}"


# Names and figures


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("日本語 שלום", "日本語 שלום"),
        ("new\nline", "new\\nline"),
        ("\u202egpj.exe", "<U+202E>gpj.exe"),
        ("a\u0000b\u2028c\ud800", "a<U+0000>b<U+2028>c<U+D800>"),
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_invisible_characters_are_spelled_out(name, shown):
    assert visible(name) == shown


@given(st.text())
def test_no_visible_text_breaks_a_line_or_turns_its_direction(name):
    shown = visible(name)
    assert len(shown.splitlines()) <= 1
    categories = {unicodedata.category(character) for character in shown if character not in "\u200c\u200d"}
    assert not categories & {"Cc", "Cf", "Cs"}
    shown.encode()


def test_a_long_name_keeps_both_its_ends():
    name = "a" * 100 + "0123456789.png"
    assert short(name, 20) == "aaaaaaaaa…456789.png"
    assert len(short(name, 20)) == 20
    assert short("short", 5) == "short"


@pytest.mark.parametrize(
    ("value", "unit", "formatted"),
    [
        (0.9345, "share", "93.5 %"),
        (-0.031, "points", "-3.1 points"),
        (-0.00001, "points", "0.0 points"),
        (12.345, "ms", "12.35 ms"),
        (1234.5, "MB", "1,234.50 MB"),
        (1.5, "times", "1.50 times"),
        (1357, "images", "1,357"),
        (0.0312, "", "0.0312"),
        (None, "share", text.NOTHING),
    ],
)
def test_a_figure_has_its_unit(value, unit, formatted):
    assert text.number(value, unit) == formatted


@pytest.mark.parametrize(
    ("figure", "limit", "unit", "formatted"),
    [
        (0.956, 0.5, "share", ("95.6 %", "at least 50 %")),
        (0.49996, 0.5, "share", ("49.996 %", "at least 50 %")),
        (0.5, 0.5, "share", ("50.0 %", "at least 50 %")),
        (199.9999, 200.0, "ms", ("199.9999 ms", "at least 200 ms")),
        (0.3, 0.123, "share", ("30.0 %", "at least 12.3 %")),
        (1_000, 2_000, "images", ("1,000", "at least 2,000")),
        (None, 0.3, "share", (text.NOTHING, "at least 30 %")),
    ],
)
def test_a_limit_is_shown_as_it_was_typed_and_the_figure_so_that_they_differ(figure, limit, unit, formatted):
    criterion = gate_results.criterion("accuracy", figure=figure, limit=limit, unit=unit)
    assert text.figure_and_limit(criterion) == formatted


@given(st.floats(0, 1), st.floats(0.01, 1).map(lambda share: round(share, 3)))
def test_a_breach_never_looks_like_the_limit(figure, limit):
    criterion = gate_results.criterion("accuracy", figure=figure, limit=limit, unit="share")
    shown, typed = text.figure_and_limit(criterion)
    assert abs(figure - limit) < 1e-8 or float(shown.split()[0]) / 100 != pytest.approx(limit, abs=1e-12)
    assert float(typed.split()[2]) / 100 == pytest.approx(limit, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"note": "passed with these bytes"}, "met; passed with these bytes"),
        ({"figure": 0.955, "limit": 0.5, "unit": "share"}, "met: 95.5 % (at least 50 %)"),
        ({"figure": 0.86, "limit": 0.3, "unit": "share", "held": False, "note": "`8`"}, "breached: 86.0 % (at least 30 %); `8`"),
        ({"figure": 1.21, "unit": "MB", "held": None}, "no limit: 1.21 MB"),
        ({"limit": 0.1, "unit": "points", "held": None}, "not compared (at least 10 points)"),
    ],
)  # fmt: skip
def test_a_criterion_in_one_line_has_status_figure_limit_and_note(values, line):
    assert text.criterion_line(gate_results.criterion("accuracy", **values)) == line


# Sentences


@pytest.mark.parametrize(
    ("changed", "headline"),
    [
        ({}, "convoy/8 should replace convoy/7"),
        ({"verdict": "keep"}, "convoy/7 stays champion"),
        ({"verdict": "refuse"}, "convoy/8 is refused: convoy/7 stays champion"),
        ({"champion": None}, "convoy/8 should be the champion"),
        ({"verdict": "refuse", "champion": None}, "convoy/8 is refused: there is still no champion"),
    ],
)
def test_the_headline_names_the_champion(changed, headline):
    assert text.headline(gate_results.gate_result(**changed)) == headline


@pytest.mark.parametrize(
    ("decision", "start", "facts", "more"),
    [
        ("better", "Promote convoy/8", ["significantly better than convoy/7"], ""),
        ("worse", "Keep convoy/7", ["convoy/8 is significantly worse"], "anyway"),
        ("not_significant", "Keep convoy/7", ["gain of convoy/8 is not significant"], "anyway"),
        ("no_gain", "Keep convoy/7", ["no gain", "-1.0 points, more than gate.equal_within (2.0 points)"], "anyway"),
        ("equal_promoted", "Promote convoy/8", ["equals convoy/7", "newer", "-1.0 points (gate.equal_within: 2.0"], ""),
        ("equal_not_newer", "Keep convoy/7", ["not newer", "-1.0 points (gate.equal_within: 2.0"], "anyway"),
        ("equal_kept", "Keep convoy/7", ["equals it", "-1.0 points (gate.equal_within: 2.0"], "gate.on_equal: promote"),
    ],
)  # fmt: skip
def test_each_decision_against_a_champion_has_its_figures(decision, start, facts, more):
    first, *others = text.describe(gate_results.gate_result(decision=decision)).reasons
    assert first.startswith(f"{start}: ")
    accuracies = "Accuracy 95.5 %, convoy/7 92.2 %, on 357 test images"
    gain = "+3.4 points, 95 % interval +1.0 to +4.3"
    for fact in (*facts, accuracies, gain, "(14 fixed, 2 regressed, p = 0.0042)"):
        assert fact in first
    assert len(others) == bool(more)
    assert all(more in reason and reason.endswith(text.OVERRIDE) for reason in others)


@pytest.mark.parametrize(
    ("decision", "start", "facts"),
    [
        ("first", "Promote convoy/8", ["first champion", "accuracy 95.5 % on 357 unseen"]),
        ("champion_unavailable", "Promote convoy/8", ["WITHOUT A COMPARISON", "(its file is gone)", "accuracy 95.5 %"]),
        ("identical", "Keep convoy/7", ["byte for byte"]),
    ],
)  # fmt: skip
def test_each_decision_without_a_comparison_gives_the_reason(decision, start, facts):
    result = gate_results.gate_result(decision=decision, champion_problem="its file is gone")
    first, *others = text.describe(result).reasons
    assert first.startswith(start)
    assert all(fact in first for fact in facts)
    assert len(others) == (decision == "champion_unavailable")
    assert all("restore its file" in reason for reason in others)


def at_most(name, figure, limit, unit, note=""):
    """A breached criterion."""
    values = {"figure": figure, "limit": limit, "sense": "at most", "unit": unit, "note": note}
    return gate_results.criterion(name, held=False, **values)


def refused(*criteria, **values):
    """The reasons of a refusal."""
    return text.describe(gate_results.gate_result(decision="limits", criteria=criteria, **values)).reasons


def test_each_breach_is_named_with_figure_limit_key_and_remedy():
    drop = at_most("class_drop", 0.5, 0.2, "points", "class `3`")
    first, second, *others = refused(*gate_results.CRITERIA, drop)
    assert first.startswith("Refuse convoy/8: class drop: 50.0 points, and ")
    assert "gate.max_class_drop requires at most 20" in first
    assert "(class `3`)" in first
    assert "(14 fixed, 2 regressed, p = 0.0042)" in second
    change = f"To promote it anyway: change gate.max_class_drop in params.yaml, or {text.OVERRIDE}"
    assert others == [text.REMEDIES["class_drop"], change]


def test_several_breaches_are_listed_and_a_common_remedy_once():
    slow = [at_most(name, 3.0, 2.0, "times") for name in ("latency_ms_p95", "latency_ratio")]
    unmeasured = at_most("ece", None, 0.2, "share", "no image")
    unverified = gate_results.criterion("proof", title="verification", held=False, note="it is missing")
    first, *reasons = refused(unverified, *slow, unmeasured, comparison=None)
    assert "it breaches 4 limits (verification, latency ms p95, latency ratio, ece)" in first
    assert reasons[0] == "It is missing."
    assert "Ece cannot be measured: no image." in reasons
    assert reasons.count(text.REMEDIES["latency_ratio"]) == 1
    assert text.REMEDIES["proof"] in reasons
    assert text.REMEDIES["ece"] not in reasons, "nothing was measured that it could mend"
    assert "change gate.max_latency_ms_p95, gate.max_latency_ratio, gate.max_ece in params" in reasons[-1]


def test_every_criterion_has_a_remedy():
    assert set(text.REMEDIES) == {"proof", "classes", "seen", *LIMITED}


def test_a_drop_below_an_unavailable_champion_has_its_own_remedy():
    drop = at_most("champion_drop", 0.3, 0.1, "points")
    reasons = refused(drop, comparison=None, champion_problem="its file is gone")
    assert reasons[1] == "Nothing was compared: the champion convoy/7 cannot be read: its file is gone."
    assert text.STAND_IN_REMEDY in reasons
    assert text.REMEDIES["champion_drop"] not in reasons


def test_a_champion_that_breaches_limits_today_is_kept_with_a_warning():
    low = gate_results.criterion("accuracy", figure=0.9, limit=0.95, unit="share", held=False)
    reasons = text.describe(gate_results.gate_result(decision="identical", criteria=(low,))).reasons
    assert reasons[1].startswith("It breaches 1 limit on today's data")
    assert reasons[2:] == ("Accuracy: 90.0 %, and gate.min_accuracy requires at least 95 %.",)


@pytest.mark.parametrize(
    ("counts", "gain", "showable", "needed", "facts"),
    [
        ((107, 11, 1, 1), 0.08, True, 1411, ["about 1,411 test images", "there are 120"]),
        ((117, 3, 0, 0), 0.025, False, 312, ["3 mistakes on 120", "fixing all", "about 312", "a gain of this size"]),
        ((119, 0, 0, 1), 0.0, False, 400, ["1 mistake on", "fixing all", "about 400", "all its mistakes are fixed"]),
        ((119, 0, 1, 0), -0.01, False, 251, ["no mistake on 120 images. It takes at least 251"]),
        ((100, 5, 5, 10), 0.0, True, None, []),
    ],
)  # fmt: skip
def test_too_few_images_come_with_the_number_that_is_needed(counts, gain, showable, needed, facts):
    comparison = replace(gate_results.comparison(*counts), gain=gain, showable=showable, images_needed=needed)
    result = gate_results.gate_result(decision="worse", comparison=comparison)
    reasons = text.describe(result).reasons
    assert len(reasons) == 2 + bool(facts)
    assert all(fact in reasons[1] for fact in facts)
    promoted = text.describe(replace(result, decision="equal_promoted")).reasons
    assert len(promoted) == 1 + (not showable)


# Sections


def sections(result, most_classes=100, most_flips=100):
    return {section.name: section for section in text.sections(result, most_classes, most_flips)}


def test_breached_criteria_come_first_and_the_rest_keeps_its_order():
    criteria = tuple(
        gate_results.criterion(name, held=held)
        for name, held in (("one", True), ("two", None), ("three", False), ("four", True), ("five", False))
    )
    section = sections(gate_results.gate_result(criteria=criteria))["criteria"]
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["Three", "Five", "One", "Four", "Two"]
    assert table.breached == 2
    assert section.sentences[0].startswith("2 of 5 criteria breached")


def test_the_accuracy_section_has_both_models_the_gain_and_the_test():
    section = sections(gate_results.gate_result())["gain"]
    (table,) = section.tables
    assert table.rows == [
        ("convoy/7", "329", "357", "92.16 %", "88.90 % to 94.52 %"),
        ("convoy/8", "341", "357", "95.52 %", "92.84 % to 97.22 %"),
        ("gain", "", "", "+3.4 points", "+1.0 to +4.3"),
    ]
    counts, test = section.sentences
    assert "right on 327 and wrong on 14 of 357 images" in counts
    assert "14 (fixed), only the champion on 2 (regressed)" in counts
    # 2 * (1 + 16 + 120) / 2^16, by hand
    assert "14 against 2: p = 0.0042. At 95 % confidence, the candidate is significantly better." in test


@pytest.mark.parametrize(
    ("b", "c", "parts"),
    [
        (6, 4, ["p = 0.7539", "it may be chance"]),
        (40, 2, ["p < 0.0001", "significantly better"]),
        (2, 14, ["significantly worse"]),
        (0, 0, ["p = 1.0000", "it may be chance"]),
    ],
)
def test_the_test_is_explained_for_every_result(b, c, parts):
    result = gate_results.gate_result(
        comparison=gate_results.comparison(341 - b - c, b, c, 16), conditions={"confidence": 0.999}
    )
    sentences = " ".join(sections(result)["gain"].sentences)
    assert all(part in sentences for part in parts)
    assert "At 99.9 % confidence" in sentences


def test_classes_have_both_recalls_and_the_change():
    figures = (ClassFigures("cat", 30, 0.8, 0.9), ClassFigures("dog", 31, 0.825, None))
    (table,) = sections(gate_results.gate_result(classes=figures))["classes"].tables
    assert table.rows == [
        ("cat", "30", "90.0 %", "80.0 %", f"{MINUS}10.0"),
        ("dog", "31", text.NOTHING, "82.5 %", text.NOTHING),
    ]


def test_of_many_classes_those_that_fell_most_are_listed_in_their_own_order():
    figures = [ClassFigures(f"class {n}", 10, 0.9, 0.9) for n in range(300)]
    figures[250], figures[7] = ClassFigures("fallen", 10, 0.1, 0.9), ClassFigures("low", 10, 0.2, 0.2)
    (table,) = sections(gate_results.gate_result(classes=tuple(figures)), most_classes=40)["classes"].tables
    names = [row[0] for row in table.rows]
    assert (len(names), table.total) == (40, 300)
    assert names.index("low") < names.index("fallen")


def test_flips_are_counted_in_all_although_the_first_ones_are_listed():
    result = gate_results.gate_result(
        comparison=gate_results.comparison(0, 250, 101, 6), flips=gate_results.flips(100, 100)
    )
    regressed, fixed = sections(result, most_flips=20)["flips"].tables
    assert (len(regressed.rows), regressed.total, fixed.total) == (20, 101, 250)
    assert regressed.rows[0] == ("0/broken_0000.png", "0", "0", "0.61", "3", "0.72")
    assert fixed.rows[0] == ("0/fixed_0000.png", "0", "3", "0.61", "0", "0.72")
    assert regressed.title.endswith("101")
    assert "flips" not in sections(gate_results.without_champion())


def test_the_conditions_name_models_data_and_how_it_was_measured():
    assert text.conditions_table(gate_results.gate_result()).rows == [
        ("Candidate", f"convoy/8 {'a' * 64}"),
        ("Champion", f"convoy/7 {'b' * 64}"),
        ("Data", "c" * 64),
        ("Test images judged", "357"),
        ("Left out, in the champion's training", "12"),
        ("moment", "2026-11-23T22:10:05+00:00"),
        ("confidence", "0.95"),
        ("equal within", "0.02"),
        ("latency, threads", "1"),
        ("versions, onnxruntime", "1.32.0"),
    ]
    unreadable = text.conditions_table(gate_results.gate_result(champion_sha256=None))
    assert ("Champion", "convoy/7 (cannot be read)") in unreadable.rows
    assert ("Champion", "none yet") in text.conditions_table(gate_results.without_champion()).rows


def test_a_candidate_that_is_the_champion_is_listed_once():
    share = gate_results.share(341, 357)
    result = replace(gate_results.identical(), candidate_share=share, champion_share=share)
    assert [row[0] for row in sections(result)["gain"].tables[0].rows] == ["convoy/7"]
    assert sections(gate_results.identical()) == {}
