"""Progress where nobody sees a bar."""

import itertools

import pytest

from convoy.core import console


def test_slow_work_speaks_in_plain_lines_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0, 2)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    assert list(console.track(range(4), "read images", 4)) == [0, 1, 2, 3]
    assert capsys.readouterr().out == "read images: 3 of 4, 2 s left (0.5/s)\n"


def test_fast_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.track("abc", "read")) == ["a", "b", "c"]
    assert not capsys.readouterr().out
