"""When a dvc.lock is the final one."""

import hashlib
from pathlib import Path

import pytest
import yaml

from convoy.tracking import sync


@pytest.mark.parametrize(("same", "final"), [(True, True), (False, False)])
def test_a_lock_is_final_if_it_records_the_export_that_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, same: bool, final: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / sync.LAST
    path.parent.mkdir(parents=True)
    path.write_text('{"run_id": "a"}')
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if same else "0" * 32
    outs = [{"path": sync.LAST.as_posix(), "md5": digest}]
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"export": {"outs": outs}}}))
    assert sync._workspace_lock_is_final() is final


def test_without_a_lock_there_is_nothing_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not sync._workspace_lock_is_final()
