"""Publish the results of a round: commits, DVC's cache, a branch, and the proposal to merge it."""

import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from convoy.core.errors import without_credentials
from convoy.repo import dvc, git
from convoy.retraining import report, worktree
from convoy.retraining.outcome import Delivery, RoundRecord
from convoy.retraining.worktree import NO_HOOKS, RoundError

REMOTE = "origin"
ROBOT = {"name": "Convoy", "email": "convoy@localhost"}
"""The committer if git has none configured, as on a runner."""

NOT_PUSHED = "PUSH=1 was not given"
UNCHANGED = "nothing differs from the commit"


@dataclass
class Publication:
    """Bring a round's commits, data and models to the remotes, or keep them on a branch."""

    root: Path  # the caller's repository
    tree: Path
    record: RoundRecord  # gets deliveries, and the branch
    branch: str  # its name, if there is anything to commit
    push: bool  # whether anything may leave this machine
    dvc_remote: str

    def publish(self) -> bool:
        """Push everything, or create the branch that keeps the commits here; return whether the remote has the branch.

        Raises:
            RoundError: a remote rejected it.
        """
        head = git.commit(self.tree, "HEAD")
        is_new = head != self.record.identity.commit
        self.record.identity.branch = self.branch if is_new else ""
        if self.push:
            with self.record.step("push data") as step:
                push_data(self.tree)
                self._deliver("data and models", where=self.dvc_remote)
                step.note = self.dvc_remote
        else:
            by_hand = "run: dvc push" if self.dvc_remote else "there is no DVC remote (docs/data.md)"
            self._deliver("data and models", why=f"{NOT_PUSHED}; {by_hand}")
        if not is_new:
            self._deliver("branch", why=UNCHANGED)
            return False
        if self.push:
            with self.record.step("push branch") as step:
                push_branch(self.root, head, self.branch)
                self._deliver("branch", where=address(self.root))
                step.note = self.branch
            return True
        with self.record.step("branch") as step:
            git.run(self.root, "branch", "--no-track", self.branch, head)
            has_remote = bool(address(self.root))
            by_hand = (
                f"run: git push {REMOTE} {self.branch}" if has_remote else f"there is no git remote {REMOTE}"
            )
            self._deliver("branch", why=f"{NOT_PUSHED}, so it exists only in this repository; {by_hand}")
            step.note = f"{self.branch}, in this repository"
        return False

    def propose(self) -> None:
        """Open a pull or merge request for the branch, once its model is promoted.

        Raises:
            RoundError: the request was not opened; the new champion stays.
        """
        if not (self.push and self.record.identity.branch):
            return
        on_github = os.environ.get("GITHUB_ACTIONS")
        if not (on_github or os.environ.get("GITLAB_CI")):
            by_hand = f"git fetch, then git merge {REMOTE}/{self.branch}"
            self._deliver(
                "pull request",
                why=f"this is neither GitHub Actions nor GitLab CI; to merge by hand: {by_hand}",
            )
            return
        base, title = base_branch(self.root), f"Retrained: {self.record.identity.version} is champion"
        with self.record.step("propose") as step:
            try:
                url = self._pull_request(base, title) if on_github else self._merge_request(base, title)
            except (RoundError, git.GitError) as error:
                raise RoundError(
                    f"{self.record.champion} is champion and its branch {self.branch} is pushed, but no request was "
                    f"opened: {error}\n{self._by_hand(base, title)}",
                    getattr(error, "log", ""),
                ) from error
            what = "pull request" if on_github else "merge request"
            self._deliver(what, where=url or address(self.root))
            step.note = url or f"into {base}"

    def _by_hand(self, base: str, title: str) -> str:
        """Give the command or page that opens the request: another round would end with nothing new."""
        env = os.environ
        if env.get("GITHUB_ACTIONS"):
            body = f"Report: {self.record.job}" if self.record.job else title
            words = ["--base", base, "--head", self.branch, "--title", title, "--body", body]
            return (
                f"Open it in a clone: {shlex.join(['gh', 'pr', 'create', *words])}\n"
                "For later rounds: allow it under Settings → Actions → General, or set RETRAIN_TOKEN (docs/retraining.md)."
            )
        query = {"merge_request[source_branch]": self.branch, "merge_request[target_branch]": base}
        page = f"{env.get('CI_PROJECT_URL', '')}/-/merge_requests/new?{urlencode(query)}"
        return f"Open it on this page: {page}\nFor later rounds: check RETRAIN_TOKEN (docs/retraining.md)."

    def _pull_request(self, base: str, title: str) -> str:
        """Open a pull request with the report as its text; return its address."""
        with tempfile.TemporaryDirectory() as scratch:
            body = Path(scratch, "body.md")
            body.write_text(report.render(self.record), encoding="utf-8")
            words = ["--base", base, "--head", self.branch, "--title", title, "--body-file", str(body)]
            done = subprocess.run(  # noqa: S603 (no shell)
                ["gh", "pr", "create", *words],  # noqa: S607 (from PATH)
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        if done.returncode:
            reason = without_credentials(done.stderr.strip())
            raise RoundError(f"`gh pr create` failed: {reason:.600}", reason)
        return done.stdout.strip().rpartition("\n")[2]

    def _merge_request(self, base: str, title: str) -> str:
        """Open a merge request by the options of a push; GitLab wants a new commit for that."""
        git.run(
            self.tree, *_committer(self.tree), *NO_HOOKS, "commit", "--quiet", "--allow-empty", "-m", title
        )
        result, job = self.record.gate_result, self.record.job
        reason = " ".join(result.reasons[0].split()) if result else ""
        options = (
            "merge_request.create",
            f"merge_request.target={base}",
            f"merge_request.title={title}",
            # An option is one line, so the report itself does not fit.
            f"merge_request.description={reason}" + (f" Report and pictures: {job}" if job else ""),
        )
        push_branch(self.root, git.commit(self.tree, "HEAD"), self.branch, options)
        return ""

    def _deliver(self, what: str, *, where: str = "", why: str = "") -> None:
        self.record.deliveries.append(Delivery(what, where, why))


def commit(tree: Path, names: list[str], message: str, *, date: str = "") -> str:
    """Commit those of the files that exist; return the commit's number, empty if nothing differs.

    With the date of its base, a round that is repeated after a kill or a rejected push makes the same commit again, so a
    model that names it does not name a lost commit.
    """
    git.run(tree, "add", "--force", "--", *[name for name in names if (tree / name).exists()])
    if not git.run(tree, "diff", "--cached", "--name-only"):
        return ""
    env = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}
    git.run(tree, *_committer(tree), *NO_HOOKS, "commit", "--quiet", "-m", message, env=env)
    return git.commit(tree, "HEAD")


