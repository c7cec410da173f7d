"""The report of a round, as GitHub renders it."""

from dataclasses import replace
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gate_results
from convoy.core.escaping import LONGEST_NAME, LONGEST_WORD, prose, short
from convoy.gate.text import NOTHING, Name, Table
from convoy.retraining import report
from convoy.retraining.data_diff import diff
from convoy.retraining.outcome import Delivery, Identity, Step
from report_examples import IDENTITY, JOB, ROUNDS, Parsed, ended_early, images, parse, round_with

STILL = "convoy/7 still serves."
HEADS = [
    "Criteria", "Data", "Is the candidate better?", "Recall per class", "Changed predictions", "Minutes and energy",
    "Pushed", "Identity", "Next steps",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "title", "serving"),
    [
        ("promoted", "Promoted: convoy/8 is the champion, replacing convoy/7", "convoy/8 serves now. convoy/7 served before."),
        ("first", "Promoted: convoy/8 is the champion", "convoy/8 serves now."),
        ("kept", "Kept: convoy/7 stays champion", STILL),
        ("refused", "Refused: convoy/8 breaches limits of the gate", STILL),
        ("nothing-new", "Nothing new: nothing was trained", STILL),
        ("skipped", "Skipped: another round is running", STILL),
        ("paused", "Paused in step push", STILL),
        ("failed", "Failed in step push", STILL),
        ("failed early", "Failed in step look upstream", "No alias was moved: what served before still serves."),
        ("no champion", "Kept: no champion", "There is no champion, and there was none before."),
    ],
)  # fmt: skip
def test_a_report_begins_with_the_outcome_and_what_serves(name, title, serving):
    parsed = parse(ROUNDS[name])
    assert parsed.heads[0] == title
    assert parsed.paragraphs[title][0] == serving
    has_reasons = parsed.paragraphs[title][1:3] == ["Promote convoy/8: it is better.", "Every limit holds."]
    assert has_reasons == title.startswith(("Promoted:", "Kept:", "Refused:"))


def test_the_first_table_lists_what_is_known_of_start_reason_source_and_job():
    reason, source = (
        ["trained because", "the data changed upstream"],
        ["data from", "https://example.org/digits.zip"],
    )
    for name, known in (("promoted", [reason, source, ["job", JOB]]), ("skipped", [source, ["job", JOB]])):
        parsed = parse(ROUNDS[name])
        (table,) = parsed.tables[parsed.heads[0]]
        assert table[1:] == [["started", "2026-11-23 22:10 UTC, took 2 min 44 s"], *known]


def test_a_failure_shows_the_error_line_by_line_and_the_last_lines_of_the_step():
    parsed = parse(ROUNDS["failed"])
    assert parsed.blocks == ["The remote refused the branch:\n  ! [remote rejected]\n", "one\ntwo\n"]
    assert ["push", "0.04 s", "failed"] in parsed.tables["Minutes and energy"][0]
    assert parsed.heads[1] == "Next steps"


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("promoted", ["Merge retrain/20261123-221005", "convoy rollback"]),
        ("first", ["Merge retrain/20261123-221005", "first champion"]),
        ("kept", ["Nothing needs to be done", "retrain/20261123-221005", 'convoy promote --override "reason"']),
        ("refused", ["changed labels", "breached", "retrain/20261123-221005", 'convoy promote --override "reason"']),
        ("nothing-new", ["the next round checks again"]),
        ("skipped", ["the running round writes its own report"]),
        ("paused", ["the next round resumes. To start it now: PUSH=1 make retrain"]),
        ("failed", ["run PUSH=1 make retrain;", "retrain/20261123-221005"]),
    ],
)  # fmt: skip
def test_next_steps_name_commands_and_branch_hints_first(name, steps):
    listed = parse(replace(ROUNDS[name], hints=["First `do this`."])).lists["Next steps"]
    assert listed[0] == "First do this."
    assert len(listed) == 1 + len(steps)
    assert all(part in sentence for part, sentence in zip(steps, listed[1:], strict=True))
    assert "PUSH=1" not in str(parse(replace(ROUNDS[name], push=False)).lists["Next steps"])


