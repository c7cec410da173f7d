"""Let what a round made leave this machine: commits, DVC's cache, a branch, and the proposal to merge it."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import without_credentials
from convoy.repo import dvc, git
from convoy.retraining import processes, report
from convoy.retraining.facts import Facts
from convoy.retraining.processes import RoundError
from convoy.retraining.worktree import NO_HOOKS

REMOTE = "origin"
ROBOT = {"name": "Convoy", "email": "convoy@localhost"}
"""Who commits where git knows nobody, as on a runner."""


@dataclass(frozen=True)
class Forge:
    """Name where a branch is proposed, and the branch that it is to be merged into."""

    kind: str
    base: str


def commit(place: Path, names: list[str], message: str, *, dated: str = "") -> str:
    """Commit these files as they lie there; empty where nothing differs.

    Args:
        place: the worktree.
        names: files; those that are not there are left out.
        message: subject and text.
        dated: date of the commit, now by default. A round that is repeated, after a kill or a push
            that was rejected, makes the same commit again where it is the date of the base: a model
            that names it is then not left with a commit that is gone.

    Returns:
        The commit's number.
    """
    processes.git(place, "add", "--force", "--", *[name for name in names if (place / name).exists()])
    if not processes.git(place, "diff", "--cached", "--name-only"):
        return ""
    env = {"GIT_AUTHOR_DATE": dated, "GIT_COMMITTER_DATE": dated} if dated else {}
    processes.git(place, *_identity(place), *NO_HOOKS, "commit", "--quiet", "-m", message, env=env)
    return processes.git(place, "rev-parse", "HEAD")


def _identity(place: Path) -> list[str]:
    """Give git a name to commit with, where it knows none."""
    words = []
    for key, text in ROBOT.items():
        known = git.ask(place, "config", f"user.{key}")
        if not (known or os.environ.get(f"GIT_COMMITTER_{key.upper()}")):
            words += ["-c", f"user.{key}={text}"]
    return words


def push_data(place: Path, env: Mapping[str, str], python: str) -> None:
    """Push what the worktree's dvc.lock names, and what DVC knows of the runs that made it.

    The latter let another machine take these stages instead of running them.

    Raises:
        RoundError: with DVC's own words.
    """
    try:
        processes.stream([python, "-m", "dvc", "push"], place, env)
        dvc.push_run_cache(place)
    except Exception as error:
        said = getattr(error, "log", "") or str(error)
        raise RoundError(
            f"the DVC remote did not take the data and models: {without_credentials(said.strip())[-600:]}\n"
            "`dvc push` tries by hand; `dvc remote list` and docs/data.md say what it needs.",
            without_credentials(said),
        ) from error


def remote_answers(place: Path) -> str:
    """Ask the DVC remote for something; say why it does not answer, empty where it does."""
    return dvc.check_remote(place)


def push_branch(root: Path, number: str, branch: str, options: tuple[str, ...] = ()) -> None:
    """Push a commit as a branch, from the caller's repository: a relative address of a remote is relative to it.

    Raises:
        RoundError: with git's own words.
    """
    words = [part for option in options for part in ("-o", option)]
    try:
        processes.git(root, *NO_HOOKS, "push", "--quiet", *words, REMOTE, f"{number}:refs/heads/{branch}")
    except RoundError as error:
        raise RoundError(
            f"{REMOTE} did not take the branch {branch}: {error.log}\n"
            f"May this machine push there ({address(root)})? The branch is not kept; the next round makes it again, "
            "from DVC's cache.",
            error.log,
        ) from error


def address(root: Path) -> str:
    """Name the git remote, without a password."""
    return without_credentials(git.ask(root, "remote", "get-url", REMOTE))


def forge(root: Path) -> Forge | None:
    """Find the CI system that this runs in, and the branch that proposals go to; None elsewhere."""
    kind = "github" if os.environ.get("GITHUB_ACTIONS") else "gitlab" if os.environ.get("GITLAB_CI") else ""
    return Forge(kind, base(root)) if kind else None


def base(root: Path) -> str:
    """Name the branch that the caller is on; where it is on none, the one that CI or the remote names."""
    here = git.ask(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    if here:
        return here
    named = os.environ.get("CI_COMMIT_BRANCH") or os.environ.get("CI_DEFAULT_BRANCH")
    if named:
        return named
    said = git.ask(root, "ls-remote", "--symref", REMOTE, "HEAD").partition("\t")[0]
    return said.removeprefix("ref: refs/heads/") or "main"


def propose(root: Path, place: Path, where: Forge, branch: str, *, title: str, facts: Facts) -> str:
    """Open a pull or merge request for a branch that is pushed; return its address, where it is known.

    Args:
        root: the caller's repository.
        place: the worktree.
        where: the forge.
        branch: that is pushed.
        title: of the request, in a line.
        facts: of the report, which GitHub gets whole; a push option is one line.

    Raises:
        RoundError: with the words of `gh` or git.
    """
    if where.kind == "github":
        return _pull_request(root, where.base, branch, title, report.body(facts))
    # GitLab opens one when a branch moves, so it gets a commit; what that says is the news itself.
    message = ["--quiet", "--allow-empty", "-m", title]
    processes.git(place, *_identity(place), *NO_HOOKS, "commit", *message)
    said = " ".join(facts.gate_result.reasons[0].split()) if facts.gate_result else ""
    line = f"{said} Report and pictures: {facts.job}" if facts.job else said
    push_branch(
        root,
        processes.git(place, "rev-parse", "HEAD"),
        branch,
        (
            "merge_request.create",
            f"merge_request.target={where.base}",
            f"merge_request.title={title}",
            f"merge_request.description={line}",
        ),
    )
    return ""


def _pull_request(root: Path, target: str, branch: str, title: str, body: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "body.md")
        text.write_text(body, encoding="utf-8")
        words = ["--base", target, "--head", branch, "--title", title, "--body-file", str(text)]
        return _gh(root, ["pr", "create", *words])


def _gh(root: Path, words: list[str]) -> str:
    done = subprocess.run(  # noqa: S603 (own words)
        ["gh", *words],  # noqa: S607 (from PATH)
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RoundError(
            f"`gh {' '.join(words[:2])}` failed: {without_credentials(done.stderr.strip()):.600}", done.stderr
        )
    return done.stdout.strip().rpartition("\n")[2]
