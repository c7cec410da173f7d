"""Training images that are stored as pixels, and as files."""

import io

import numpy as np
import pytest
from PIL import Image

from convoy.core.dataset import Dataset
from convoy.core.errors import DataError
from convoy.data.prepare import prepare
from convoy.images.decode import decode
from convoy.images.resize import Geometry
from convoy.training.data import DataModule
from convoy.training.fit import fit
from convoy.training.stored import EncodedImages, train_images

PX = 8


def jpeg(seed, width, height, **options):
    """A JPEG of soft shapes, as photographs have them."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=92, **options
    )
    return stream.getvalue()


def upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return {"exif": exif}


@pytest.fixture
def packed(folder, png, settings, tmp_path):
    """Prepare pictures, by default PNGs of several sizes, stored one way or the other."""
    pictures = {
        f"{name}/{n}.png": png(100 * at + n, 14 + n % 3, 18)
        for at, name in enumerate("abc")
        for n in range(20)
    }

    def run(store, files=pictures, **changes):
        usual = {"image_px": PX, "store_px": 12, "fit": "crop", "crop_share": 0.75, "store": store}
        prepare(folder(files), settings(**usual | changes), tmp_path / store)
        return Dataset.load(tmp_path / store)

    return run


@pytest.mark.parametrize("changes", [{}, {"store_px": 0}, {"fit": "letterbox", "crop_share": 1.0}])
def test_both_give_equal_batches(packed, params, changes):
    pixels, encoded = packed("pixels", **changes), packed("encoded", **changes)
    assert isinstance(train_images(encoded), EncodedImages)
    assert train_images(encoded).shape == train_images(pixels).shape
    batches = [DataModule(dataset, params(), 1).train_dataloader() for dataset in (pixels, encoded)]
    assert len(batches[0]) > 1
    for first, second in zip(*batches, strict=True):
        assert (first.pixels_u8 == second.pixels_u8).all()
        assert (first.labels == second.labels).all()


def test_a_training_from_files_resumes_bit_for_bit_and_equals_the_one_from_pixels(
    packed, params, tiny, tmp_path, killed
):
    pixels, encoded = packed("pixels"), packed("encoded")
    policy = params(augment=[{"resized_crop": {"scale": [0.5, 1.0]}}, "flip"])
    fit(pixels, tiny, policy, 1, tmp_path / "pixels-model")
    weights = killed(lambda folder, **how: fit(encoded, tiny, policy, 1, folder, **how), 4)
    assert (tmp_path / "pixels-model" / "weights.pt").read_bytes() == weights


def test_validation_and_test_images_are_pixels_in_either_case(packed):
    pixels, encoded = packed("pixels"), packed("encoded")
    for split in ("val", "test"):
        assert np.array_equal(pixels.images(split), encoded.images(split))
    assert (pixels.mean, pixels.std, pixels.counts) == (encoded.mean, encoded.std, encoded.counts)
    assert not (encoded.folder / "images" / "train.npy").exists()
    assert pixels.hash != encoded.hash, "a large JPEG gives other pixels"


def test_a_folder_and_an_archive_of_it_are_stored_equally(packed, zipped, settings, tmp_path, png):
    files = {f"{name}/{n}.png": png(100 * at + n) for at, name in enumerate("ab") for n in range(20)}
    encoded = packed("encoded", files)
    prepare(
        zipped(dict(reversed(files.items()))),
        settings(image_px=PX, store_px=12, fit="crop", crop_share=0.75, store="encoded"),
        tmp_path / "other",
    )
    assert Dataset.load(tmp_path / "other").hash == encoded.hash
    written = sorted(path.name for path in (encoded.folder / "images").iterdir())
    assert written == ["test.npy", "train-00000.bin", "train-index.npy", "val.npy"]
    for name in written:
        assert (encoded.folder / "images" / name).read_bytes() == (
            tmp_path / "other/images" / name
        ).read_bytes()


@pytest.mark.parametrize(
    ("px", "limit", "store"),
    [(64, 60 * 64 * 64 * 3, "pixels"), (64, 60 * 64 * 64 * 3 - 1, "encoded"), (12, 0, "pixels")],
)
def test_files_are_stored_where_pixels_exceed_the_limit_and_the_files_are_smaller(
    packed, monkeypatch, px, limit, store
):
    monkeypatch.setattr("convoy.data.pack.MOST_PIXEL_BYTES", limit)
    assert packed("auto", store_px=px).store == store


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("fit_", ["squash", "crop", "letterbox"])
def test_a_large_jpeg_is_decoded_at_the_least_scale_that_serves(packed, fit_, orientation):
    files = {
        f"{name}/{n}.jpg": jpeg(100 * at + n, 144, 96, **upright(orientation))
        for at, name in enumerate("ab")
        for n in range(10)
    }
    changes = {"fit": fit_, "crop_share": 1.0}
    images = [train_images(packed(store, files, **changes)) for store in ("pixels", "encoded")]
    rows = np.arange(len(images[0]))
    whole, scaled = (each[rows].astype(int) for each in images)
    assert 0 < np.abs(whole - scaled).mean() < 3, "of 255; the filters differ"
    assert np.array_equal(scaled, images[1][rows])


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((100, 70), (25, 18)), ((23, 12), (23, 12)), ((24, 24), (12, 12)), ((1000, 12), (1000, 12))],
)
def test_the_scale_leaves_at_least_the_stored_side(size, decoded):
    width, height = size
    image_u8 = decode(jpeg(0, width, height), enough=Geometry(12, "crop").enough).image_u8
    assert image_u8.shape[1::-1] == decoded


@pytest.mark.parametrize(
    ("fit_", "share", "enough"),
    [("squash", 1.0, (12, 12)), ("crop", 0.75, (16, 16)), ("letterbox", 1.0, (12, 6))],
)
def test_what_is_enough_follows_from_the_fit(fit_, share, enough):
    assert Geometry(12, fit_, share).enough(200, 100) == enough


def test_a_training_that_cuts_nothing_from_larger_images_prints_so(packed, params, tiny, tmp_path, capsys):
    fit(packed("pixels"), tiny, params(epochs=1), 1, tmp_path / "model")
    assert "data.store_px 12 changes nothing but time and space" in capsys.readouterr().out
    policy = params(epochs=1, augment=["resized_crop"])
    fit(packed("pixels", store_px=0), tiny, policy, 1, tmp_path / "other")
    assert "store_px" not in capsys.readouterr().out


def test_a_damaged_shard_stops_the_training_with_its_name(packed, params, tiny, tmp_path):
    encoded = packed("encoded")
    path = encoded.folder / "images" / "train-00000.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"train-00000\.bin is damaged.*dvc checkout --force build/dataset"):
        fit(encoded, tiny, params(), 1, tmp_path / "model")


def test_a_dataset_without_its_index_is_refused(packed):
    encoded = packed("encoded")
    (encoded.folder / "images" / "train-index.npy").unlink()
    with pytest.raises(DataError, match=r"images/train-index\.npy is missing.*dvc checkout"):
        Dataset.load(encoded.folder)