def test_sections_of_the_gate_and_the_data_follow_in_order():
    parsed = parse(ROUNDS["promoted"])
    assert parsed.heads[1:] == HEADS
    (shares,) = parsed.tables["Is the candidate better?"]
    assert shares[2] == ["convoy/8", "341", "357", "95.52 %", "92.84 % to 97.22 %"]
    assert "p = 0.0042" in " ".join(parsed.paragraphs["Is the candidate better?"])
    regressed, _ = parsed.tables["Changed predictions"]
    assert regressed[1] == ["0/broken_0000.png", "0", "0", "0.61", "3", "0.72"]
    assert parsed.tables["Recall per class"][0][1][0] == "0"
    assert "Is the candidate better?" not in parse(ROUNDS["first"]).heads


def test_breached_criteria_are_bold_and_first():
    (table,) = parse(ROUNDS["refused"]).tables["Criteria"]
    assert table[0] == ["Criterion", "Value", "Limit", "Status", "Note"]
    assert table[1] == ["Class drop", "83.0 points", "at most 20 points", "breached", ""]
    assert table[2] == ["Verification of model.onnx", NOTHING, NOTHING, "met", "passed with these bytes"]
    assert "**Class drop**" in report.render(ROUNDS["refused"])


def test_relabelled_images_are_warned_of_at_the_top_and_listed():
    parsed = parse(ROUNDS["refused"])
    warning = parsed.paragraphs[parsed.heads[0]][-1]
    assert warning.startswith("Labels changed. 140 of the 200 images")
    assert "(70.0 %)" in warning
    relabels, examples, classes = parsed.tables["Data"]
    assert relabels[:2] == [["Label before", "Label now", "Images"], ["0", "1", "20"]]
    assert len(relabels) == 8
    assert examples[0] == ["File today", "Pixels", "Label before", "Label now", "Split"]
    assert examples[1] == [NOTHING, "000000000000", "0", "1", "test"]
    assert ["0", "20", "0", "-20"] in classes
    assert ["7", "20", "40", "+20"] in classes


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("refused", "200 images before, 200 now: 0 added, 0 removed, 140 relabelled, 0 moved"),
        ("promoted", "200 images before, 260 now: 60 added, 0 removed, 0 relabelled, 0 moved"),
        ("first", "9 images. There was no champion before"),
        ("kept", "The same 9 images as before"),
    ],
)
def test_changes_of_the_data_are_counted(name, sentence):
    assert parse(ROUNDS[name]).paragraphs["Data"][0].startswith(sentence)
    assert ("Labels changed" in report.render(ROUNDS[name])) == (name == "refused")


def test_minutes_and_energy_are_listed_per_step_and_per_stage():
    steps, energy = parse(ROUNDS["promoted"]).tables["Minutes and energy"]
    assert steps[1:3] == [["look upstream", "1.3 s", "3 files differ"], ["repro", "2 min 23 s", ""]]
    assert steps[3:] == [["push", "0.04 s", ""], ["total", "2 min 44 s", ""]]
    rows = [["train", "2.1 Wh, 1 g CO2", "estimated"], ["total", "2.4 Wh, 1.1 g CO2", "estimated"]]
    assert energy[1:] == rows


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.037, "0.04 s"), (12.34, "12.3 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (7_260, "2 h 1 min")],
)
def test_durations_are_formatted_for_people(seconds, text):
    assert report.duration(seconds) == text


