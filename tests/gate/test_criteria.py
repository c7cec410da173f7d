"""The criteria, limit by limit, and the verification of the exported model."""

from dataclasses import replace

import pytest

from convoy.core.errors import RequestError
from convoy.data.prepare import prepare
from convoy.gate.criteria import LIMITED
from convoy.gate.judge import judge
from convoy.gate.test_images import TestImages
from deliveries import data_params, png_of
from gate_project import breaches, criterion, deliver


@pytest.fixture(scope="module")
def bad(project):
    """Break every limit of `TIGHT`."""
    wrong = [n for n in range(120) if n % 3 == 1]
    return project.model("convoy/7", wrong, certainty=0.5, dead_bytes=100_000, products=10)


@pytest.fixture(scope="module")
def fallen(project):
    return project.model("convoy/3", [n for n in range(120) if n % 3 == 0][:20], recorded_accuracy=1.0)


@pytest.fixture(scope="module")
def tight(project, bad, fallen):
    return project.judge(bad, fallen, **TIGHT)


TIGHT = {
    "min_images": 121,
    "min_accuracy": 0.99,
    "min_class_recall": 0.99,
    "max_class_drop": 0.0,
    "max_ece": 0.0,
    "max_latency_ms_p95": 1e-9,
    "max_latency_ratio": 1.0,
    "max_size_mb": 1e-3,
    "max_champion_drop": 0.0,
}


def held(result):
    return {criterion.name: criterion.held for criterion in result.criteria}


@pytest.mark.parametrize("name", LIMITED)
def test_a_limit_that_is_not_set_refuses_nothing_and_gives_its_figure(project, bad, fallen, tight, name):
    assert held(tight)[name] is False
    without = TIGHT | {criterion(tight, name).key: None}
    loose = project.judge(bad, fallen, **without)
    unlimited = criterion(loose, name)
    assert (unlimited.held, unlimited.limit) == (None, None)
    assert unlimited.figure is not None
    assert unlimited.note.startswith("no limit set")
    others = {key: value for key, value in held(loose).items() if key != name}
    assert others == {key: value for key, value in held(tight).items() if key != name}


def test_a_single_limit_is_the_only_one_checked(project, bad, champion):
    result = project.judge(bad, champion, **(dict.fromkeys(TIGHT) | {"max_size_mb": 600.0}))
    assert result.verdict == "keep"
    checked = [name for name, met in held(result).items() if met is not None]
    assert checked == ["proof", "classes", "seen", "size_mb"]


def test_a_gate_without_limits_is_refused(project):
    with pytest.raises((RequestError, ValueError), match=r"a gate without limits gives no verdict"):
        project.limits(**dict.fromkeys(TIGHT))


def test_a_figure_equal_to_its_limit_meets_it_despite_rounding(project, champion):
    wrong = [n for n in range(120) if n % 3 == 1]
    better, worse = project.model("convoy/3", wrong[:8]), project.model("convoy/7", wrong[:16])
    result = project.judge(worse, better, max_class_drop=0.2)
    assert criterion(result, "class_drop").figure > 0.2  # 0.8 - 0.6 in floating point
    assert held(result)["class_drop"]
    result = project.judge(project.model("convoy/7", wrong[:28]), champion, min_class_recall=0.1 + 0.2)
    assert held(result)["class_recall"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: None, "missing"),
        (lambda good: good | {"model": {"sha256": "b" * 64}}, "of other bytes (sha256 bbbbbbbbbbbb…, not "),
        (lambda good: good | {"checks": [good["checks"][0] | {"label_flips": 1}]}, "failed: whole test split"),
        (lambda good: good | {"checks": [good["checks"][0] | {"probability_gap": 0.5}]}, "failed: whole test"),
        (lambda good: good | {"checks": []}, "no check was run"),
        (lambda good: good | {"negative_control": {"caught": False}}, "failed: negative control"),
        (lambda good: {"model": good["model"]}, "lacks 'checks'"),
        (lambda good: good | {"model": None}, "malformed"),
    ],
)  # fmt: skip
def test_a_verification_missing_failed_or_of_other_bytes_is_a_breach(project, champion, change, problem):
    candidate = project.model("convoy/7")
    changed = replace(candidate, verification=change(candidate.verification))
    result = project.judge(changed, champion)
    assert result.verdict == "refuse"
    assert held(result)["proof"] is False
    assert problem in criterion(result, "proof").note


def test_class_names_cannot_turn_the_line_that_they_stand_in(project):
    names = ("ape\u202e", "bee", "cat", "dog\n", *(f"x{n}" for n in range(4)))
    champion = project.model("convoy/3", classes=names)
    result = project.judge(project.model("convoy/7"), champion)
    assert "`ape<U+202E>`, `dog\\n`, `x0`, `x1`, `x2` and 1 more" in criterion(result, "classes").note
    assert "\u202e" not in "".join(result.reasons)


def test_a_class_that_the_test_split_lacks_is_not_measured_and_named(tmp_path):
    """`data.rare: train_only` trains `cat`; apes are measured, and `bee` once all its images were seen in training is a breach."""
    labels = [("ape", "bee")[n % 2] for n in range(60)] + ["ape", "bee", "cat"] * 6
    project = deliver(tmp_path, labels, 60, rare="train_only")
    assert project.classes == ("ape", "bee", "cat")
    result = project.judge(project.model("convoy/8"), project.model("convoy/7", wrong=range(0, 60, 7)))
    assert result.breaches == ()
    assert [(row.name, row.images, row.candidate, row.champion) for row in result.classes][-1] == (
        "cat",
        0,
        None,
        None,
    )
    for name in ("class_recall", "class_drop"):
        assert criterion(result, name).held is True
        assert "`cat`" in criterion(result, name).note
        assert "`ape`" not in criterion(result, name).note.split("; ")[-1]
    result.as_json()
    bees = [n for n in range(60) if n % 2]
    unseen = project.judge(project.model("convoy/9", seen=bees), None, min_images=10)
    assert breaches(unseen) == ["class_recall"]
    assert "`bee`" in criterion(unseen, "class_recall").note
    assert "`cat`" not in criterion(unseen, "class_recall").note


def test_without_test_images_nothing_is_compared(tmp_path, champion, project):
    for label in ("a", "b"):
        for n in range(20):
            path = tmp_path / "data" / label / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_of(100 * ord(label) + n))
    prepare(
        tmp_path / "data", data_params(image_px=8, splits={"val": 0.3, "test": "val"}), tmp_path / "dataset"
    )
    untested = TestImages.load(tmp_path / "dataset", tmp_path / "data")
    assert untested.paths == ()
    result = judge(project.model("convoy/7"), champion, untested, project.limits())
    assert result.verdict == "refuse"
    assert "no test images (data.splits.test)" in criterion(result, "images").note
