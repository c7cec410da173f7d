"""What people see while a sweep runs."""

from dataclasses import replace

import pytest

from convoy.sweep import show as show_module
from convoy.sweep.request import Request
from convoy.sweep.results import Results, Row
from convoy.sweep.show import Show


def row(number: int, state: str, value: float | None = None, epochs: int = 3, reason: str = "") -> Row:
    return Row(
        number, state, value, {"train.lr": 0.1 / (number + 1), "train.batch_size": 16}, epochs, 3, 2.0, reason
    )


def results(request: Request, *rows: Row) -> Results:
    complete = [one for one in rows if one.state == "complete"]
    return Results(request, rows, min(complete, key=lambda one: one.value or 0.0, default=None))


def test_a_trial_that_ended_is_one_line_with_the_best_so_far_and_the_time_left(
    here, capsys: pytest.CaptureFixture[str]
) -> None:
    request = Request.read()
    first, second = row(0, "complete", 0.25), row(1, "pruned", 0.5, epochs=2)
    third = row(2, "failed", reason="the loss became nan\nLower train.lr")
    with Show(results(request), 4, 1, aside=False) as show:
        show.update(results(request, replace(first, state="running")))
        show.update(results(request, first))
        show.update(results(request, first))
        show.update(results(request, first, second, third))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "trial 0  val/loss 0.2500  lr 0.1 · batch_size 16  complete  2.0 s  best 0.2500 (trial 0)  1 of 4, ETA "
    )
    assert lines[1].startswith(
        "trial 1  val/loss 0.5000  lr 0.05 · batch_size 16  pruned at epoch 2/3  2.0 s  best 0.2500"
    )
    assert lines[2].startswith("trial 2  the loss became nan  lr 0.03")
    assert len(lines) == 3


def test_what_was_done_before_is_not_said_again(here, capsys: pytest.CaptureFixture[str]) -> None:
    request = Request.read()
    known = results(request, row(0, "complete", 0.25))
    with Show(known, 2, 1, aside=True) as show:
        show.update(results(request, *known.rows, row(1, "complete", 0.2)))
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert line.startswith("trial 1  ")
    assert line.endswith("best 0.2000 (trial 1)")


def test_a_log_says_what_runs_when_nothing_ends_for_long(
    here, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show_module, "PLAIN_S", -1.0)
    request = Request.read()
    with Show(results(request), 2, 1, aside=False) as show:
        show.update(results(request, row(0, "running", epochs=1), row(1, "running", epochs=3)))
    assert capsys.readouterr().out == "running: trial 0 epoch 2/3, trial 1 epoch 3/3\n"


def test_a_terminal_has_a_bar_and_the_lines_above_it(
    here, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    request = Request.read()
    with Show(results(request), 2, 1, aside=False) as show:
        show.update(results(request, row(0, "complete", 0.25), row(1, "running", epochs=1)))
        show._bar.refresh()
    said = capsys.readouterr().out
    assert "trial 0  val/loss 0.2500" in said
    assert "sweep: trial 1 epoch 2/3" in said
    assert "1/2" in said
