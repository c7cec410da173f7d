import hashlib

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from convoy.data.giveaway import NUMBERS, by_category, by_rank, check, lower_bound
from convoy.data.records import Record
from convoy.data.settings import DatasetCheck

PARAMS = DatasetCheck(limit=0.95, action="report")
SPREAD = {
    "brightness": 30,
    "contrast": 15,
    "sharpness": 0.3,
    "colourfulness": 10,
    "file_size": 2000,
    "bytes_per_pixel": 0.5,
}


def findings(classes, action="report", limit=0.95):
    """Check classes, given as {name: [{property: value} per image]}; other statistics are drawn alike for all."""
    rng = np.random.default_rng(7)
    records, columns, transparent = [], {name: [] for name in NUMBERS}, bytearray()
    for label, images in classes.items():
        for number, image in enumerate(images):
            path = image.get("path", f"{label}/{number}.jpg")
            words = {key: image[key] for key in ("format", "mode") if key in image}
            pixels = hashlib.sha256(path.encode()).hexdigest()
            records.append(Record(path, label, "train", pixels=pixels, kept=len(records), **words))
            transparent.append(image.get("transparent", False))
            for name, column in columns.items():
                column.append(image.get(name, rng.normal(100, SPREAD.get(name, 0))))
    statistics = {name: np.array(column, np.float32) for name, column in columns.items()}
    return check(records, statistics, transparent, DatasetCheck(limit=limit, action=action))


def images(number, **properties):
    return [properties] * number


def test_classes_from_the_same_source_give_no_finding():
    assert findings({label: images(60) for label in ("cat", "dog", "owl")}) == []


@pytest.mark.parametrize(
    ("planted", "others", "name", "figures"),
    [
        ({"format": "PNG"}, {"format": "JPEG"}, "file type", "PNG 100% against 0%"),
        ({"mode": "L"}, {"mode": "RGB"}, "mode", "L 100% against 0%"),
        ({"transparent": True}, {}, "transparency", "transparent 100% against 0%"),
        ({"width": 640}, {"width": 320}, "width", "median 640 against 320"),
        ({"brightness": -50}, {}, "brightness", "median -50 against "),
        ({"path": "owl/{}/IMG_{}.jpg"}, {}, "file name", "img… 100% against 0%"),
    ],
)
def test_a_property_of_one_class_is_named_with_the_class_and_its_figures(planted, others, name, figures):
    planted = [
        {key: value.format(n, n) if key == "path" else value for key, value in planted.items()}
        for n in range(60)
    ]
    (finding,) = findings({"cat": images(60, **others), "dog": images(60, **others), "owl": planted})
    assert (finding.check, finding.limit, finding.action) == ("giveaway", 0.95, "report")
    assert finding.figure > 0.99
    assert f"{name} (`owl`: AUC 1.000, {figures}" in finding.text
    assert {path.split("/")[0] for path in finding.paths} == {"owl"}


def test_a_class_whose_property_lies_between_those_of_others_is_found():
    sizes = {"cat": 200, "dog": 300, "owl": 400}
    (finding,) = findings({label: images(60, width=width, height=width) for label, width in sizes.items()})
    assert "height (`cat` and 2 more: AUC 1.000, median 200 against 350)" in finding.text
    assert "width (`cat` and 2 more" in finding.text


def test_a_folder_that_several_classes_have_but_fill_differently_is_found():
    def filed(label, number, folder):
        return [{"path": f"{label}/{folder}/{n}.jpg"} for n in range(number)]

    classes = {
        "cat": filed("cat", 199, "web") + filed("cat", 1, "phone"),
        "dog": filed("dog", 190, "phone") + filed("dog", 2, "web"),
    }
    (finding,) = findings(classes)
    assert "folder (`cat` and 1 more: AUC 0.99" in finding.text
    assert "`web` 100% against 1%" in finding.text


def test_names_and_folders_of_a_class_itself_are_no_giveaway():
    classes = {
        label: [{"path": f"{label}/{label}-{n % 3}/{label}.{n}.jpg"} for n in range(60)]
        for label in ("cat", "dog", "scan")
    }
    assert findings(classes) == []


def test_a_few_images_prove_nothing():
    assert findings({"cat": images(300, width=320), "owl": images(12, width=640)}) == []


def test_many_small_classes_do_not_flood():
    rng = np.random.default_rng(1)
    classes = {f"c{n}": [{"brightness": rng.normal(100, 30)} for _ in range(12)] for n in range(150)}
    assert findings(classes) == []


def test_a_giveaway_may_be_refused():
    (finding,) = findings({"cat": images(60, width=9), "dog": images(60, width=8)}, action="fail")
    assert finding.action == "fail"
    assert "data.checks.giveaway.action is fail" in finding.text


def test_the_limit_is_the_params():
    rng = np.random.default_rng(2)
    classes = {
        label: [{"brightness": rng.normal(mean, 10)} for _ in range(300)]
        for label, mean in (("day", 120), ("night", 100))
    }
    assert findings(classes) == []
    (finding,) = findings(classes, limit=0.8)
    assert 0.85 < finding.figure < 0.97


def test_the_auc_by_rank_is_the_mann_whitney_statistic_with_ties():
    rng = np.random.default_rng(0)
    of_image = rng.integers(0, 3, 200)
    values = np.round(rng.normal(of_image, 1.0))
    for label, auc in enumerate(by_rank(values, of_image)):
        inside = of_image == label
        expected = mannwhitneyu(values[inside], values[~inside]).statistic / (inside.sum() * (~inside).sum())
        assert auc == pytest.approx(expected)


def test_a_category_per_image_predicts_nothing():
    of_image, half = np.arange(1000) % 2, np.arange(1000) // 2 % 2
    assert by_category(np.arange(1000), of_image, half) == pytest.approx([0.5, 0.5], abs=0.1)
    assert by_category(of_image, of_image, half) == pytest.approx([1, 1])


def test_the_bound_is_below_the_auc_and_rises_with_the_number_of_images():
    sizes = np.array([5, 20, 60, 1000])
    bound = lower_bound(np.ones(4), sizes, sizes)
    assert (np.diff(bound) > 0).all()
    assert bound[0] < 0.85
    assert bound[3] > 0.998
    # Hanley and McNeil's standard error at the bound reaches the measured AUC.
    (low,) = lower_bound(np.array([0.9]), np.array([50]), np.array([80]))
    first, second = low / (2 - low), 2 * low**2 / (1 + low)
    variance = [
        (low * (1 - low) + (a - 1) * (first - low**2) + (b - 1) * (second - low**2)) / (50 * 80)
        for a, b in ((50, 80), (80, 50))
    ]
    assert low + 1.645 * max(variance) ** 0.5 == pytest.approx(0.9, abs=1e-6)
