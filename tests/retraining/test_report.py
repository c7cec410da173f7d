from dataclasses import replace
from urllib.parse import unquote

import pytest

import gate_results as judged
from convoy.gate.written import NOTHING
from convoy.retraining import report, tables
from convoy.retraining.facts import Identity
from report_examples import IDENTITY, JOB, ROUNDS, Read, read, round_of, stopped


@pytest.mark.parametrize(
    ("name", "title", "serving"),
    [
        ("promoted", "Promoted: convoy/8 is the champion, after convoy/7", "convoy/8 serves now. convoy/7 served before."),
        ("first", "Promoted: convoy/8 is the champion", "convoy/8 serves now."),
        ("kept", "Kept: convoy/7 stays champion", "convoy/7 goes on serving, as before."),
        ("refused", "Refused: convoy/8 breaks the gate's limits", "convoy/7 goes on serving, as before."),
        ("nothing-new", "Nothing new: nothing was trained", "convoy/7 goes on serving, as before."),
        ("skipped", "Skipped: another round runs", "convoy/7 goes on serving, as before."),
        ("failed", "Failed in step push", "convoy/7 goes on serving, as before."),
        ("failed early", "Failed in step look upstream", "No alias was moved: whatever served before goes on serving."),
        ("no champion", "Kept: nothing stays champion", "There is no champion: nothing was served before, and nothing is now."),
    ],
)  # fmt: skip
def test_a_report_begins_with_how_the_round_ended_and_who_serves(name, title, serving):
    without_credentials = read(ROUNDS[name])
    assert without_credentials.heads[0] == title
    assert without_credentials.paragraphs[title][0] == serving


@pytest.mark.parametrize("name", ["promoted", "kept", "refused"])
def test_where_the_gate_decided_its_reasons_follow(name):
    without_credentials = read(ROUNDS[name])
    assert without_credentials.paragraphs[without_credentials.heads[0]][1:3] == [
        "Promote convoy/8: it is better.",
        "Every limit holds.",
    ]


def test_a_failure_shows_the_error_line_by_line_and_the_last_lines_of_the_step():
    without_credentials = read(ROUNDS["failed"])
    assert without_credentials.blocks == [
        "The remote refused the branch:\n  ! [remote rejected]\n",
        "one\ntwo\n",
    ]
    assert ["push", "0.04 s", "failed"] in without_credentials.tables["Minutes and energy"][0]
    assert without_credentials.heads[1] == "What to do next"
    assert "PUSH=1 make retrain" in without_credentials.lists["What to do next"][0]
    assert "retrain/20261123-221005" in without_credentials.lists["What to do next"][1]


def test_without_push_the_command_to_try_again_has_none():
    assert "run make retrain;" in read(round_of("failed", push=False)).lists["What to do next"][0]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("promoted", ["Merge retrain/20261123-221005", "convoy rollback"]),
        ("first", ["Merge retrain/20261123-221005", "first champion"]),
        ("kept", ["Nothing has to be done", "retrain/20261123-221005", 'convoy promote --override "reason"']),
        ("refused", ["labels that changed", "breached", "retrain/20261123-221005", 'convoy promote --override "reason"']),
        ("nothing-new", ["the next round looks again"]),
        ("skipped", ["the round that runs writes its own report"]),
    ],
)  # fmt: skip
def test_a_report_says_what_to_do_next(name, advice):
    said = read(replace(ROUNDS[name], hints=["First `do this`."])).lists["What to do next"]
    assert said[0] == "First do this."
    assert len(said) == 1 + len(advice)
    for part, sentence in zip(advice, said[1:], strict=True):
        assert part in sentence


def test_the_verdict_stands_criterion_by_criterion_the_breached_first():
    without_credentials = read(ROUNDS["refused"])
    (table,) = without_credentials.tables["The verdict, criterion by criterion"]
    assert table[:3] == [
        ["Criterion", "Found", "Limit", "Outcome", "Note"],
        ["Class drop", "83.0 points", "at most 20 points", "breached", ""],
        ["Proof", NOTHING, NOTHING, "held", "passed, of these bytes"],
    ]
    assert len(table) == 2 + len(judged.CRITERIA)
    (said,) = without_credentials.paragraphs["The verdict, criterion by criterion"]
    assert said.startswith("The gate's verdict on convoy/8: refuse. 1 of 8 criteria breached.")
    assert "**Class drop**" in report.body(ROUNDS["refused"])


def test_poisoned_labels_are_said_at_the_top_and_listed_by_what_became_of_them():
    without_credentials = read(ROUNDS["refused"])
    warning = without_credentials.paragraphs[without_credentials.heads[0]][-1]
    assert warning.startswith(
        "Labels changed. 140 of the 200 images that were there before carry another label now (70.0 %)."
    )
    relabels, examples, classes = without_credentials.tables["Data"]
    assert relabels[:2] == [["Label before", "Label now", "Images"], ["0", "1", "20"]]
    assert len(relabels) == 8
    assert examples[0] == ["File today", "Pixels", "Label before", "Label now", "Part"]
    assert examples[1] == [NOTHING, "000000000000", "0", "1", "test"]
    assert ["0", "20", "0", "-20"] in classes
    assert ["7", "20", "40", "+20"] in classes
    assert (
        "200 images before, 200 now: 0 added, 0 gone, 140 relabelled"
        in without_credentials.paragraphs["Data"][0]
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("promoted", "200 images before, 260 now: 60 added, 0 gone, 0 relabelled, 0 moved between train, val and test."),
        ("first", "9 images. No champion served before, so nothing can be compared."),
        ("kept", "The same 9 images as before, with the same labels, in the same parts."),
    ],
)  # fmt: skip
def test_other_changes_of_the_data_are_counted_without_a_warning(name, said):
    without_credentials = read(ROUNDS[name])
    assert without_credentials.paragraphs["Data"][0].startswith(said)
    assert "Labels changed" not in report.body(ROUNDS[name])


