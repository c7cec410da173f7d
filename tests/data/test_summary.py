"""What people see of a delivery: the table that `prepare`, `convoy data check` and `convoy data use` share."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from convoy.core.dataset import SPLITS
from convoy.core.params import flatten
from convoy.data import summary
from convoy.data.records import Finding, Pair, Record
from convoy.data.scan import Scan
from convoy.images.delivery import Delivery
from convoy.images.formats import Fault
from deliveries import data_params

DELIVERY = Delivery(Path("photos"))


def records_of(counts):
    """Records of as many images per class and split."""
    return [
        Record(f"{label}/{split}{n}.png", label, split)
        for label, numbers in counts.items()
        for split, number in zip(SPLITS, numbers, strict=True)
        for n in range(number)
    ]


def scan_of(counts, *others, cut=(), **fields):
    return Scan(Delivery(Path("photos")), [*records_of(counts), *others], sorted(counts), cut, **fields)


def text_of(scan):
    return "\n".join(summary.lines(scan, data_params()))


def rows_of(scan):
    return [line.split() for line in summary.class_table(scan).splitlines()]


def unused(path, status, reason):
    return Record(path, None, None, status=status, reason=reason)


def test_the_table_has_a_row_per_class_and_the_sums_of_splits_and_classes():
    rows = rows_of(scan_of({"cat": (3, 1, 2), "dog": (1234, 0, 5)}))
    assert rows[1:] == [
        ["cat", "3", "1", "2", "6"],
        ["dog", "1,234", "0", "5", "1,239"],
        ["2", "classes", "1,237", "1", "7", "1,245"],
    ]


@pytest.mark.parametrize(
    ("cut", "titles"),
    [
        ((), ["train (delivered)", "val (delivered)", "test (delivered)"]),
        (("val",), ["train (delivered)", "val (cut)", "test (delivered)"]),
        (("val", "test"), ["train (cut)", "val (cut)", "test (cut)"]),
    ],
)
def test_the_titles_show_which_splits_are_delivered_and_which_are_cut(cut, titles):
    header = summary.class_table(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, cut=cut)).splitlines()[0]
    assert [title for title in titles if title not in header] == []
    assert ("Cut from" in text_of(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, cut=cut))) == bool(cut)


def test_names_that_are_numbers_stand_in_the_order_of_their_values_before_other_names():
    counts = dict.fromkeys(["10", "9", "1", "02", "b", "A", "9" * 5000], (1, 1, 1))
    labels = [row[0] for row in rows_of(scan_of(counts))[1:-1]]
    assert labels[:4] == ["1", "02", "9", "10"]
    assert labels[-2:] == ["A", "b"]


def test_of_many_classes_those_with_the_most_and_the_fewest_images_are_shown():
    counts = {f"n{n}": (n + 1, 0, 0) for n in range(200)}
    rows = rows_of(scan_of(counts))
    assert [row[0] for row in rows[1:11]] == [f"n{n}" for n in range(199, 189, -1)]
    assert " ".join(rows[11]) == "and 180 more 11 to 190 each"
    assert [row[0] for row in rows[12:-1]] == [f"n{n}" for n in range(9, -1, -1)]
    assert len(rows_of(scan_of(dict.fromkeys(map(str, range(20)), (1, 0, 0))))) == 1 + 20 + 1


def test_files_passed_over_are_counted_by_kind_with_an_example():
    others = [unused(f"cat/{n}.json", "passed_over", "sidecar") for n in range(3)]
    others += [unused("cat/a.mov", "passed_over", "video")]
    text = text_of(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, *others))
    rows = [line.split() for line in text.splitlines()]
    assert ["sidecar", "3", "cat/0.json"] in rows
    assert ["video", "1", "cat/a.mov"] in rows
    scan = scan_of({"cat": (1, 1, 1)}, *others)
    scan.delivery.litter["system file"] = 7, "Thumbs.db"
    assert ["system", "file", "7", "Thumbs.db"] in [line.split() for line in text_of(scan).splitlines()]
    found = summary.metrics(scan)
    assert found["data"]["passed_over"] == 11
    assert found["passed_over"] == {"system_file": 7, "sidecar": 3, "video": 1}
    many = [unused(f"{n}.x", "passed_over", f"kind {n}") for n in range(13)]
    assert "and 3 other kinds" in text_of(scan_of({"cat": (1, 1, 1)}, *many))


@pytest.mark.parametrize("status", ["quarantined", "left_out"])
def test_the_first_five_files_that_are_not_used_are_listed_with_their_reasons(status):
    others = [unused(f"cat/{n}.png", status, f"is damaged {n}") for n in range(7)]
    text = text_of(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, *others))
    assert ": 7\n" in text
    assert [n for n in range(7) if f"  cat/{n}.png: is damaged {n}\n" in text] == [0, 1, 2, 3, 4]
    assert "  and 2 more" in text


def test_files_with_the_same_reason_share_a_line():
    others = [unused(f"{n}.png", "quarantined", f"is {n // 9}") for n in range(18)]
    others += [unused("z.png", "quarantined", "is empty")]
    text = text_of(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, *others[::-1]))
    assert "  17.png, 16.png, 15.png, 14.png, 13.png and 4 more: is 1\n" in text
    assert "  z.png: is empty\n" in text


def test_quarantined_files_are_counted_by_the_kind_of_their_reason():
    others = [unused(f"{n}.png", "quarantined", f"reason {n}")._replace(fault="truncated") for n in range(3)]
    others += [unused("x.png", "quarantined", "has two")._replace(fault="two_labels")]
    scan = scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, *others, unused("y.png", "left_out", "blank"))
    figures = summary.metrics(scan)["quarantined"]
    assert set(figures) == set(get_args(Fault))
    assert {fault: number for fault, number in figures.items() if number} == {"truncated": 3, "two_labels": 1}
    assert ": 4 (truncated 3, two_labels 1)\n" in text_of(scan)
    found = summary.facts(scan)
    assert found["quarantined_by_kind"] == figures
    assert found["quarantined"][-1] == {"path": "x.png", "reason": "has two", "kind": "two_labels"}
    assert found["left_out"] == [{"path": "y.png", "reason": "blank"}]


def test_findings_come_with_figure_limit_and_action_the_most_severe_first():
    findings = [
        Finding("few_images", 4, 20, "report", "class rare has 4 images"),
        Finding("class_names", 1, None, "report", "cat and Cat differ in case only", ("a", "b")),
        Finding("giveaway", 0.98765, 0.97, "fail", "brightness predicts cat"),
        Finding("near_duplicates", 1200, 0.97, "drop", "1,200 pairs", ("x.png",)),
    ]
    text = text_of(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, findings=findings))
    listed = text.partition("Findings: 4")[2].splitlines()[1:]
    assert listed == [
        "  fail: brightness predicts cat (giveaway 0.9877, limit 0.97)",
        "  drop: 1,200 pairs (near_duplicates 1,200, limit 0.97)",
        "  report: cat and Cat differ in case only (class_names 1)",
        "  report: class rare has 4 images (few_images 4, limit 20)",
    ]
    assert "Findings: none" in text_of(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}))


def test_files_that_a_finding_lists_are_not_listed_twice():
    finding = Finding(
        "quarantined", 0.5, 0.01, "fail", "9 files are unusable:\n  a.png: is empty\nRepair them."
    )
    text = text_of(scan_of({"cat": (1, 1, 1), "dog": (1, 1, 1)}, findings=[finding]))
    assert "a.png" not in text
    assert "9 files are unusable. Repair them. (quarantined 0.5, limit 0.01)" in text


def test_lines_are_narrow_and_names_are_inert():
    evil = "evil\x1b[31m\u202egpj" + "x" * 300
    others = [
        unused(f"{evil}/{n}.png", status, "reason " * 40 + evil)
        for n, status in enumerate(("quarantined", "left_out", "passed_over"))
    ]
    finding = Finding("blank", 3, 1, "report", f"{evil} " * 3, (evil,))
    text = text_of(scan_of({evil: (10**1, 1, 1), "dog": (1, 1, 1)}, *others, findings=[finding]))
    assert max(map(len, text.splitlines())) <= summary.COLUMNS
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<U+202E>" in text


def test_litter_folders_and_archives_of_a_delivery_are_shown():
    delivery = Delivery(
        Path("photos"), litter={"thumbnail": (1200, "cat/@eaDir/1.jpg")}, notes=["cat.zip as cat/"]
    )
    scan = replace(scan_of({"cat": (1, 1, 1)}, unused("a.json", "passed_over", "sidecar")), delivery=delivery)
    lines = [line.split() for text in summary.lines(scan, data_params()) for line in text.splitlines()]
    assert ["cat.zip", "as", "cat/"] in lines
    assert lines.index(["thumbnail", "1,200", "cat/@eaDir/1.jpg"]) < lines.index(["sidecar", "1", "a.json"])
    assert summary.facts(scan)["litter_by_kind"] == {"thumbnail": 1200}


def test_programs_get_all_that_people_see():
    others = [unused(f"{n}.json", "passed_over", "sidecar") for n in range(9)]
    finding = Finding("blank", 2, 1, "report", "2 images are blank", ("cat/a.png", "cat/b.png"))
    scan = scan_of({"b": (1, 1, 1), "a": (2, 1, 1)}, *others, findings=[finding])
    scan.delivery.notes.append("cp437 names")
    assert "  cp437 names" in text_of(scan)
    found = summary.facts(scan)
    assert json.loads(json.dumps(found)) == {
        "data": {"images": 7, "classes": 2, "quarantined": 0, "left_out": 0, "passed_over": 9,
                 "train": 3, "val": 2, "test": 2, "near_duplicate_pairs": 0},
        "checks": found["checks"],
        "passed_over": [{"path": f"{n}.json", "reason": "sidecar"} for n in range(9)],
        "classes": ["a", "b"],
        "counts": {"train": {"a": 2, "b": 1}, "val": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        "cut": [],
        "notes": ["cp437 names"],
        "quarantined_by_kind": dict.fromkeys(get_args(Fault), 0),
        "passed_over_by_kind": {"sidecar": 9},
        "litter_by_kind": {},
        "findings": [{"check": "blank", "figure": 2, "limit": 1, "action": "report",
                      "text": "2 images are blank", "paths": ["cat/a.png", "cat/b.png"]}],
        "quarantined": [],
        "left_out": [],
    }  # fmt: skip


def test_metrics_have_every_check_and_fewer_than_40_keys():
    findings = [
        Finding("giveaway", 0.98, 0.97, "report", ""),
        Finding("giveaway", 0.99, 0.97, "report", ""),
        Finding("class_names", 1, None, "report", ""),
    ]
    found = summary.metrics(scan_of({"a": (1, 1, 1)}, findings=findings, pairs=[Pair(0, 1, 0.99)]))
    assert found["checks"]["giveaway"] == 0.99
    assert found["checks"]["blank"] == 0
    assert "class_names" not in found["checks"]
    assert found["data"]["near_duplicate_pairs"] == 1
    assert all(isinstance(figure, (int, float)) for figure in flatten(found).values())
    assert len(flatten(found)) + summary.METRIC_KINDS < 34  # prepare.json has six of energy besides
