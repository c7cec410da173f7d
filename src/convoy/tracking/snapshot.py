"""Take down what a run was made of when it opened: commit, changes, data, params."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from convoy.core import params, yaml
from convoy.repo import git, identity

DIFF = "workspace.diff"
DIFF_BYTES = 10_000_000
"""Largest diff that is kept with a run; a larger one is data rather than code."""

PIPELINE = (params.PARAMS_FILE, Path("dvc.yaml"), Path("data.dvc"))


def tags() -> dict[str, str]:
    """State commit, data as data.dvc names it, and params; what is not there is left out."""
    said = {**identity.git_state(), "convoy.params_hash": params.digest(yaml.read(params.PARAMS_FILE))}
    if data := data_md5(Path("data.dvc")):
        said["convoy.data_md5"] = data
    return said


def data_md5(path: Path) -> str:
    """Read the hash by which DVC keeps what was delivered; empty where an import is not fetched yet."""
    if not path.exists():
        return ""
    content = yaml.load(path.read_text(encoding="utf-8"))
    return str(next((out["md5"] for out in content.get("outs", []) if "md5" in out), ""))


def diff(target: Path) -> str:
    """Write what differs from the commit, new files included, so that `git apply` makes it again.

    The index of the user is read, never written: new files are added to a copy of it, by name only.

    Args:
        target: the file to write.

    Returns:
        Why there is none; empty where it was written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        env = os.environ | {"GIT_INDEX_FILE": str(index)}
        own = Path(git.ask(Path.cwd(), "rev-parse", "--git-path", "index"))
        if own.is_file():
            shutil.copyfile(own, index)
        elif refused := _git(["read-tree", "HEAD"], env):
            return refused
        if large := _too_large(_untracked_bytes()):
            return large
        if refused := _git(["add", "--intent-to-add", "--", *identity.CHANGES], env):
            return refused
        return _write(target, env)


def _write(target: Path, env: dict[str, str]) -> str:
    """Let git write the diff; stop it at the limit."""
    words = ["--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/"]
    command = ["git", "diff", "--binary", *words, "HEAD", "--", *identity.CHANGES]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:  # noqa: S603 (own words)
        content = process.stdout.read(DIFF_BYTES + 1) if process.stdout else b""
        if large := _too_large(len(content)):
            process.kill()
            return large
    if process.returncode:
        return f"git diff ended with {process.returncode}"
    target.write_bytes(content)
    return ""


def _too_large(size: int) -> str:
    return f"more than {DIFF_BYTES / 1e6:.0f} MB differ from the commit" if size > DIFF_BYTES else ""


def _untracked_bytes() -> int:
    """Add up new files: git would read them whole before a diff shows how large it is."""
    names = git.ask(Path.cwd(), "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    return sum(Path(name).lstat().st_size for name in names if name and Path(name).exists())


def _git(words: list[str], env: dict[str, str]) -> str:
    """Run git with another index; return why it failed."""
    done = subprocess.run(["git", *words], env=env, capture_output=True, text=True, check=False)  # noqa: S603, S607 (own words, git from PATH as everywhere)
    return (
        f"git {words[0]} ended with {done.returncode}: {done.stderr.strip():.200}" if done.returncode else ""
    )
