"""The journal survives what kills its writer."""

import errno
import os
import stat
from pathlib import Path

import pytest

from convoy.tracking import journal
from convoy.tracking.journal import FILE, SENT, Journal, Sent, State, read, state
from convoy.tracking.run import Reference, Run

OPEN = {"kind": "open", "resumed": False, "tags": {"convoy.run_id": "a"}, "writer": "1:2.00"}


def entries(folder: Path) -> list[dict]:
    return [dict(entry) for entry, _ in read(folder / FILE)]


@pytest.fixture
def opened(tmp_path: Path) -> Journal:
    kept = Journal(tmp_path / "outbox/a")
    kept.append(OPEN)
    return kept


def test_a_torn_last_line_is_left_out_and_the_next_entry_stands_on_its_own(opened):
    with opened.path.open("ab") as file:
        file.write(b'{"kind":"points","points":[["train/lo')
    assert entries(opened.folder) == [OPEN]
    Journal(opened.folder).append({"kind": "tags", "tags": {"x": "y"}})
    assert entries(opened.folder) == [OPEN, {}, {"kind": "tags", "tags": {"x": "y"}}]
    assert state(opened.folder).tags["x"] == "y"


@pytest.mark.parametrize("torn", [b"\0" * 4096, b"\xff\xfe{", b"12"])
def test_an_entry_torn_by_power_loss_is_skipped(opened, torn):
    with opened.path.open("ab") as file:
        file.write(torn)
    Journal(opened.folder).append({"kind": "end", "status": "KILLED", "time_ms": 5})
    assert state(opened.folder).ended == "KILLED"


def test_reading_continues_at_an_offset(opened):
    [(_, end)] = read(opened.path)
    opened.append({"kind": "tags", "tags": {"ü": "é"}})
    [(entry, last)] = read(opened.path, end)
    assert entry == {"kind": "tags", "tags": {"ü": "é"}}
    assert last == opened.path.stat().st_size


def test_a_full_disk_is_reported_once_and_later_entries_are_kept(opened, monkeypatch, capsys):
    def full(descriptor: int, line: bytes) -> int:
        os.write(descriptor, line[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = Run(Reference("a", "a"), opened)
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", full)
        run.log_metrics({"train/loss": 1.0})
        run.set_tags({"never": "kept"})
    run.set_tags({"space": "again"})
    [line] = capsys.readouterr().err.splitlines()
    assert "run a is incomplete: [Errno 28]" in line
    kept = [entry for entry in entries(opened.folder) if entry]
    assert kept == [OPEN, {"kind": "tags", "tags": {"space": "again"}}]


def test_an_entry_that_is_written_in_half_is_an_error(opened, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", lambda descriptor, line: os.write(descriptor, line[:9]))
        with pytest.raises(OSError, match=r"journal\.jsonl: the disk took 9 of 33 bytes"):
            opened.append({"kind": "tags", "tags": {"a": "b"}})
    opened.append({"kind": "tags", "tags": {"c": "d"}})
    assert entries(opened.folder)[1:] == [{}, {"kind": "tags", "tags": {"c": "d"}}]


def test_a_missing_file_stops_no_stage(opened, capsys):
    run = Run(Reference("a", "a"), opened)
    run.log_file(opened.folder / "missing.png")
    run.log_onnx(opened.folder / "missing.onnx")
    run.log_dataset("d" * 64, opened.folder / "missing")
    assert "missing.png" in capsys.readouterr().err
    assert entries(opened.folder) == [OPEN]


def test_files_are_copied_when_they_are_logged(opened, tmp_path):
    source = tmp_path / "out"
    (source / "inner").mkdir(parents=True)
    (source / "inner/a.txt").write_text("as logged")
    names = [opened.copy_in(source), opened.copy_in(source / "inner/a.txt")]
    (source / "inner/a.txt").write_text("changed")
    assert (opened.folder / names[0] / "inner/a.txt").read_text() == "as logged"
    assert (opened.folder / names[1] / "a.txt").read_text() == "as logged"


def test_a_journal_is_read_by_its_owner_alone(opened):
    assert stat.S_IMODE(opened.path.stat().st_mode) == 0o600


def test_points_at_a_step_that_the_journal_has_are_left_out_also_by_another_process(opened):
    first = [("step/loss", 2.0, 10, 1), ("step/loss", 1.0, 20, 2)]
    Run(Reference("a", "a"), opened).log_points(first)
    again = Run(Reference("a", "a"), Journal(opened.folder), state(opened.folder))
    before = opened.path.stat().st_size
    again.log_points([("step/loss", 9.0, 20, 5)])
    assert opened.path.stat().st_size == before, "a call without new points writes nothing"
    again.log_points([("step/loss", 9.0, 20, 5), ("step/loss", 0.5, 30, 6), ("step/lr", 0.1, 20, 6)])
    points = [tuple(point) for entry in entries(opened.folder) for point in entry.get("points", [])]
    assert points == [*first, ("step/loss", 0.5, 30, 6), ("step/lr", 0.1, 20, 6)]


def test_checkpoints_and_ends_are_synced_to_disk_and_other_entries_are_not(opened, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    run = Run(Reference("a", "a"), opened)
    run.log_metrics({"train/loss": 1.0}, 1)
    run.set_tags({"a": "b"})
    assert len(synced) == 0
    run.log_points([("step/loss", 2.0, 10, 1)])
    assert len(synced) == 1
    run.end("FINISHED")
    assert len(synced) == 2


def test_nothing_is_written_after_the_first_end(opened):
    run = Run(Reference("a", "a"), opened)
    run.end("SCHEDULED")
    run.end("FAILED")
    run.set_tags({"late": "tag"})
    assert [entry["kind"] for entry in entries(opened.folder)] == ["open", "end"]
    assert state(opened.folder).ended == "SCHEDULED"


def test_a_resumed_run_is_open_again():
    summed = State()
    for entry in (OPEN, {"kind": "system", "on": True}, {"kind": "end", "status": "KILLED"}):
        summed.add(entry)
    assert (summed.ended, summed.sampled) == ("KILLED", False)
    summed.add({**OPEN, "resumed": True})
    assert (summed.ended, summed.remade) == ("", False)


@pytest.mark.parametrize("left", ["", "{", "[]", '{"unknown": 1}'])
def test_an_unreadable_record_of_what_was_sent_starts_over(tmp_path, left):
    (tmp_path / SENT).write_text(left)
    assert Sent.load(tmp_path) == Sent()