def _committer(tree: Path) -> list[str]:
    """Name a committer for git if it has none."""
    options = []
    for key, text in ROBOT.items():
        if not (git.query(tree, "config", f"user.{key}") or os.environ.get(f"GIT_COMMITTER_{key.upper()}")):
            options += ["-c", f"user.{key}={text}"]
    return options


def push_data(tree: Path) -> None:
    """Push what the worktree's dvc.lock names, with the run cache, so that other machines need not run the stages."""
    try:
        worktree.stream([sys.executable, "-m", "dvc", "push"], tree, {**os.environ, **dvc.environment(tree)})
        dvc.push_run_cache(tree)
    except Exception as error:
        reason = without_credentials(getattr(error, "log", "") or str(error)).strip()
        raise RoundError(
            f"the DVC remote rejected the data and models: {reason[-600:]}\n"
            "To try by hand: `dvc push`. `dvc remote list` and docs/data.md show what it needs.",
            reason,
        ) from error


def push_branch(root: Path, number: str, branch: str, options: tuple[str, ...] = ()) -> None:
    """Push a commit as a branch, from the caller's repository: a relative address of a remote is relative to it."""
    words = [part for option in options for part in ("-o", option)]
    try:
        git.run(root, *NO_HOOKS, "push", "--quiet", *words, REMOTE, f"{number}:refs/heads/{branch}")
    except git.GitError as error:
        raise RoundError(
            f"{REMOTE} rejected the branch {branch}: {error}\n"
            f"May this machine push there ({address(root)})? The branch is not kept; the next round recreates it from "
            "DVC's cache.",
            str(error),
        ) from error


def address(root: Path) -> str:
    """Address of the git remote, without a password."""
    return without_credentials(git.query(root, "remote", "get-url", REMOTE))


def base_branch(root: Path) -> str:
    """Name the checked-out branch; with a detached HEAD, the branch that CI names, or the remote's default."""
    branch = git.query(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    branch = branch or os.environ.get("CI_COMMIT_BRANCH") or os.environ.get("CI_DEFAULT_BRANCH") or ""
    if not branch:
        answer = git.query(root, "ls-remote", "--symref", REMOTE, "HEAD").partition("\t")[0]
        branch = answer.removeprefix("ref: refs/heads/")
    return branch or "main"


def job_page() -> str:
    """Return the address of this CI job's page; empty outside CI."""
    env = os.environ
    if env.get("GITHUB_ACTIONS") and env.get("GITHUB_RUN_ID"):
        return f"{env.get('GITHUB_SERVER_URL')}/{env.get('GITHUB_REPOSITORY')}/actions/runs/{env['GITHUB_RUN_ID']}"
    return env.get("CI_JOB_URL", "")
