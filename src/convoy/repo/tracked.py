"""Say which files a queued experiment would run without."""

import shutil
from pathlib import Path

from convoy.repo import identity


def untracked(*paths: Path) -> str | None:
    """Phrase which files of one folder git does not track, and what to type; None where it tracks all.

    DVC runs a queued experiment in a copy of what git tracks. Files that do not exist are passed over, and
    so are all where there is no git.
    """
    files = [path for path in paths if path.is_file()]
    if not files or shutil.which("git") is None:
        return None
    folder = ("-C", str(files[0].parent))
    if identity.git(*folder, "rev-parse", "--is-inside-work-tree") != "true":
        return None
    known = identity.git(*folder, "ls-files", "-z", "--", *(path.name for path in files)).split("\0")
    unknown = [str(path) for path in files if path.name not in known]
    if not unknown:
        return None
    verb, them = ("is", "it") if len(unknown) == 1 else ("are", "them")
    return (
        f"{', '.join(unknown)} {verb} not tracked by git: a queued experiment (dvc exp run --queue) runs without {them}. "
        f"Type: git add {' '.join(unknown)}"
    )
