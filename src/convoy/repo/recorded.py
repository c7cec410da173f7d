"""Find what dvc.lock recorded last of the dataset, in DVC's cache: DVC removes a stage's outputs before it runs the stage."""

from contextlib import suppress
from pathlib import Path

from convoy.core import pipeline
from convoy.core.errors import RequestError
from convoy.core.pipeline import DATA_IMPORT
from convoy.repo import git
from convoy.repo.dvc import Cache

DATA = Path("data")
DATASET = Path("build/dataset")

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
    if not (root / DATA_IMPORT).is_file():
        return False
    now = pipeline.data_import(root)
    if now.md5 == md5:
        return False
    for commit in git.query(root, "log", f"-{VERSIONS}", "--format=%H", "--", str(DATA_IMPORT)).split():
        with suppress(RequestError):
            then = pipeline.parse_import(git.query(root, "show", f"{commit}:./{DATA_IMPORT}"))
            if then.md5 == md5:
                return then.address != now.address
    return False
