"""What leaves this machine after a verdict, step by step, with a word for the report on each thing that stays."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from convoy.repo import git
from convoy.retraining import processes, publish
from convoy.retraining.facts import Delivery, Facts
from convoy.retraining.processes import RoundError


@dataclass
class Shipment:
    """Bring a round's commits, data and models to where they are kept.

    Attributes:
        root: the caller's repository.
        place: the worktree.
        facts: record of the round; gets deliveries, and the branch.
        branch: its name, where there is something to keep on it.
        push: whether anything may leave this machine.
        remote: DVC's; empty where it has none.
    """

    root: Path
    place: Path
    facts: Facts
    branch: str
    push: bool
    remote: str

    def leave(self) -> bool:
        """Push everything, or make the branch that keeps the commits here; tell whether the remote has the branch.

        Raises:
            RoundError: a remote did not take it.
        """
        made = git.commit(self.place, "HEAD") != self.facts.identity.commit
        self.facts.identity.branch = self.branch if made else ""
        if not self.push:
            self._stay(made=made)
            return False
        with self.facts.step("push data") as step:
            env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
            publish.push_data(self.place, env, sys.executable)
            self._done("data and models", self.remote)
            step.note = self.remote
        if not made:
            self._not_done("branch", "nothing differs from the commit")
            return False
        with self.facts.step("push branch") as step:
            publish.push_branch(self.root, git.commit(self.place, "HEAD"), self.branch)
            self._done("branch", publish.address(self.root))
            step.note = self.branch
        return True

    def _stay(self, *, made: bool) -> None:
        by_hand = "type: dvc push" if self.remote else "there is no DVC remote (docs/data.md)"
        self._not_done("data and models", f"PUSH=1 was not given; {by_hand}")
        if not made:
            self._not_done("branch", "nothing differs from the commit")
            return
        with self.facts.step("branch") as step:
            processes.git(self.root, "branch", "--no-track", self.branch, git.commit(self.place, "HEAD"))
            by_hand = (
                f"type: git push {publish.REMOTE} {self.branch}"
                if publish.address(self.root)
                else f"there is no git remote {publish.REMOTE}"
            )
            self._not_done("branch", f"PUSH=1 was not given, so it is in this repository alone; {by_hand}")
            step.note = f"{self.branch}, in this repository"

    def propose(self) -> None:
        """Propose the branch to be merged, once what it holds is promoted.

        Raises:
            RoundError: the request was not opened; the champion is the new one all the same.
        """
        if not (self.push and self.facts.identity.branch):
            return
        where = publish.forge(self.root)
        if where is None:
            by_hand = f"git fetch, then git merge {publish.REMOTE}/{self.branch}"
            self._not_done(
                "pull request", f"this is no CI system that Convoy knows; to merge by hand, type: {by_hand}"
            )
            return
        with self.facts.step("propose") as step:
            title = f"Retrained: {self.facts.identity.version} is champion"
            try:
                there = publish.propose(
                    self.root, self.place, where, self.branch, title=title, facts=self.facts
                )
            except RoundError as error:
                raise RoundError(
                    f"{self.facts.champion} is champion and its branch {self.branch} is pushed, but it is not "
                    f"proposed: {error}\nOpen the request by hand, into {where.base}.",
                    error.log,
                ) from error
            what = "pull request" if where.kind == "github" else "merge request"
            self._done(what, there or publish.address(self.root))
            step.note = there or f"into {where.base}"

    def _done(self, what: str, where: str) -> None:
        self.facts.deliveries.append(Delivery(what, done=True, where=where))

    def _not_done(self, what: str, why: str) -> None:
        self.facts.deliveries.append(Delivery(what, done=False, why=why))