def test_the_identity_lists_every_part_that_exists():
    (table,) = parse(ROUNDS["promoted"]).tables["Identity"]
    assert [row[1] for row in table[1:]] == list(vars(IDENTITY).values())
    assert len({row[0] for row in table}) == len(table)
    (table,) = parse(ended_early("skipped", identity=Identity(commit="1" * 40))).tables["Identity"]
    assert table[1:] == [["git commit (code and params)", "1" * 40]]
    assert "Identity" not in parse(ROUNDS["skipped"]).heads


def test_deliveries_are_listed_with_address_or_reason():
    parsed = parse(ROUNDS["promoted"])
    assert parsed.tables["Pushed"][0][1:] == [
        ["data and models", "s3://team/store", ""],
        ["pull request", "https://example.org/pull/12", ""],
        ["branch", "not done", "PUSH=1 was not given; type: git push origin retrain/x"],
    ]
    assert "https://example.org/pull/12" in parsed.links


def test_figures_are_relative_links_beside_the_report(tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    names = ("verdict.html", "gain.png", "classes.png", "relabelled.png", "flips.png")
    paths = tuple(report.scratch(tmp_path) / "with (a) space" / name for name in names)
    written = report.write(tmp_path, replace(ROUNDS["refused"], files=paths))
    parsed = Parsed((tmp_path / written).read_text(encoding="utf-8"))
    shown = ("relabelled.png", "gain.png", "classes.png", "flips.png")
    assert [unquote(source) for source in parsed.images] == [f"with (a) space/{name}" for name in shown]


def test_where_figures_cannot_be_seen_their_place_is_named():
    parsed = parse(ROUNDS["promoted"])
    assert parsed.images == []
    assert JOB in parsed.links
    assert "among the files of the job" in " ".join(parsed.paragraphs["Is the candidate better?"])
    local = parse(replace(ROUNDS["promoted"], job=""))
    assert "in build/retrain/." in " ".join(local.paragraphs["Is the candidate better?"])


# Texts of others, and more of them than a report holds


def hostile_round():
    every = gate_results.HOSTILE
    sentence = " ".join(every)
    return round_with(
        "refused",
        gate_result=gate_results.hostile(),
        reason=sentence,
        trigger=sentence,
        source=sentence,
        job="javascript:alert(1)",
        changes=diff(images(300, every), images(330, every, every[:9]), {f"{n:064x}": f"{every[n % len(every)]}/x.png" for n in range(330)}),
        steps=[Step(name, 1, name) for name in every],
        identity=Identity(**dict.fromkeys(vars(IDENTITY), sentence)),
        deliveries=[*(Delivery(name, why=name) for name in every), *(Delivery("x", where=name) for name in every),
                    Delivery("y", where="https://example.org/)](x) [y](http://evil.example")],
    )  # fmt: skip


def test_no_text_of_others_becomes_markup():
    parsed = parse(hostile_round())
    allowed = {"<details>", "</details>", "<summary>", "</summary>", "<code>", "</code>"}
    assert all(raw.strip() in allowed or raw.startswith("<details><summary>") for raw in parsed.raw)
    assert not [tag for tag in ("<script", "<img", "<del>", "<em>x") if tag in parsed.html]
    assert [unquote(link) for link in parsed.links] == ["https://example.org/)](x) [y](http://evil.example"]
    assert parsed.heads[1:] == HEADS


def test_every_row_of_every_table_keeps_its_columns_whatever_the_names_are():
    parsed = parse(hostile_round())
    for tables in parsed.tables.values():
        for table in tables:
            assert {len(row) for row in table} == {len(table[0])}
    names = [row[0] for row in parsed.tables["Recall per class"][0][1:]]
    assert names == [short(name, LONGEST_NAME) for name in gate_results.HOSTILE]


def test_an_error_cannot_end_its_block():
    parsed = parse(round_with("failed", reason="```\n# not a heading\n````\n<script>"))
    assert parsed.blocks[0] == "```\n# not a heading\n````\n<script>\n"
    assert "# not a heading" not in parsed.heads


@given(st.text(max_size=80))
@example(" ")
@example("`a")
@example("a`")
@example(" a ")
@example("``|\\|")
def test_any_name_is_shown_literally_in_a_cell(name):
    table = report.table(Table(("name", "after"), [(Name(name), "x")]))
    (row,) = Parsed(f"# t\n\n{table}\n").tables["t"][0][1:]
    assert row == [short(name, LONGEST_NAME), "x"]


@given(st.text(max_size=80))
def test_any_sentence_is_shown_literally_in_a_cell_and_at_the_start_of_a_line(sentence):
    expected = " ".join(short(word, LONGEST_WORD) for word in sentence.split())
    table = report.table(Table(("sentence", "after"), [(sentence, "x")]))
    (row,) = Parsed(f"# t\n\n{table}\n").tables["t"][0][1:]
    assert row == [expected, "x"]
    parsed = Parsed(f"# t\n\n{prose(sentence)}\n")
    assert parsed.paragraphs.get("t", [""]) == [expected]
    assert not parsed.raw


def test_long_words_are_cut_in_their_middle_and_an_at_sign_notifies_nobody():
    assert prose(f"class {'x' * 300}y fell") == f"class {'x' * 59}…{'x' * 59}y fell"
    assert prose("ask @everyone and me@example.org") == "ask @\u200beveryone and me@example.org"


def enormous_round(outcome):
    """Make a round with more of everything than any forge takes, in names as long as they get."""
    many = [f"{'|' * 70}{n}" for n in range(1500)]
    sentence = "| " * 5000
    return round_with(
        outcome,
        reason="error\n" * 20_000,
        log="line\n" * 20_000,
        gate_result=gate_results.gate_result(
            verdict="refuse",
            reasons=tuple(f"{n} {sentence}" for n in range(100)),
            criteria=tuple(gate_results.criterion("accuracy", title=sentence[:60], note=sentence) for _ in range(12)),
            classes=gate_results.classes(many),
            flips=gate_results.flips(1000, 1000, many),
        ),
        changes=diff(images(6000, many), images(7000, many, many[::3]), {f"{n:064x}": many[n % 1500] for n in range(7000)}),
        deliveries=[Delivery(sentence, why=sentence) for _ in range(3)],
        trigger=sentence,
        source=sentence,
    )  # fmt: skip


@pytest.mark.parametrize("outcome", ["failed", "refused"])
def test_a_report_never_exceeds_what_a_pull_request_takes(outcome):
    text = report.render(enormous_round(outcome))
    assert len(text) <= report.MOST
    assert {"Criteria", "Identity", "Next steps"} <= set(Parsed(text).heads)
    assert "more are not listed." in text
    if outcome == "refused":
        assert "more reasons are in verdict.json" in text


def test_of_long_lists_examples_are_cut_and_never_the_criteria():
    many = [f"class {n}" for n in range(2000)]
    record = round_with("promoted", gate_result=gate_results.gate_result(classes=gate_results.classes(many)))
    full, cut = parse(ROUNDS["promoted"]), parse(record)
    assert cut.tables["Criteria"] == full.tables["Criteria"]
    (recalls,) = cut.tables["Recall per class"]
    worst = min(gate_results.classes(many), key=lambda row: (row.candidate - row.champion, row.candidate))
    assert worst.name in [row[0] for row in recalls]
    assert f"{2000 - (len(recalls) - 1):,} more are not listed." in cut.paragraphs["Recall per class"]


def test_long_tables_are_folded_and_of_many_classes_those_that_changed_most_are_counted():
    names = [f"class {n:03}" for n in range(300)]
    before, now = images(300, names), images(299, names)
    record = round_with("kept", gate_result=None, changes=diff(before, now))
    assert "<details><summary>100 rows</summary>\n" in parse(record).raw
    (removed, counts) = parse(record).tables["Data"]
    assert removed[1][2] == "class 299"
    assert counts[1] == ["class 299", "1", "0", "-1"]
    assert len(counts) == 101
