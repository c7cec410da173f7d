import numpy as np
import pytest
from pydantic import ValidationError

from convoy.data.checks import (
    ImageChecks,
    check_dataset,
    check_images,
    look_alikes,
    same_colours,
    settle_near_duplicates,
)
from convoy.data.records import Pair, Record
from convoy.data.statistics import STATISTICS
from deliveries import data_params

ORDINARY = {
    "brightness": 120.0,
    "contrast": 50.0,
    "sharpness": 0.8,
    "colourfulness": 30.0,
    "width": 64.0,
    "height": 64.0,
}
REPORT, DROP, FAIL = ({"action": action, "max_share": 1.0} for action in ("report", "drop", "fail"))


def checks_of(**changes):
    """Return the shipped checks, with other values for some."""
    shipped = data_params().checks
    merged = {name: {**getattr(shipped, name).model_dump(), **change} for name, change in changes.items()}
    return type(shipped).model_validate(shipped.model_dump() | merged)


def check(images, params, delivered=(), transparent=None):
    """Check records given as {path: statistics that differ from an ordinary image}; the first folders are split and class."""
    records, columns = [], {name: [] for name in STATISTICS}
    for index, (path, changes) in enumerate(images.items()):
        *split, label, _ = path.split("/")
        pixels = str(changes.get("pixels", path))
        records.append(Record(path, label, split[0] if split else None, pixels=pixels, kept=index))
        values = ORDINARY | {"aspect": changes.get("width", 64) / changes.get("height", 64)} | changes
        for name, column in columns.items():
            column.append(values.get(name, 1.0))
    statistics = {name: np.array(column, np.float32) for name, column in columns.items()}
    return check_images(records, statistics, transparent or [0] * len(records), params, delivered)


def many(number, label="cat", split="", **changes):
    return {f"{split}{label}/{n}.png": changes for n in range(number)}


SUSPICIOUS = {
    "small": ({"width": 7}, "7 x 64"),
    "aspect": ({"width": 704}, "704 x 64"),
    "blank": ({"contrast": 0.5, "brightness": 0}, "gray 0"),
    "dark": ({"brightness": 5}, "mean gray 5.0"),
    "bright": ({"brightness": 250}, "mean gray 250.0"),
    "blurred": ({"sharpness": 0.05}, "sharpness 0.05"),
}


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_a_suspicious_image_is_found_by_its_check_alone_with_path_and_figure(name):
    changes, figure = SUSPICIOUS[name]
    params = checks_of(outliers={"limit": 1e9})
    found = check(many(30) | {"cat/odd.png": changes}, params)
    (finding,) = found.findings
    assert (finding.check, finding.figure, finding.action, finding.paths) == (
        name,
        1,
        "report",
        ("cat/odd.png",),
    )
    assert finding.limit == getattr(params, name).limit
    assert "1 of 31 images (3.23%)" in finding.text
    assert f"cat/odd.png ({figure})" in finding.text
    assert {record.status for record in found.records} == {"ok"}


def test_ordinary_images_give_no_finding():
    rng = np.random.default_rng(3)
    images = {
        f"cat/{n}.png": {"brightness": rng.normal(120, 30), "sharpness": np.exp(rng.normal(0, 0.3))}
        for n in range(200)
    }
    assert check(images, checks_of()).findings == []


def test_the_most_suspicious_come_first_and_a_text_names_five():
    images = many(30) | {f"cat/dark{n}.png": {"brightness": 7 - n / 2} for n in range(8)}
    (finding,) = check(images, checks_of(outliers={"limit": 1e9})).findings
    assert finding.paths == tuple(f"cat/dark{n}.png" for n in reversed(range(8)))
    assert "cat/dark3.png (mean gray 5.5) and 3 more." in finding.text


def test_images_of_few_pixels_are_not_called_blurred():
    assert check(many(30, width=10, height=10, sharpness=0.0), checks_of()).findings == []


