import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convoy.core.dataset import SPLITS, Dataset
from convoy.core.errors import DataError
from convoy.core.params import section
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.data.statistics import STATISTICS, measure
from convoy.images.decode import decode
from convoy.images.resize import Geometry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "build" / "dataset"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_sample_digits_are_packed(out, capsys):
    params = section("data", DataParams, ROOT / "params.yaml")
    metrics = prepare(ROOT / "samples" / "digits", params, out)["data"]
    dataset = Dataset.load(out)
    assert dataset.classes == tuple("0123456789")
    assert metrics["images"] == 1797 == sum(metrics[split] for split in SPLITS)
    assert (metrics["classes"], metrics["quarantined"], metrics["left_out"]) == (10, 0, 0)
    assert len(dataset.images("test")) == metrics["test"]
    output = capsys.readouterr().out
    assert "10 classes, 1,797 images (train 1,168, val 260, test 369), 0 quarantined" in output
    assert "Cut from all images by pixel hash (data.splits): val 0.15, test 0.2" in output


def test_packed_pixels_are_those_of_the_resize_graph_and_the_manifest_has_their_rows(
    folder, pets, settings, out
):
    prepare(folder(pets | {"cat/x.png": b""}), settings(image_px=16, fit="letterbox"), out)
    dataset, geometry = Dataset.load(out), Geometry(16, "letterbox")
    images_u8 = np.concatenate([np.load(out / "images" / f"{split}.npy") for split in SPLITS])
    labels = np.load(out / "labels.npy")
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    assert [row["path"] for row in rows] == sorted(pets.keys() | {"cat/x.png"})
    for row in rows:
        if row["path"] == "cat/x.png":
            assert (row["row"], row["verdict"], row["split"]) == (-1, "is empty (0 bytes)", None)
            assert (row["bytes"], row["format"], row["brightness"]) == (0, "", None)
            continue
        assert np.array_equal(images_u8[row["row"]], geometry(decode(pets[row["path"]]).image_u8))
        assert dataset.classes[labels[row["row"]]] == row["label"]
        start, stop = dataset.splits[row["split"]]
        assert start <= row["row"] < stop
        assert (row["width"], row["height"], row["mode"], row["verdict"]) == (8, 8, "RGB", "ok")
        assert row["bytes"] == len(pets[row["path"]])
        measured = dict(
            zip(STATISTICS, measure(decode(pets[row["path"]]).image_u8, row["bytes"]), strict=True)
        )
        assert all(row[name] == measured[name] for name in ("brightness", "contrast", "sharpness"))


@pytest.mark.parametrize("rows", [512, 10, 3, 0])
def test_mean_and_std_are_those_of_the_train_split(folder, parts, settings, out, monkeypatch, rows):
    monkeypatch.setattr("convoy.data.pack.CHUNK_BYTES", rows * 8 * 8 * 3)
    prepare(folder(parts), settings(), out)
    dataset = Dataset.load(out)
    pixels = dataset.images("train").reshape(-1, 3) / 255
    assert np.allclose(dataset.mean, pixels.mean(axis=0), atol=1e-12)
    assert np.allclose(dataset.std, pixels.std(axis=0), atol=1e-12)


def test_a_constant_channel_does_not_lead_to_a_division_by_zero(folder, settings, out, parts):
    def redless(content):
        image_u8 = decode(content).image_u8.copy()
        image_u8[..., 0] = 0
        stream = io.BytesIO()
        Image.fromarray(image_u8).save(stream, format="PNG")
        return stream.getvalue()

    prepare(folder({name: redless(content) for name, content in parts.items()}), settings(), out)
    assert Dataset.load(out).std[0] == 1 / 255


def test_counts_and_slices_agree(folder, parts, settings, out):
    prepare(folder(parts), settings(), out)
    dataset = Dataset.load(out)
    for split in SPLITS:
        assert dict(dataset.counts[split]) == {"cat": 5, "dog": 5}
        assert len(dataset.images(split)) == 10
        assert np.bincount(dataset.labels(split)).tolist() == [5, 5]


def test_a_folder_and_any_archive_of_it_give_equal_arrays(folder, zipped, tarred, pets, settings, tmp_path):
    renamed = {f"wrap/{name[:3]}/{99 - n}.PNG": pets[name] for n, name in enumerate(pets)}
    outs = []
    for index, data in enumerate((folder(pets), zipped(pets), tarred(renamed, "xz"))):
        outs.append(tmp_path / f"out{index}")
        prepare(data, settings(), outs[-1])
    for name in ("images/train.npy", "images/val.npy", "images/test.npy", "labels.npy", "dataset.json"):
        assert len({(out / name).read_bytes() for out in outs}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"image_px": 9},
        {"fit": "crop"},
        {"fit": "crop", "crop_share": 0.9},
        {"splits": {"val": 0.3, "test": 0.2}},
    ],
)
def test_the_hash_changes_with_what_is_packed(folder, pets, settings, tmp_path, change):
    prepare(folder(pets), settings(), tmp_path / "a")
    changed = DataParams.model_validate(settings().model_dump() | change)
    prepare(tmp_path / "data", changed, tmp_path / "b")
    assert Dataset.load(tmp_path / "b").crop_share == change.get("crop_share", 1)
    assert Dataset.load(tmp_path / "a").hash != Dataset.load(tmp_path / "b").hash


def test_the_hash_changes_with_a_label_and_with_a_pixel(folder, parts, settings, tmp_path, png):
    hashes = set()
    swapped = parts | {"test/cat/0.png": parts["test/dog/0.png"], "test/dog/0.png": parts["test/cat/0.png"]}
    for index, files in enumerate((parts, swapped, parts | {"test/cat/0.png": png(999)})):
        prepare(folder(files, name=f"data{index}"), settings(), tmp_path / f"out{index}")
        hashes.add(Dataset.load(tmp_path / f"out{index}").hash)
    assert len(hashes) == 3


