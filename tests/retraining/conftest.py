"""A small repository in which rounds of retraining take seconds."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest

from convoy.retraining import processes
from retraining_rounds import Programs, Rounds, make, with_fakes
from small_pipeline import Small

CI = (
    "GITHUB_ACTIONS", "GITLAB_CI", "GITHUB_STEP_SUMMARY", "GITHUB_RUN_ID", "CI_JOB_URL", "CI_COMMIT_BRANCH",
    "CI_DEFAULT_BRANCH", "MLFLOW_TRACKING_URI", "DVC_ROOT", "CONVOY_REPOSITORY",
)  # fmt: skip


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The pipeline, committed; nothing has run. Read only."""
    return make(tmp_path_factory.mktemp("retraining_rounds") / "repository")


@pytest.fixture(scope="session")
def finished_round(committed: Small, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """A copy after a first round, which made the first champion. Read only."""
    folder = tmp_path_factory.mktemp("trained") / "repository"
    shutil.copytree(committed.folder, folder, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        rounds = with_fakes(Rounds(Small(folder)), outside_ci(patch))
        assert rounds.run() == 0
    rounds.small.git("branch", "-q", "-D", *rounds.branches())
    return rounds


@pytest.fixture
def rounds(committed: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """A copy for rounds of its own."""
    return started(Rounds(committed), tmp_path, monkeypatch)


@pytest.fixture
def trained(finished_round: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """The same after a first round."""
    return started(finished_round, tmp_path, monkeypatch)


def started(original: Rounds, folder: Path, patch: pytest.MonkeyPatch) -> Rounds:
    shutil.copytree(original.root, folder / "repository", symlinks=True)
    copy = deepcopy(original)
    copy.small = Small(folder / "repository")
    patch.chdir(copy.root)
    return with_fakes(copy, outside_ci(patch))


def outside_ci(patch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in CI:
        patch.delenv(name, raising=False)
    return patch


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Let DVC and the pipeline only write their files."""
    programs = Programs()
    monkeypatch.setattr(processes, "stream", programs)
    return programs
