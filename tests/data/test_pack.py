import json
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from convoy.core.dataset import SPLITS, Dataset
from convoy.core.errors import DataError
from convoy.data.prepare import prepare
from convoy.images.decode import decode
from convoy.images.resize import Geometry


@pytest.fixture
def photos(pets, png):
    """Pictures of several shapes, larger than what is stored."""
    return {name: png(seed, 20 + seed % 3, 24) for seed, name in enumerate(pets)}


@pytest.fixture
def larger(folder, photos, settings, tmp_path):
    """Prepare with a larger `store_px`, and return the dataset."""

    def run(out="larger", **changes):
        params = settings(**{"image_px": 8, "store_px": 12, "fit": "crop", "crop_share": 0.75} | changes)
        prepare(folder(photos), params, tmp_path / "build" / out)
        return Dataset.load(tmp_path / "build" / out)

    return run


def test_training_images_are_stored_larger_and_whole_and_the_others_as_they_are_served(larger, photos):
    dataset = larger()
    assert (dataset.image_px, dataset.store_px) == (8, 12)
    stored, served = Geometry(12, "crop"), Geometry(8, "crop", 0.75)
    for row in pq.read_table(dataset.folder / "manifest.parquet").to_pylist():
        at = row["row"] - dataset.splits[row["split"]][0]
        rule = stored if row["split"] == "train" else served
        expected = rule(decode(photos[row["path"]]).image_u8)
        assert np.array_equal(dataset.images(row["split"])[at], expected)


def test_what_is_measured_does_not_depend_on_the_size_of_storage(larger):
    usual, stored = larger("usual", store_px=0), larger()
    assert (usual.mean, usual.std, usual.counts) == (stored.mean, stored.std, stored.counts)
    for split in SPLITS[1:]:
        assert np.array_equal(usual.images(split), stored.images(split))
    baselines = [(each.folder / "baseline.json").read_bytes() for each in (usual, stored)]
    assert baselines[0] == baselines[1]
    assert usual.hash != stored.hash


def test_the_same_size_stated_is_the_same_dataset(larger):
    folders = [larger(str(px), store_px=px).folder for px in (0, 8)]
    for name in ("dataset.json", *(f"images/{split}.npy" for split in SPLITS)):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    assert "store_px" not in json.loads((folders[0] / "dataset.json").read_text())


def test_images_of_the_cache_have_both_sizes(larger, monkeypatch):
    first = larger()
    monkeypatch.setattr("convoy.data.scan.decode", Mock(side_effect=AssertionError("decoded again")))
    again = larger("again")
    for split in SPLITS:
        assert np.array_equal(first.images(split), again.images(split))


def test_arrays_of_another_size_are_refused(larger):
    dataset = larger()
    np.save(dataset.folder / "images" / "train.npy", dataset.images("train")[:, :8, :8].copy())
    with pytest.raises(DataError, match=r"12, 12, 3\) in images/train\.npy.*8, 8, 3\)"):
        Dataset.load(dataset.folder)
