"""Texts of others in a report, and more of them than it holds."""

from dataclasses import replace
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gate_results as judged
from convoy.gate.names import short
from convoy.retraining import escaped, report, tables
from convoy.retraining.data_diff import changes
from convoy.retraining.facts import Delivery, Identity, Step
from report_examples import IDENTITY, ROUNDS, Read, images, read, round_of


def hostile_round():
    said = " ".join(judged.HOSTILE)
    every = judged.HOSTILE
    return round_of(
        "refused",
        gate_result=judged.hostile(),
        reason=said,
        trigger=said,
        source=said,
        job="javascript:alert(1)",
        changes=changes(images(300, every), images(330, every, every[:9]), {f"{n:064x}": f"{every[n % len(every)]}/x.png" for n in range(330)}),
        steps=tuple(Step(name, 1, name) for name in every),
        identity=Identity(**dict.fromkeys(vars(IDENTITY), said)),
        deliveries=(*(Delivery(name, done=False, why=name) for name in every), *(Delivery("x", done=True, where=name) for name in every),
                    Delivery("y", done=True, where="https://example.org/)](x) [y](http://evil.example")),
    )  # fmt: skip


def test_no_text_of_others_becomes_markup():
    without_credentials = read(hostile_round())
    allowed = {"<details>", "</details>", "<summary>", "</summary>", "<code>", "</code>"}
    for raw in without_credentials.raw:
        assert raw.strip() in allowed or raw.startswith("<details><summary>")
    assert "<script" not in without_credentials.html
    assert "<img" not in without_credentials.html
    assert len(without_credentials.links) == 1
    assert unquote(without_credentials.links[0]) == "https://example.org/)](x) [y](http://evil.example"
    assert without_credentials.html.count("<del>") == without_credentials.html.count("<em>x") == 0
    assert without_credentials.heads == [
        without_credentials.heads[0],
        "The verdict, criterion by criterion",
        "Data",
        "Candidate against champion",
        "Images that flipped",
        "Minutes and energy",
        "Where it went",
        "Identity",
        "What to do next",
    ]


def test_every_row_of_every_table_keeps_its_columns_whatever_the_names_are():
    without_credentials = read(hostile_round())
    for found in without_credentials.tables.values():
        for table in found:
            assert {len(row) for row in table} == {len(table[0])}
    recalls = without_credentials.tables["Candidate against champion"][1]
    assert [row[0] for row in recalls[1:]] == [short(name, escaped.LONGEST_NAME) for name in judged.HOSTILE]


def test_an_error_cannot_end_its_block():
    without_credentials = read(round_of("failed", reason="```\n# not a heading\n````\n<script>"))
    assert without_credentials.blocks[0] == "```\n# not a heading\n````\n<script>\n"
    assert "# not a heading" not in without_credentials.heads


@given(st.text(max_size=80))
@example(" ")
@example("`a")
@example("a`")
@example(" a ")
@example("``|\\|")
def test_any_name_is_shown_as_it_is_in_a_cell_of_a_table(name):
    text = tables.table(("name", "after"), [(escaped.code(name), "x")])
    (row,) = Read(f"# t\n\n{text}\n").tables["t"][0][1:]
    assert row == [short(name, escaped.LONGEST_NAME), "x"]


@given(st.text(max_size=80))
def test_any_sentence_is_shown_as_it_is_in_a_cell_and_at_the_start_of_a_line(sentence):
    expected = " ".join(short(word, escaped.LONGEST_WORD) for word in sentence.split())
    table = tables.table(("said", "after"), [(escaped.prose(sentence), "x")])
    (row,) = Read(f"# t\n\n{table}\n").tables["t"][0][1:]
    assert row == [expected, "x"]
    without_credentials = Read(f"# t\n\n{escaped.prose(sentence)}\n")
    assert without_credentials.paragraphs.get("t", [""]) == [expected]
    assert not without_credentials.raw


def test_a_word_that_would_widen_the_page_is_cut_in_its_middle():
    assert escaped.prose(f"class {'x' * 300}y fell") == f"class {'x' * 59}…{'x' * 59}y fell"


def test_nobody_is_called_by_a_name_with_an_at_sign():
    assert escaped.prose("ask @everyone and me@example.org") == "ask @\u200beveryone and me@example.org"


def enormous():
    """Make a round with more of everything than any forge takes, in names as long as they get."""
    many = [f"{'|' * 70}{n}" for n in range(1500)]
    said = "| " * 5000
    return round_of(
        "failed",
        reason="error\n" * 20_000,
        log="line\n" * 20_000,
        gate_result=judged.judgement(
            verdict="refuse",
            reasons=tuple(f"{n} {said}" for n in range(100)),
            criteria=tuple(judged.criterion("accuracy", title=said[:60], note=said) for _ in range(12)),
            classes=judged.classes(many),
            flips=judged.flips(1000, 1000, many),
        ),
        changes=changes(images(6000, many), images(7000, many, many[::3]), {f"{n:064x}": many[n % 1500] for n in range(7000)}),
        deliveries=tuple(Delivery(said, done=False, why=said) for _ in range(3)),
        trigger=said,
        source=said,
    )  # fmt: skip


@pytest.mark.parametrize("verdict", ["failed", "refused"])
def test_a_report_never_exceeds_what_a_pull_request_takes(verdict):
    text = report.body(replace(enormous(), outcome=verdict))
    assert len(text) <= report.MOST
    without_credentials = Read(text)
    assert {"The verdict, criterion by criterion", "Identity", "What to do next"} <= set(
        without_credentials.heads
    )
    assert "more are not listed." in text


def test_what_is_cut_is_the_examples_and_never_the_verdict():
    many = [f"class {n}" for n in range(2000)]
    facts = round_of("promoted", gate_result=judged.judgement(classes=judged.classes(many)))
    full, cut = read(ROUNDS["promoted"]), read(facts)
    name = "The verdict, criterion by criterion"
    assert cut.tables[name] == full.tables[name]
    recalls = cut.tables["Candidate against champion"][1]
    worst = min(
        (one for one in judged.classes(many)), key=lambda one: (one.candidate - one.champion, one.candidate)
    )
    assert recalls[1][0] == worst.name
    said = cut.paragraphs["Candidate against champion"]
    assert f"{2000 - (len(recalls) - 1):,} more are not listed." in said


def test_equal_rounds_give_equal_reports():
    assert report.body(hostile_round()) == report.body(hostile_round())
