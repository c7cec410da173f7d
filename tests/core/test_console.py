"""Progress where nobody sees a bar, and tables."""

from collections.abc import Iterator

import pytest

from convoy.core import console


def test_slow_work_prints_plain_lines_with_rate_and_time_left(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)

    def slow() -> Iterator[int]:
        nonlocal now
        for item in range(4):
            now += 2
            yield item

    assert list(console.track(slow(), "read images", 4)) == [0, 1, 2, 3]
    assert capsys.readouterr().out == "read images: 3 of 4, 2 s left (0.5/s)\n"


def test_fast_work_prints_nothing(capsys):
    assert list(console.track("abc", "read")) == ["a", "b", "c"]
    assert not capsys.readouterr().out


def test_the_time_left_follows_from_the_items_of_this_call(monkeypatch):
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.ProgressBar("sweep", 10, done=4) as bar:
        assert bar.remaining_s is None
        now = 6.0
        bar.update(done=6)
        assert bar.remaining_s == pytest.approx(12.0)


def test_lines_go_to_standard_error_beside_json(capsys):
    with console.ProgressBar("sweep", stderr=True) as bar:
        bar.print("trial 0")
    assert capsys.readouterr() == ("", "trial 0\n")


def test_a_terminal_has_a_bar_and_the_lines_above_it(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with console.ProgressBar("sweep", 2) as bar:
        bar.update(description="sweep: trial 1", done=1)
        bar.print("trial 0 complete")
        bar._bar.refresh()
    printed = capsys.readouterr().out
    for text in ("trial 0 complete", "sweep: trial 1", "1/2"):
        assert text in printed


def test_a_table_aligns_columns_and_keeps_brackets():
    assert console.table(["key", "n"], [["[a]", 1], ["bb", 20]], right=[1], indent=2) == (
        "  key   n\n  [a]   1\n  bb   20"
    )
