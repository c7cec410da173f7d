"""A small repository in which rounds of retraining take seconds."""

from pathlib import Path

import pytest

from convoy.retraining import worktree
from retraining_rounds import PIPELINE, Programs, Rounds, started, with_fakes
from small_pipeline import Small, create


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The pipeline, committed; nothing has run. Read only."""
    return create(tmp_path_factory.mktemp("retraining_rounds") / "repository", PIPELINE)


@pytest.fixture(scope="session")
def finished_round(committed: Small, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """A copy after a first round, which made the first champion. Read only."""
    small = committed.copy(tmp_path_factory.mktemp("trained") / "repository")
    with pytest.MonkeyPatch.context() as patch:
        rounds = with_fakes(Rounds(small), patch)
        assert rounds.run() == (0, "promoted", "")
    small.git("branch", "-q", "-D", *rounds.branches())
    return rounds


@pytest.fixture
def rounds(committed: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """A copy for rounds of its own."""
    return started(Rounds(committed), tmp_path, monkeypatch)


@pytest.fixture
def trained(finished_round: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return started(finished_round, tmp_path, monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Let DVC and the pipeline only write their files."""
    programs = Programs()
    monkeypatch.setattr(worktree, "stream", programs)
    return programs