def test_dropped_images_are_left_out_with_the_reason_and_counted_by_split():
    images = many(10, split="train/") | many(10, split="test/")
    images |= {
        "train/cat/x.png": {"contrast": 0},
        "test/cat/y.png": {"contrast": 0},
        "test/cat/z.png": {"contrast": 0},
    }
    found = check(images, checks_of(blank={"action": "drop", "max_share": 0.5}), delivered=("train", "test"))
    (finding,) = found.findings
    assert finding.action == "drop"
    assert finding.text.endswith("Left out: train 1, test 2.")
    left_out = {record.path: record for record in found.records if record.status == "left_out"}
    assert left_out.keys() == {"train/cat/x.png", "test/cat/y.png", "test/cat/z.png"}
    assert {(record.split, record.reason) for record in left_out.values()} == {
        (None, "blank: gray 120 (data.checks.blank)")
    }


def test_before_a_cut_dropped_images_have_no_split():
    found = check(many(20) | {"cat/x.png": {"contrast": 0}}, checks_of(blank=DROP))
    assert found.findings[0].text.endswith("Left out: 1 before the splits were cut.")


def test_a_dropped_image_is_found_by_no_later_check():
    images = many(30) | {"cat/x.png": {"width": 4, "brightness": 5, "pixels": "cat/0.png"}}
    found = check(images, checks_of(small=DROP))
    assert [finding.check for finding in found.findings] == ["small"]


def test_fail_refuses_with_the_files_and_the_param():
    found = check(many(30) | {"cat/x.png": {"sharpness": 0.01}}, checks_of(blurred=FAIL))
    finding = found.findings[0]
    assert finding.action == "fail"
    assert "cat/x.png (sharpness 0.01)" in finding.text
    assert "data.checks.blurred.action is fail" in finding.text
    assert "change data.checks.blurred in params.yaml" in finding.text


@pytest.mark.parametrize("action", ["report", "drop", "fail"])
def test_more_than_the_largest_share_is_refused_whatever_the_action(action):
    found = check(
        many(8) | {f"cat/x{n}.png": {"contrast": 0} for n in range(2)}, checks_of(blank={"action": action})
    )
    (finding,) = found.findings
    assert finding.action == "fail"
    assert "2 of 10 images (20.00%)" in finding.text
    assert "data.checks.blank.max_share allows 10.0%" in finding.text
    assert "background" not in finding.text
    assert {record.status for record in found.records} == {"ok"}


def test_blank_images_with_transparent_pixels_are_refused_with_the_background():
    found = check(many(20, contrast=0, brightness=255), checks_of(), transparent=[1] * 15 + [0] * 5)
    assert "15 of them have transparent pixels, which are laid over data.background" in found.findings[0].text


def test_copies_in_one_class_and_split_are_found_with_the_image_that_they_copy():
    images = many(10, split="train/") | {
        "train/cat/a.png": {"pixels": "same"},
        "train/cat/b.png": {"pixels": "same"},
        "train/cat/c.png": {"pixels": "same"},
        "test/cat/d.png": {"pixels": "same"},
    }
    (finding,) = check(images, checks_of(), delivered=("train", "test")).findings
    assert (finding.check, finding.figure, finding.paths) == (
        "duplicates",
        2,
        ("train/cat/b.png", "train/cat/c.png"),
    )
    assert "train/cat/b.png (as train/cat/a.png)" in finding.text
    (more,) = check(images, checks_of(duplicates={"limit": 2}), delivered=("train", "test")).findings
    assert more.paths == ("train/cat/c.png",)


def test_the_same_pixels_under_two_classes_are_not_dropped_as_copies():
    images = many(10) | {f"{label}/{n}.png": {"pixels": "x"} for label in ("dog", "owl") for n in (1, 2)}
    assert check(images, checks_of(duplicates=DROP)).findings == []


def test_an_outlier_is_far_from_its_own_class():
    rng = np.random.default_rng(4)
    images = {f"day/{n}.png": {"brightness": rng.normal(200, 3)} for n in range(60)}
    images |= {f"night/{n}.png": {"brightness": rng.normal(40, 3)} for n in range(60)}
    (finding,) = check(images | {"day/dusk.png": {"brightness": 42.0}}, checks_of()).findings
    assert (finding.check, finding.paths) == ("outliers", ("day/dusk.png",))
    assert "day/dusk.png (brightness 42, median of `day` 199)" in finding.text


