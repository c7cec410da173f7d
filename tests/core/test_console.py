"""Progress where nobody sees a bar, and tables."""

import threading
import time
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


def printed(capsys, lines):
    """Wait until so many lines are printed."""
    text, until = "", time.monotonic() + 30
    while text.count("\n") < lines:
        assert time.monotonic() < until, text
        time.sleep(0.005)
        text += capsys.readouterr().out
    return text


def test_silent_work_is_stated_again_and_again_until_it_ends(monkeypatch, capsys):
    monkeypatch.setattr(console, "SLOW_SECONDS", 0.02)
    monkeypatch.setattr(console, "STEADY_SECONDS", 0.01)
    with console.slow("importing torch"):
        assert set(printed(capsys, 3).splitlines()) == {"importing torch … 0 s"}
    capsys.readouterr()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_work_that_takes_no_time_is_not_stated(capsys):
    with console.slow("importing torch"):
        pass
    assert not capsys.readouterr().out


def test_a_line_of_the_work_itself_postpones_that_of_its_heartbeat(capsys):
    beats = []
    with console.Heartbeat(lambda _: beats.append(0) or "beat", first_s=1000.0, every_s=0.01) as beat:
        assert not beats
        beat.restart()  # from here on, it waits for every_s
        printed(capsys, 1)
    assert beats


def test_lines_go_to_standard_error_beside_json(capsys):
    with console.ProgressBar("sweep", stderr=True) as bar:
        bar.print("trial 0")
    assert capsys.readouterr() == ("", "trial 0\n")


def test_a_terminal_has_a_bar_and_the_lines_above_it(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with console.ProgressBar("sweep", 2, unit="trials") as bar:
        assert bar.in_terminal
        bar.update(description="sweep: trial 1", done=1)
        bar.print("trial 0 complete")
        bar._bar.refresh()
    printed = capsys.readouterr().out
    for text in ("trial 0 complete", "sweep: trial 1", "1/2"):
        assert text in printed


def test_a_rate_has_a_unit_and_digits_where_it_is_low():
    assert console.rate(1234.5, "images") == "1,234 images/s"
    assert console.rate(0.123) == "0.12/s"


def test_a_table_aligns_columns_and_keeps_brackets():
    assert console.table(["key", "n"], [["[a]", 1], ["bb", 20]], right=[1], indent=2) == (
        "  key   n\n  [a]   1\n  bb   20"
    )
