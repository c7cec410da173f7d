import pytest
from hypothesis import given
from hypothesis import strategies as st

import gate_results as judged
from convoy.gate import written


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9345, "share", "93.5 %"),
        (-0.031, "points", "-3.1 points"),
        (-0.00001, "points", "0.0 points"),
        (12.345, "ms", "12.35 ms"),
        (1234.5, "MB", "1,234.50 MB"),
        (1.5, "times", "1.50 times"),
        (1357, "images", "1,357"),
        (0.0312, "", "0.0312"),
        (None, "share", written.NOTHING),
    ],
)
def test_a_figure_is_written_with_its_unit(value, unit, text):
    assert written.number(value, unit) == text


@pytest.mark.parametrize(
    ("figure", "limit", "unit", "texts"),
    [
        (0.956, 0.5, "share", ("95.6 %", "at least 50 %")),
        (0.49996, 0.5, "share", ("49.996 %", "at least 50 %")),
        (0.5, 0.5, "share", ("50.0 %", "at least 50 %")),
        (199.9999, 200.0, "ms", ("199.9999 ms", "at least 200 ms")),
        (0.3, 0.123, "share", ("30.0 %", "at least 12.3 %")),
        (1_000, 2_000, "images", ("1,000", "at least 2,000")),
        (None, 0.3, "share", (written.NOTHING, "at least 30 %")),
    ],
)
def test_a_limit_is_written_as_it_was_typed_and_the_figure_so_that_they_differ(figure, limit, unit, texts):
    assert written.sides(judged.criterion("accuracy", figure=figure, limit=limit, unit=unit)) == texts


@given(st.floats(0, 1), st.floats(0.01, 1).map(lambda share: round(share, 3)))
def test_a_breach_that_can_be_seen_never_looks_like_the_limit(figure, limit):
    found, asked = written.sides(judged.criterion("accuracy", figure=figure, limit=limit, unit="share"))
    without_credentials = float(found.split()[0]) / 100
    assert abs(figure - limit) < 1e-8 or without_credentials != pytest.approx(limit, abs=1e-12)
    assert float(asked.split()[2]) / 100 == pytest.approx(limit, abs=1e-9)


@pytest.mark.parametrize(
    ("held", "limit", "outcome"),
    [
        (True, 0.5, "held"),
        (False, None, "breached"),
        (None, None, "not asked"),
        (None, 0.5, "not compared"),
    ],
)
def test_an_outcome_tells_what_was_not_asked_from_what_could_not_be_compared(held, limit, outcome):
    assert written.outcome(judged.criterion("accuracy", held=held, limit=limit)) == outcome


def test_what_is_breached_comes_first_and_the_rest_keeps_its_order():
    asked = [
        judged.criterion("one"),
        judged.criterion("two", held=None),
        judged.criterion("three", held=False),
        judged.criterion("four"),
        judged.criterion("five", held=False),
    ]
    assert [one.name for one in written.ordered(asked)] == ["three", "five", "one", "four", "two"]


@pytest.mark.parametrize(
    ("changed", "headline"),
    [
        ({}, "convoy/8 should be the champion after convoy/7"),
        ({"verdict": "keep"}, "convoy/7 stays champion"),
        ({"verdict": "refuse"}, "convoy/8 is refused: convoy/7 stays champion"),
        ({"champion": None}, "convoy/8 should be the champion"),
        ({"verdict": "refuse", "champion": None}, "convoy/8 is refused: there is still no champion"),
    ],
)
def test_the_headline_says_who_is_champion(changed, headline):
    assert written.headline(judged.judgement(**changed)) == headline


def test_the_comparison_is_explained_and_has_the_figures_of_the_test():
    text = " ".join(written.compared(judged.judgement()))
    assert "the same 357 images. On 341 of them both were right (327) or both wrong (14)" in text
    assert "On the other 16 images only one was right: the candidate on 14, the champion on 2." in text
    # 2 * (1 + 16 + 120) / 2^16, by hand
    assert "42 of 10,000 cases (exact two-sided McNemar test: p = 0.0042, b = 14, c = 2)" in text
    assert "rare enough for 95 % confidence that the candidate is better." in text
    assert "+3.4 points of accuracy; on images like these it lies between +1.0 and +4.3 points" in text


@pytest.mark.parametrize(
    ("b", "c", "said"),
    [
        (
            6,
            4,
            "75.4 of 100 cases (exact two-sided McNemar test: p = 0.7539, b = 6, c = 4). That is too often",
        ),
        (40, 2, "less than 1 of 10,000 cases (exact two-sided McNemar test: p < 0.0001"),
        (2, 14, "lies between \N{MINUS SIGN}4.3 and \N{MINUS SIGN}1.0 points"),
        (2, 14, "That is rare enough for 95 % confidence that the candidate is worse."),
        (1, 0, "100 of 100 cases"),
        (1, 0, "On the other 1 image only one was right"),
        (0, 0, "no image on which only one of them was right, so neither is shown to be better (p = 1"),
    ],
)
def test_every_split_of_the_images_is_put_in_words(b, c, said):
    judgement = judged.judgement(comparison=judged.comparison(341 - b - c, b, c, 16))
    text = " ".join(written.compared(judgement))
    assert said in text


def test_the_confidence_is_the_one_of_the_gate():
    judgement = judged.judgement(conditions={"confidence": 0.999})
    assert "for 99.9 % confidence" in " ".join(written.compared(judgement))


def test_flips_are_counted_in_all_though_the_judgement_names_the_first_ones():
    judgement = judged.judgement(comparison=judged.comparison(0, 250, 101, 6), flips=judged.flips(100, 100))
    assert [(kind, total, len(named)) for kind, _, total, named in written.flips(judgement)] == [
        ("broken", 101, 100),
        ("fixed", 250, 100),
    ]
    assert written.flips(judged.without_champion()) == []