def test_a_second_kind_of_images_in_a_class_is_no_outlier():
    images = many(95) | {f"cat/b{n}.png": {"colourfulness": 0.0} for n in range(5)}
    assert check(images, checks_of()).findings == []


def used(label, number, split="train"):
    return [Record(f"{split}/{label}/{n}.png", label, split) for n in range(number)]


def test_classes_with_few_images_are_named_with_their_numbers():
    records = used("cat", 30) + used("dog", 15) + used("dog", 4, "test") + used("owl", 7)
    unused = [Record(f"train/owl/x{n}.png", "owl", None, status="left_out") for n in range(20)]
    (finding,) = check_dataset(records + unused, checks_of())
    assert (finding.check, finding.figure, finding.limit, finding.action) == ("few_images", 7, 20, "report")
    assert "Classes `owl`, `dog` have fewer than 20 images (7 to 19)" in finding.text


@pytest.mark.parametrize(
    ("others", "fact"),
    [
        ([], "Class `owl` has fewer than 20 images (2): it is in train only, and nothing is measured of it. Add more."),
        (used("fox", 3), "they are in train only, and nothing is measured of them"),
        (used("cat", 9, "val"), "what is measured of them is based on few images; nothing is measured of `owl`, in train only. Add more."),
    ],
)  # fmt: skip
def test_of_a_class_that_is_only_trained_nothing_is_measured(others, fact):
    (finding,) = check_dataset(used("owl", 2) + others + used("dog", 30), checks_of())
    assert fact in finding.text


def test_imbalance_names_the_largest_and_the_smallest_class_in_training():
    records = used("normal", 400) + used("defect", 4) + used("defect", 30, "test")
    (finding,) = check_dataset(records, checks_of(imbalance={"action": "fail"}))
    assert (finding.check, finding.figure, finding.action) == ("imbalance", 100, "fail")
    assert "`normal` has 400 images and `defect` 4: 100 to 1" in finding.text
    assert "right for 99.0% of them" in finding.text
    assert all(f"train.{name}" in finding.text for name in ("class_weights", "sampler"))
    assert check_dataset(used("a", 50) + used("b", 49), checks_of()) == []


@pytest.mark.parametrize(("pairs", "more"), [(5, ""), (6, " and 1 more pair."), (7, " and 2 more pairs.")])
def test_pairs_that_are_not_named_are_counted(pairs, more):
    (finding,), _ = near(
        {f"train/cat/{number}.png": str(number) for number in range(pairs + 1)},
        [(0, number + 1, 0.95) for number in range(pairs)],
    )
    assert finding.text.endswith(f"{more or ')'}{'' if more else '.'}")
    assert finding.figure == pairs + 1


def near(paths, pairs, delivered=("train", "val", "test"), **change):
    """Settle near-duplicates among records given as {path: pixels}, split/class/name, and pairs of their numbers."""
    records = [
        Record(path, path.split("/")[1], path.split("/")[0], pixels=pixels) for path, pixels in paths.items()
    ]
    checks = ImageChecks(records, delivered)
    found = [Pair(first, second, correlation) for first, second, correlation in pairs]
    settle_near_duplicates(
        checks, found, [], checks_of(near_duplicates={"max_share": 1.0} | change).near_duplicates
    )
    left_out = {record.path: record.reason for record in checks.records if record.status == "left_out"}
    return checks.findings, left_out


FILES = {f"{split}/cat/{name}": f"{split}{name}" for split in ("train", "val", "test") for name in "ab"}
TRAIN_A, TRAIN_B, VAL_A, VAL_B, TEST_A, TEST_B = range(6)


def test_the_training_copy_of_a_test_image_gives_way_with_partner_and_correlation():
    (finding,), left_out = near(FILES, [(TRAIN_A, TEST_B, 0.97)])
    assert (finding.check, finding.figure, finding.action) == ("near_duplicates", 1, "drop")
    assert finding.paths == ("train/cat/a",)
    assert "1 of 6 images" in finding.text
    assert finding.text.endswith("Left out: train 1.")
    assert left_out == {"train/cat/a": "near_duplicates: 0.970 with test/cat/b (data.checks.near_duplicates)"}


