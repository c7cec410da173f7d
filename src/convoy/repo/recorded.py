"""Find what dvc.lock recorded last of the dataset, in DVC's cache: DVC removes a stage's outputs before it runs the stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.core import pipeline, yaml
from convoy.core.errors import RequestError
from convoy.repo import git
from convoy.repo.dvc import Cache

DATA = Path("data")
DATASET = Path("build/dataset")
IMPORT = "data.dvc"

VERSIONS = 20
"""Commits of data.dvc among which the one of the recorded data is looked for."""


def dataset(root: Path = Path()) -> dict[str, Path]:
    """Locate the files of the dataset that dvc.lock records, by name; empty if it records none or DVC's cache lacks it.

    A dataset that was made of another source than data.dvc now imports is no earlier version of the same data: empty too.
    """
    md5 = pipeline.recorded("outs", DATASET)
    if not md5 or _is_of_other_source(root, pipeline.recorded("deps", DATA)):
        return {}
    cache = Cache.of(root)
    found = {name: cache.path(member) for name, member in cache.members(md5).items()}
    return found if all(path.exists() for path in found.values()) else {}


def _is_of_other_source(root: Path, md5: str) -> bool:
    """Check whether the data with this md5 are known to come from another source than data.dvc names now."""
    now = _content((root / IMPORT).read_text(encoding="utf-8")) if (root / IMPORT).is_file() else {}
    if not now or _md5(now) == md5:
        return False
    commits = git.query(root, "log", f"-{VERSIONS}", "--format=%H", "--", IMPORT).split()
    for commit in commits:
        then = _content(git.query(root, "show", f"{commit}:./{IMPORT}"))
        if _md5(then) == md5:
            return _source(then) != _source(now)
    return False


def _content(text: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(text)
    except RequestError:
        return {}
    return content if isinstance(content, Mapping) else {}


def _md5(content: Mapping[str, Any]) -> str:
    return str((content.get("outs") or [{}])[0].get("md5", ""))


def _source(content: Mapping[str, Any]) -> str:
    return str((content.get("deps") or [{}])[0].get("path", ""))
