"""Refuse a round that could not end well, before it does anything, naming all that is missing at once."""

import os
import shutil
from pathlib import Path

from convoy.core.errors import RequestError, without_credentials
from convoy.repo import dvc, git
from convoy.retraining.publish import REMOTE


def check(root: Path, *, push: bool) -> str:
    """Check what a round stands on; name DVC's remote, empty where it has none.

    Args:
        root: the caller's repository.
        push: whether what the round makes is to leave this machine.

    Raises:
        RequestError: naming everything that is missing.
    """
    dvc.check_repository(root)
    if not git.commit(root, "HEAD"):
        raise RequestError(
            f"{root} has no git commit, and a round starts from one. Type: git add -A && git commit"
        )
    remote = dvc_remote(root)
    if push and (missing := [*_missing(root, has_remote=bool(remote))]):
        lines = "\n".join(f"  {line}" for line in missing)
        raise RequestError(
            f"PUSH=1 needs what is not there:\n{lines}\n"
            "Without PUSH=1 a round stays on this machine (docs/retraining.md)."
        )
    return remote


def _missing(root: Path, *, has_remote: bool) -> list[str]:
    missing = []
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        missing.append(
            "MLFLOW_TRACKING_URI: address of the MLflow server that has the registry; a runner forgets mlflow.db. "
            "export MLFLOW_TRACKING_URI=https://…"
        )
    if not has_remote:
        missing.append(
            "a DVC remote: where data and models are kept between runners. dvc remote add --default store s3://…"
        )
    if not git.ask(root, "remote", "get-url", REMOTE):
        missing.append(f"a git remote `{REMOTE}`: where the branch goes. git remote add {REMOTE} URL")
    if os.environ.get("GITHUB_ACTIONS") and not shutil.which("gh"):
        missing.append("gh: GitHub's command, which opens the pull request. https://cli.github.com")
    return missing


def dvc_remote(root: Path) -> str:
    """Name DVC's default remote and its address, without a password; empty where it has none."""
    name, url = dvc.default_remote(root)
    return f"{name} ({without_credentials(url)})" if name else ""


def uncommitted(root: Path) -> str:
    """Say what of the caller's working tree is no part of a round; empty where everything is committed."""
    # Without the option, git would write into the caller's index what it learned about times of files.
    changed = git.ask(root, "--no-optional-locks", "status", "--porcelain").splitlines()
    if not changed:
        return ""
    names = ", ".join(f"`{line[3:]}`" for line in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        f"This working tree has changes that are not committed ({names}{more}). A round starts from the commit, so they "
        "were no part of it."
    )