def test_test_comes_before_val_and_val_before_train():
    _, left_out = near(FILES, [(VAL_A, TEST_A, 0.95), (TRAIN_B, VAL_B, 0.96)])
    assert left_out.keys() == {"val/cat/a", "train/cat/b"}


def test_an_image_connected_to_a_test_image_through_others_gives_way_too():
    _, left_out = near(FILES, [(TRAIN_A, TRAIN_B, 0.99), (TRAIN_B, TEST_A, 0.95)])
    assert "0.990 with train/cat/b, in a chain with test/cat/a" in left_out["train/cat/a"]
    assert "0.950 with test/cat/a" in left_out["train/cat/b"]


def test_copies_of_a_compared_image_count_where_they_are():
    """`duplicates.pairs` compares the first of those with the same pixels, here that in train."""
    files = FILES | {"test/cat/copy": "traina", "train/cat/copy": "trainb"}
    _, left_out = near(files, [(TRAIN_A, TRAIN_B, 0.99)])
    assert left_out.keys() == {"train/cat/b", "train/cat/copy"}  # `split.assign` leaves out train/cat/a


def test_near_duplicates_within_a_split_are_reported_and_used():
    (finding,), left_out = near(FILES, [(TRAIN_A, TRAIN_B, 0.95), (TEST_A, TEST_B, 0.99)])
    assert (finding.check, finding.figure, finding.action, left_out) == ("near_duplicates", 4, "report", {})
    assert finding.paths == ("test/cat/a", "test/cat/b", "train/cat/a", "train/cat/b")
    assert "keep them together" not in finding.text
    (cut,), _ = near(FILES, [(TEST_A, TEST_B, 0.99)], delivered=("train", "test"))
    assert "splits that are cut keep them together" in cut.text
    assert "test/cat/a and test/cat/b (0.990); train/cat/a and train/cat/b (0.950)" in finding.text


def test_near_duplicates_of_two_classes_are_reported_and_used():
    files = FILES | {"train/dog/x": "x"}
    (finding,), left_out = near(files, [(TEST_A, 6, 0.98)])
    assert (finding.check, finding.figure, finding.action, left_out) == ("two_labels", 2, "report", {})
    assert "test/cat/a and train/dog/x (0.980)" in finding.text


@pytest.mark.parametrize(
    ("change", "reason"), [({"action": "fail"}, "action is fail"), ({"max_share": 0.1}, "max_share allows")]
)
def test_near_duplicates_across_splits_may_be_refused(change, reason):
    (finding,), left_out = near(FILES, [(TRAIN_A, TEST_B, 0.97)], **change)
    assert (finding.action, left_out) == ("fail", {})
    assert f"data.checks.near_duplicates.{reason}" in finding.text


def test_a_class_of_which_many_images_are_paired_is_one_of_look_alikes():
    records = used("one", 40) + used("cat", 40) + used("dog", 40)
    ones = [Pair(n, n + 1, 0.95) for n in range(10)]
    cats = [Pair(40 + n, 41 + n, 0.95) for n in range(0, 8, 2)]  # 8 of 40
    across = [Pair(n, 80 + n, 0.95) for n in range(40)]
    assert look_alikes(records, ones + cats + across) == {"one"}


def test_copies_have_the_same_colours():
    records = [Record(f"train/cat/{n}", "cat", "train", kept=n) for n in range(4)]
    statistics = {name: np.array([100, 110, 150, 100], np.float32) for name in ("red", "green", "contrast")}
    statistics["blue"] = np.array([100, 110, 150, 20], np.float32)
    pairs = [Pair(0, 1, 0.99), Pair(0, 2, 0.99), Pair(0, 3, 0.99)]
    assert same_colours(pairs, records, statistics) == pairs[:1]
    assert same_colours([], records, statistics) == []


@pytest.mark.parametrize("check", ["blurred", "giveaway"])
@pytest.mark.parametrize("limit", [float("nan"), float("inf")])
def test_a_limit_is_a_number(check, limit):
    """Nothing is above or below nan, so the check would be off without a word."""
    with pytest.raises(ValidationError, match="finite number"):
        checks_of(**{check: {"limit": limit}})
