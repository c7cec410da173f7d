import numpy as np
import pytest

from convoy.data import records
from convoy.images.decode import decode
from convoy.images.layout import recognise


@pytest.mark.parametrize(("files", "size"), [(1, 2**20), (3, 2**20), (1000, 1), (1000, 2**20)])
def test_records_come_in_the_order_of_the_files_however_they_are_batched(pets, monkeypatch, files, size):
    monkeypatch.setattr(records, "BATCH_FILES", files)
    monkeypatch.setattr(records, "BATCH_BYTES", size)
    found = list(records.read(pets.items(), recognise(pets), shrink=lambda image_u8: image_u8[:1]))
    assert [record.path for record, _ in found] == list(pets)
    for (record, kept_u8), content in zip(found, pets.values(), strict=True):
        assert record.verdict == "ok"
        assert np.array_equal(kept_u8, decode(content).image_u8[:1])


def test_an_error_while_shrinking_is_no_verdict_and_comes_through(pets):
    def broken(_: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(records.read(pets.items(), recognise(pets), broken))


def test_files_are_taken_only_a_little_ahead_of_what_is_asked_for(pets, monkeypatch):
    monkeypatch.setattr(records, "BATCH_FILES", 1)
    monkeypatch.setattr(records.os, "cpu_count", lambda: 2)
    taken = []
    reading = records.read(
        ((taken.append(name), (name, pets[name]))[1] for name in pets), recognise(pets), np.copy
    )
    next(reading)
    assert len(taken) <= 2 * 2 + 1
