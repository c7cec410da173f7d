"""Data drift: found where it was planted, not found where there is none."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp
from typer.testing import CliRunner

from convoy.cli import app
from convoy.core.errors import DataError, RequestError
from convoy.data import drift
from convoy.data.prepare import prepare
from convoy.data.statistics import STATISTICS


def photo(seed, brightness=120, tint=(1, 1, 1), size=(12, 10), format_="PNG"):
    """A picture whose brightness varies from file to file, as those of a camera do."""
    rng = np.random.default_rng(seed)
    level = brightness + rng.normal(0, 25)
    pixels = (level + rng.normal(0, 30, (*size, 3))) * np.array(tint)
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, format=format_)
    return stream.getvalue()


def photos(start, count, **look):
    return {f"{'cat' if n % 2 else 'dog'}/{n}.png": photo(start + n, **look) for n in range(count)}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    from deliveries import data_params  # noqa: PLC0415 (a fixture of another scope would need it)

    home = tmp_path_factory.mktemp("trained")
    for name, content in photos(0, 400).items():
        (home / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "data" / name).write_bytes(content)
    prepare(home / "data", data_params(image_px=8), home / "build" / "dataset")
    return home / "build" / "dataset" / "baseline.json"


def drifts(found):
    return {each["statistic"]: each["drift"] for each in found["statistics"]}


def test_images_of_the_same_kind_have_not_drifted(folder, baseline):
    found = drift.compare(folder(photos(10_000, 200)), baseline)
    assert found["drift"] == "none"
    assert drifts(found) == dict.fromkeys((*STATISTICS, "classes"), "none")
    assert (found["images"], found["unreadable"], found["unknown_classes"]) == (200, [], [])


@pytest.mark.parametrize(
    ("look", "drifted", "same"),
    [
        ({"brightness": 60}, {"brightness", "red", "green", "blue"}, {"width", "height", "aspect"}),
        ({"size": (6, 5)}, {"width", "height", "file_size"}, {"brightness", "red"}),
        ({"tint": (1, 0.6, 0.6)}, {"green", "blue", "colourfulness"}, {"red", "width"}),
        ({"format_": "BMP"}, {"file_size", "bytes_per_pixel"}, {"brightness", "width"}),
    ],
    ids=["darker", "smaller", "other colours", "other files"],
)
def test_planted_drift_is_strong_and_the_other_statistics_stay(folder, baseline, look, drifted, same):
    found = drift.compare(folder(photos(20_000, 200, **look)), baseline)
    assert found["drift"] == "strong"
    assert {name for name in drifted if drifts(found)[name] == "strong"} == drifted
    assert {name for name in same if drifts(found)[name] == "none"} == same
    assert found["statistics"][0]["drift"] == "strong", "the strongest drift comes first"


def test_other_shares_of_the_classes_are_drift_and_new_classes_are_named(folder, baseline):
    files = {name.replace("dog", "cat"): content for name, content in photos(30_000, 150).items()}
    files |= {name.replace("dog", "cow"): content for name, content in photos(40_000, 40).items()}
    found = drift.compare(folder(files), baseline)
    assert drifts(found)["classes"] == "strong"
    assert found["unknown_classes"] == ["cow"]
    assert "`cow`" in "\n".join(drift.lines(found))


@pytest.mark.parametrize("where", ["", "2026-11/", "test/"])
def test_images_without_classes_are_compared_too(folder, zipped, baseline, where):
    files = {f"{where}{n}.png": photo(50_000 + n) for n in range(120)} | {f"{where}list.csv": b"a,b\n"}
    for data in (folder(files), zipped(files)):
        found = drift.compare(data, baseline)
        assert (found["drift"], found["images"], found["unreadable"]) == ("none", 120, [f"{where}list.csv"])
        assert "classes" not in drifts(found)


def test_few_images_show_strong_drift_only(folder, baseline):
    found = drift.compare(folder(photos(60_000, 30)), baseline)
    assert found["drift"] == "undecided"
    text = "\n".join(drift.lines(found))
    assert "at least 100 are needed" in text
    assert "cannot be decided" in text
    found = drift.compare(folder(photos(60_000, 30, brightness=15), "dark"), baseline)
    assert found["drift"] == "strong"
    assert drift.compare(folder(photos(60_000, 1, brightness=15), "one"), baseline)["drift"] == "undecided"


@pytest.mark.parametrize("count", [20, 100, 1000])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "integers", "constant", "two values"])
def test_false_alarms_are_rarer_than_one_in_a_hundred_images_sets(kind, count):
    rng = np.random.default_rng(count)
    draw = {
        "normal": lambda n: rng.normal(120, 30, n),
        "lognormal": lambda n: rng.lognormal(6, 1, n),
        "integers": lambda n: rng.integers(0, 6, n).astype(float),
        "constant": lambda n: np.full(n, 32.0),
        "two values": lambda n: np.where(rng.random(n) < 0.97, 480.0, 640.0),
    }[kind]
    alarms = 0
    for _ in range(300):
        known = drift.Distribution.of(draw(1000))
        alarms += drift.compare_values("x", known, draw(count), 1000).drift in drift.DRIFTED
    assert alarms <= 3


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_equal_shares_of_classes_raise_no_alarm(classes):
    rng = np.random.default_rng(classes)
    shares = rng.dirichlet(np.ones(classes))
    alarms = 0
    for _ in range(300):
        known, now = (rng.multinomial(n, shares) for n in (1000, 150))
        found = drift.compare_classes(
            {f"{k}": share for k, share in enumerate(known / 1000)},
            Counter({f"{k}": int(n) for k, n in enumerate(now) if n}),
            1000,
        )
        alarms += found.drift in drift.DRIFTED
    assert alarms <= 3


@pytest.mark.parametrize("shift", [0, 0.3, 2])
@pytest.mark.parametrize("digits", [0, 6])
def test_ks_is_that_of_scipy_within_the_resolution_of_the_baseline(shift, digits):
    rng = np.random.default_rng(5)
    old, new = np.round(rng.normal(0, 3, 900), digits), np.round(rng.normal(shift, 3, 250), digits)
    found = drift.compare_values("x", drift.Distribution.of(old), new, len(old))
    exact = ks_2samp(old, new).statistic
    assert exact - 1 / (drift.POINTS - 1) - 1e-6 <= found.ks <= exact + 1e-6
    if digits == 0:
        assert found.ks == pytest.approx(exact, abs=2e-6)


def test_a_value_that_is_always_the_same_drifts_to_either_side():
    known = drift.Distribution.of(np.full(500, 32.0))
    for value in (31.0, 33.0):
        assert drift.compare_values("width", known, np.full(200, value), 500).drift == "strong"
    assert drift.compare_values("width", known, np.full(200, 32.000001), 500).drift == "none"


def test_psi_is_that_of_its_formula():
    rng = np.random.default_rng(6)
    old, new = rng.normal(0, 1, 5000), rng.normal(0.5, 1, 5000)
    edges = np.quantile(old, np.arange(1, 10) / 10)
    p, q = (np.bincount(np.searchsorted(edges, side), minlength=10) / 5000 for side in (old, new))
    found = drift.compare_values("x", drift.Distribution.of(old), new, 5000)
    assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum(), abs=0.01)
    assert found.drift == "moderate"


def test_the_baseline_has_the_train_split_alone_and_is_small(baseline):
    content = json.loads(baseline.read_text())
    facts = json.loads(baseline.with_name("dataset.json").read_text())
    assert content["images"] == sum(facts["counts"]["train"].values())
    assert content["statistics"].keys() == set(STATISTICS)
    assert sum(content["classes"].values()) == pytest.approx(1)
    assert baseline.stat().st_size < 120_000


def test_transparent_images_are_measured_over_the_background_of_the_baseline(settings, tmp_path):
    """White drawings over black; over white they would be blank."""
    pixels_u8 = np.full((40, 12, 12, 4), 255, np.uint8)
    pixels_u8[..., 3] = np.random.default_rng(0).integers(0, 256, (40, 12, 12))
    for n, image_u8 in enumerate(pixels_u8):
        path = tmp_path / "data" / ("a", "b")[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_u8).save(path)
    prepare(tmp_path / "data", settings(background="black"), tmp_path / "build" / "dataset")
    found = drift.compare(tmp_path / "data", tmp_path / "build/dataset" / drift.BASELINE)
    brightness = next(each for each in found["statistics"] if each["statistic"] == "brightness")
    assert brightness["now"] == pytest.approx(brightness["baseline"], abs=5)
    assert brightness["now"] < 200


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"images": 1, "classes": {}, "statistics": {"width": {"values": [1], "below": [], "at_most": [1]}}}']
)  # fmt: skip
def test_a_damaged_baseline_is_refused(folder, tmp_path, content):
    (tmp_path / "baseline.json").write_text(content)
    with pytest.raises(DataError, match=r"baseline\.json is not a baseline of this version.*dvc repro"):
        drift.compare(folder(photos(0, 2)), tmp_path / "baseline.json")


def test_no_image_and_no_baseline_are_named_with_the_remedy(folder, tmp_path, baseline):
    with pytest.raises(DataError, match="contains no image that can be read"):
        drift.compare(folder({"a.txt": b"a"}), baseline)
    assert drift.compare(folder(photos(0, 2), "two"), baseline.parent)["baseline"] == str(baseline)
    with pytest.raises(RequestError, match=r"gone\.json cannot be read: No such file"):
        drift.compare(tmp_path / "data", tmp_path / "gone.json")
    with pytest.raises(RequestError, match=r"build/deploy/baseline\.json nor .*`dvc repro`.*--baseline FILE"):
        drift.locate(tmp_path)


def test_the_command_takes_the_model_s_baseline_and_ends_with_1_on_drift(folder, baseline, monkeypatch):
    home = baseline.parents[2]
    monkeypatch.chdir(home)
    same, dark = folder(photos(70_000, 110)), folder(photos(80_000, 110, brightness=40), "dark")
    result = CliRunner().invoke(app, ["data", "drift", str(same)])
    assert result.exit_code == 0, result.output
    assert "Drift: none (110 images" in result.stdout
    result = CliRunner().invoke(app, ["data", "drift", str(dark), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["drift"] == "strong"
    (home / "build/deploy").mkdir()
    (home / "build/deploy/baseline.json").write_bytes(baseline.read_bytes())
    assert drift.locate(home) == home / "build/deploy/baseline.json"
