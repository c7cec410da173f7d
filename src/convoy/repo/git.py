"""Call git; no other file does."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convoy.core.errors import ConvoyError, without_credentials

TRUST = re.compile(r"git config --global --add safe\.directory .+")
"""The command that git itself prints where it refuses a repository of another user, in any language."""


class GitError(ConvoyError):
    """Report that git failed, with its message without passwords."""


def run(root: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    """Run git in `root`, with additional variables, without prompts; return its output without the last line break.

    Raises:
        GitError: git ended with another exit code than 0, or is not on PATH.
    """
    return _run(root, words, env).decode(errors="replace").strip("\n")


def _run(root: Path, words: Sequence[str], env: Mapping[str, str] | None = None, text: bytes = b"") -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 (no shell)
            ["git", *words],  # noqa: S607 (git from PATH)
            cwd=root,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(env or {})},
            input=text,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise GitError("`git` is not on PATH. Install it, or add its folder to PATH.") from error
    if done.returncode:
        verb = next((word for word in words if word[0] != "-" and "=" not in word), words[0])
        message = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
        reason = without_credentials(message[-2000:]) or f"exit code {done.returncode}"
        raise GitError(f"`git {verb}` failed: {reason}")
    return done.stdout


def query(root: Path, *words: str) -> str:
    """Run git and return its output; empty if it fails."""
    try:
        return run(root, *words)
    except GitError:
        return ""


def no_commit(root: Path) -> str:
    """Explain why git names no commit for a folder, with the remedy; empty if it names one."""
    try:
        run(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except GitError as error:
        reason = str(error)
    else:
        return ""
    if shutil.which("git") is None:
        return reason
    try:
        run(root, "rev-parse", "--git-dir")
    except GitError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        if command := TRUST.search(str(error)):
            return f"{reason}, which belongs to another user. Type: {command[0]}"
        if not is_repository(root):
            return f"{root} is in no git repository. Type: git init && git add -A && git commit -m first"
        return reason
    return "the git repository has no commit yet. Type: git add -A && git commit -m first"


def is_repository(root: Path) -> bool:
    """Check whether a folder is in a git repository; git itself may be missing, or refuse that of another user."""
    return any((folder / ".git").exists() for folder in (root, *root.resolve().parents))


def names(root: Path, *words: str) -> list[str]:
    """Run a command of git that lists paths with `-z`; return them as Python spells them, so that each can be opened.

    A name that is not UTF-8 has surrogates, which `console.info` prints. Empty if git fails.
    """
    try:
        return [os.fsdecode(name) for name in _run(root, words, None).split(b"\0") if name]
    except GitError:
        return []


def prefix(root: Path) -> Path:
    """Return the path of a folder below the top of its git repository, such as `ml`; `.` at the top."""
    return Path(query(root, "rev-parse", "--show-prefix") or ".")


def top(root: Path) -> Path:
    """Return the top folder of the git repository that contains `root`; `root` itself outside of one."""
    return Path(query(root, "rev-parse", "--show-toplevel") or root)


def untracked(*paths: Path) -> str | None:
    """List which files of one folder git does not track, with the remedy; None if it tracks all.

    DVC runs a queued experiment in a copy of the files that git tracks. Files that do not exist are
    ignored, and all of them without git or outside a repository.
    """
    existing = [path for path in paths if path.is_file()]
    if not existing or shutil.which("git") is None:
        return None
    folder = existing[0].parent
    if query(folder, "rev-parse", "--is-inside-work-tree") != "true":
        return None
    known = names(folder, "ls-files", "-z", "--", *(path.name for path in existing))
    unknown = [str(path) for path in existing if path.name not in known]
    if not unknown:
        return None
    verb, them = ("is", "it") if len(unknown) == 1 else ("are", "them")
    return (
        f"{', '.join(unknown)} {verb} not tracked by git: a queued experiment (dvc exp run --queue) runs without {them}. "
        f"Type: git add {' '.join(unknown)}"
    )


def contents(root: Path, objects: Sequence[str]) -> dict[str, bytes]:
    """Read objects such as `HEAD:./params.yaml` in one call; those that do not exist are left out."""
    rest = _run(root, ["cat-file", "--batch"], None, "".join(f"{name}\n" for name in objects).encode())
    found = {}
    for name in objects:
        head, _, rest = rest.partition(b"\n")
        size = head.rpartition(b" ")[2]
        if size.isdigit():
            found[name], rest = rest[: int(size)], rest[int(size) + 1 :]
    return found


def objects(root: Path, paths: Sequence[str]) -> dict[str, str]:
    """Map paths that HEAD contains to git's ids of their content."""
    rows = names(root, "ls-tree", "-z", "HEAD", "--", *paths) if paths else []
    return {path: facts.split()[2] for facts, _, path in (row.partition("\t") for row in rows)}


def commit(root: Path, name: str) -> str:
    """Resolve the beginning of a commit's id, a branch or a tag to the full id; empty if it does not exist."""
    return query(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")


def holders(root: Path, number: str) -> list[str]:
    """List the branches, tags and DVC experiments that contain a commit, so that git keeps it."""
    refs = query(root, "for-each-ref", f"--contains={number}", "--format=%(refname)").splitlines()
    kinds = {"refs/heads/": "", "refs/remotes/": "", "refs/tags/": "tag "}
    pairs = [(start, ref) for start in kinds for ref in refs if ref.startswith(start)]
    named = [f"{kinds[start]}{ref.removeprefix(start)}" for start, ref in pairs]
    return named + [f"experiment {ref.split('/', 4)[4]}" for ref in refs if _is_experiment(ref)]


def experiments(root: Path) -> dict[str, str]:
    """Map the names of DVC's experiments to their commits, of the refs `refs/exps/<2>/<38>/<name>`."""
    lines = query(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines)
    return {ref.split("/", 4)[4]: number for ref, number in pairs if _is_experiment(ref)}


def _is_experiment(ref: str) -> bool:
    parts = ref.split("/", 4)
    return ref.startswith("refs/exps/") and len(parts) == 5 and len(parts[2]) == 2 and len(parts[3]) == 38


def edits(root: Path, commit: str, path: str) -> list[dict[str, Any]]:
    """List the files in a path that differ from a commit, each with `name` and the lines `added` and `removed`.

    Both are -1 in a binary file, and None in a new file that git does not track.
    """
    found: list[dict[str, Any]] = []
    numstat = query(root, "diff", "--numstat", "--no-renames", "--relative", "-z", commit, "--", path).split(
        "\0"
    )
    for added, removed, name in (line.split("\t", 2) for line in numstat if line):
        lines = [-1 if count == "-" else int(count) for count in (added, removed)]
        found.append({"name": name, "added": lines[0], "removed": lines[1]})
    untracked = query(root, "ls-files", "-z", "--others", "--exclude-standard", "--", path).split("\0")
    return found + [{"name": name, "added": None, "removed": None} for name in untracked if name]
