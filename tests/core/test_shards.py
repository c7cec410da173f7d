import numpy as np
import pytest

from convoy.core import shards
from convoy.core.errors import DataError
from convoy.core.shards import Reader, Writer

FILES = [bytes([n]) * (10 + 7 * n) for n in range(9)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write files in an order of rows, into shards of about 60 bytes."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 60)

    def write(order=None, name="dataset"):
        (tmp_path / name / "images").mkdir(parents=True)
        with Writer(tmp_path / name, [len(content) for content in FILES]) as writer:
            for row in order or range(len(FILES)):
                writer.add(row, FILES[row])
        return tmp_path / name

    return write


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def test_files_are_read_by_row_from_shards_of_bounded_size(written):
    folder = written()
    reader = Reader(folder)
    assert [reader[row] for row in range(len(reader))] == FILES
    sizes = {path.stem: path.stat().st_size for path in (folder / "images").glob("*.bin")}
    assert len(sizes) > 3
    assert all(size <= 60 or size in map(len, FILES) for size in sizes.values())
    assert sum(sizes.values()) == sum(map(len, FILES)), "without gaps"


def test_the_order_in_which_files_come_changes_nothing(written):
    assert contents(written()) == contents(written([5, 8, 0, 2, 7, 1, 3, 6, 4], "other"))


def test_a_damaged_shard_is_named(written):
    folder = written()
    path = folder / "images" / "train-00001.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    reader = Reader(folder)
    damaged = []
    for row in range(len(reader)):
        try:
            assert reader[row] == FILES[row]
        except DataError as error:
            damaged.append(str(error))
    assert len(damaged) == 1
    for fact in (str(path), "training image 3", "CRC-32", "dvc checkout", "dvc repro --force prepare"):
        assert fact in damaged[0]


@pytest.mark.parametrize(
    "spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])]
)
def test_a_missing_or_truncated_shard_is_named(written, spoil):
    folder = written()
    spoil(folder / "images" / "train-00000.bin")
    with pytest.raises(DataError, match=r"train-00000\.bin (cannot be read|is damaged).*dvc checkout"):
        [Reader(folder)[row] for row in range(len(FILES))]


def test_an_empty_file_has_its_place(tmp_path):
    (tmp_path / "images").mkdir()
    with Writer(tmp_path, [0, 3]) as writer:
        writer.add(1, b"abc")
        writer.add(0, b"")
    assert [Reader(tmp_path)[row] for row in (0, 1)] == [b"", b"abc"]
    assert np.load(tmp_path / "images" / "train-index.npy").shape == (2, 4)