def test_a_refused_delivery_writes_nothing_and_an_earlier_dataset_stays(folder, pets, settings, out):
    prepare(folder(pets), settings(), out)
    before = contents(out)
    with pytest.raises(DataError, match="a single class"):
        prepare(folder({"cat/0.png": pets["cat/0.png"]}, name="other"), settings(), out)
    assert contents(out) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["cache", "dataset"]


def test_a_failure_while_writing_leaves_the_earlier_dataset(folder, pets, settings, out, monkeypatch):
    prepare(folder(pets), settings(), out)
    before = contents(out)
    monkeypatch.setattr(
        "convoy.data.prepare.pq.ParquetWriter.write_table", Mock(side_effect=OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        prepare(folder(pets), settings(image_px=9), out)
    assert contents(out) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["cache", "dataset"]


def test_a_new_dataset_replaces_the_earlier_completely(folder, pets, settings, out):
    prepare(folder(pets), settings(), out)
    (out / "stale").touch()
    prepare(folder(pets), settings(image_px=9), out)
    assert contents(out).keys() == {
        "dataset.json",
        "images/test.npy",
        "images/train.npy",
        "images/val.npy",
        "labels.npy",
        "manifest.parquet",
        "report.html",
        "baseline.json",
    }
    assert Dataset.load(out).image_px == 9


def test_quarantined_and_left_out_files_are_counted(folder, parts, settings, out, capsys):
    files = parts | {"train/cat/copy.png": parts["val/cat/0.png"], "train/dog/x.png": b""}
    metrics = prepare(folder(files), settings(), out)["data"]
    assert (metrics["images"], metrics["quarantined"], metrics["left_out"]) == (30, 1, 1)
    output = capsys.readouterr().out
    assert "1 quarantined" in output
    assert re.search(r"^Left out: 1$", output, re.MULTILINE)
    assert "Cut from" not in output
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    verdicts = {row["path"]: row["verdict"] for row in rows if row["verdict"] != "ok"}
    assert verdicts == {
        "train/cat/copy.png": "left out: its pixels are in val too: val/cat/0.png",
        "train/dog/x.png": "is empty (0 bytes)",
    }


def test_a_single_missing_split_is_cut_from_train(folder, pets, png, settings, out, capsys):
    files = {f"train/{name}": content for name, content in pets.items()}
    files |= {f"test/{label}/0.png": png(5000 + n) for n, label in enumerate(("cat", "dog"))}
    prepare(folder(files), settings(), out)
    assert "Cut from the train split by pixel hash (data.splits): val 0.2" in capsys.readouterr().out


def test_prepare_imports_neither_torch_nor_mlflow_nor_sklearn():
    heavy = {"torch", "mlflow", "sklearn", "dvc"}
    code = f"import sys, convoy.data.prepare; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


@pytest.mark.slow
@pytest.mark.skipif("CONVOY_CIFAR10" not in os.environ, reason="CONVOY_CIFAR10 does not name the archive")
def test_cifar10_is_packed_within_its_memory(tmp_path):
    code = (
        "import re, sys; from pathlib import Path; from convoy.data.prepare import prepare;"
        "from convoy.data.settings import DataParams; from convoy.core.params import section;"
        "prepare(Path(sys.argv[1]), section('data', DataParams), Path(sys.argv[2]));"
        # of this program alone: the kernel's ru_maxrss begins with what the process that started it takes
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    out = tmp_path / "dataset"
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, os.environ["CONVOY_CIFAR10"], str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 2**20  # KiB: 1 GiB
    facts = json.loads((out / "dataset.json").read_text())
    assert len(facts["classes"]) == 10
    first, last = facts["splits"]["test"]
    assert last - first == 10_000
    left_out = int(re.search(r"Left out: (\d+)", done.stdout)[1])  # copies of test images
    assert 0 < left_out == 50_000 - first < 0.01 * 50_000
    assert (out / "report.html").stat().st_size < 3_000_000
    assert ", 0 quarantined" in done.stdout


def test_preparing_small_squares_imports_no_library_that_it_does_not_need(folder, pets, out):
    """Each takes 0.1 to 0.4 s and tens of MB: pandas, which pyarrow imports, and ndimage."""
    code = (
        "import sys; from pathlib import Path; from convoy.core.params import section\n"
        "from convoy.data.prepare import prepare; from convoy.data.settings import DataParams\n"
        "prepare(Path(sys.argv[1]), section('data', DataParams), Path(sys.argv[2]))\n"
        "print('IMPORTED', {'pandas', 'scipy.ndimage', 'matplotlib', 'torch'} & sys.modules.keys())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, str(folder(pets)), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("IMPORTED set()\n")


@pytest.mark.parametrize("test", ["val", 0])
def test_a_dataset_without_test_images_is_measured_on_val_and_says_so(
    folder, pets, settings, out, capsys, test
):
    prepare(folder(pets), settings(splits={"val": 0.3, "test": test}), out)
    dataset = Dataset.load(out)
    assert dataset.measured == "val"
    assert dataset.images("test").shape == (0, 8, 8, 3)
    assert set(dataset.counts["test"].values()) == {0}
    output = capsys.readouterr().out
    assert "Cut from all images by pixel hash (data.splits): val 0.3" in output
    assert re.search(r"train \(cut\) +val \(cut\) +test \(none\)", output)
    assert "No test images" in output
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "test (none)" in report
    assert "No test images" in report
