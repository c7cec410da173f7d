"""A round in the subfolder of a larger repository trains there, commits there, and leaves the rest alone."""

from pathlib import Path

from retraining_rounds import PIPELINE, Rounds, state, with_fakes
from small_pipeline import create


def test_a_round_runs_in_the_pipelines_folder(tmp_path, monkeypatch):
    (tmp_path / "larger").mkdir()
    (tmp_path / "larger/others.txt").write_text("others\n")
    small = create(tmp_path / "larger", PIPELINE, "ml")
    small.write("../others.txt", "edited by others\n")
    monkeypatch.chdir(small.folder)
    rounds = with_fakes(Rounds(small), monkeypatch)
    before = state(small.folder)
    assert rounds.run() == (0, "promoted", "")
    [branch] = rounds.branches()
    assert small.git("diff", "--name-only", "main", branch) == "ml/dvc.lock"
    assert "not part of the round" not in rounds.report, "the edit is not of the pipeline"
    small.git("branch", "-q", "-D", branch)
    assert state(small.folder) == before
    assert rounds.run() == (0, "nothing-new", "")


def test_a_commit_without_the_pipeline_is_refused_with_the_remedy(tmp_path, monkeypatch):
    small = create(tmp_path / "larger", PIPELINE, "ml")
    small.git("rm", "-r", "-q", "--cached", ".dvc")
    small.git("commit", "-q", "-m", "without")
    monkeypatch.chdir(small.folder)
    rounds = with_fakes(Rounds(small), monkeypatch)
    code, verdict, step = rounds.run()
    assert (code, verdict, step) == (1, "failed", "worktree")
    assert "has no pipeline in ml/" in rounds.result["reason"]
    assert "git add" in rounds.result["reason"]
    assert not Path(".dvc/tmp/retrain/worktree").exists()