def test_both_accuracies_and_the_gain_stand_with_their_intervals_and_the_test_in_words():
    without_credentials = read(ROUNDS["promoted"])
    shares, recalls = without_credentials.tables["Candidate against champion"]
    assert shares == [
        ["Model", "Right", "Accuracy", "95 % interval"],
        ["convoy/7", "329 of 357", "92.16 %", "88.90 % to 94.52 %"],
        ["convoy/8", "341 of 357", "95.52 %", "92.84 % to 97.22 %"],
        ["gain, in points", "", "+3.4", "+1.0 to +4.3"],
    ]
    assert recalls[1] == ["0", "30", "90.0 %", "80.0 %", "\N{MINUS SIGN}10.0"]
    said = " ".join(without_credentials.paragraphs["Candidate against champion"])
    assert "p = 0.0042, b = 14, c = 2" in said
    assert "Test images judged: 357; left out: 12 in the champion's training." in said
    alone = read(ROUNDS["first"])
    assert "Candidate against champion" not in alone.heads
    shares, recalls = alone.tables["Accuracy"]
    assert [row[0] for row in shares] == ["Model", "convoy/8"]
    assert recalls[:2] == [["Class", "Images", "Candidate"], ["0", "30", "80.0 %"]]


def test_flipped_images_of_both_kinds_are_listed():
    without_credentials = read(ROUNDS["promoted"])
    broken, fixed = without_credentials.tables["Images that flipped"]
    assert broken[1] == ["0/broken_0000.png", "0", "0 0.61", "3 0.72"]
    assert fixed[1] == ["0/fixed_0000.png", "0", "3 0.61", "0 0.72"]
    assert without_credentials.paragraphs["Images that flipped"][:1] == ["Only the champion is right: 2"]


def test_minutes_and_energy_stand_per_step_and_per_stage():
    steps, energy = read(ROUNDS["promoted"]).tables["Minutes and energy"]
    assert steps[1:] == [
        ["look upstream", "1.3 s", "3 files differ"],
        ["repro", "2 min 23 s", ""],
        ["push", "0.04 s", ""],
        ["together", "2 min 44 s", ""],
    ]
    assert energy[1:] == [
        ["train", "2.1 Wh, 1 g CO2", "estimated"],
        ["together", "2.4 Wh, 1.1 g CO2", "estimated"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.037, "0.04 s"), (12.34, "12.3 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (7_260, "2 h 1 min")],
)
def test_durations_are_written_for_people(seconds, text):
    assert tables.duration(seconds) == text


def test_the_identity_names_every_part_that_there_is():
    (table,) = read(ROUNDS["promoted"]).tables["Identity"]
    assert [row[1] for row in table[1:]] == list(vars(IDENTITY).values())
    assert len({row[0] for row in table}) == len(table)
    (short_one,) = read(stopped("skipped", identity=Identity(commit="1" * 40))).tables["Identity"]
    assert short_one[1:] == [["git commit (code and params)", "1" * 40]]
    assert "Identity" not in read(ROUNDS["skipped"]).heads


def test_where_things_went_and_why_not_is_stated():
    without_credentials = read(ROUNDS["promoted"])
    assert without_credentials.lists["Where it went"] == [
        "data and models: s3://team/store",
        "pull request: https://example.org/pull/12, opened",
        "branch: not done, PUSH=1 was not given; type: git push origin retrain/x",
    ]
    assert "https://example.org/pull/12" in without_credentials.links


def test_pictures_are_relative_links_beside_the_report_and_dark_ones_are_left_out(tmp_path):
    names = ("gain.png", "gain-dark.png", "classes.png", "relabelled.png", "flips.png", "other.png")
    report.write(
        tmp_path / "report.md", ROUNDS["refused"], [tmp_path / "with (a) space" / name for name in names]
    )
    without_credentials = Read((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert [unquote(source) for source in without_credentials.images] == [
        f"with (a) space/{name}" for name in ("relabelled.png", "gain.png", "classes.png", "flips.png")
    ]


def test_where_pictures_cannot_be_seen_the_job_is_linked_instead():
    without_credentials = read(ROUNDS["promoted"])
    assert without_credentials.images == []
    assert JOB in without_credentials.links
    assert (
        "The pictures to this lie beside report.md, among the files of the job."
        in without_credentials.paragraphs["Images that flipped"]
    )
    assert "in build/retrain/." in " ".join(
        read(replace(ROUNDS["promoted"], job="")).paragraphs["Images that flipped"]
    )
