"""Tell whether a database file was written by the MLflow that is installed. Nothing here imports MLflow."""

import re
import sqlite3
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from convoy.core.errors import RequestError

MIGRATIONS = Path("store/db_migrations/versions")
"""Where MLflow keeps one file per change of its tables, each naming the one before."""

SQLITE = "sqlite:///"


def check(uri: str) -> None:
    """Refuse a database file whose tables are those of another MLflow; any other store passes.

    MLflow itself would change some older files at the first look, before anybody has made a copy.

    Raises:
        RequestError: with the command that copies the file and the one that brings it up to date.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.exists():
        return
    found = _written(path)
    known, latest = _revisions()
    if found in ("", latest):
        return
    installed = f"MLflow {version('mlflow')}"
    if found not in known:
        raise RequestError(
            f"{path} was written by a newer MLflow than the installed one ({installed} does not know its "
            f"revision {found}). Install that one, or what requirements.txt names: make repro"
        )
    raise RequestError(
        f"{path} was written by an older MLflow: its tables are of revision {found}, {installed} needs {latest}.\n"
        "Make a copy, then bring it up to date (no `dvc repro` may run meanwhile):\n"
        f"  cp {path} {path}.before\n"
        f"  mlflow db upgrade {uri}"
    )


def _written(path: Path) -> str:
    """Read which revision of MLflow's tables a file has; empty where it has none yet."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return ""
        except sqlite3.DatabaseError as error:
            raise RequestError(
                f"{path} is no database ({error}). Move it away; the next `dvc repro` begins a new one."
            ) from error
    return str(rows[0][0]) if rows else ""


def _revisions() -> tuple[set[str], str]:
    """List the revisions that the installed MLflow knows, and the latest: the one that none follows."""
    package = find_spec("mlflow")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("MLflow is not installed")
    before: dict[str, str] = {}
    for path in (Path(package.submodule_search_locations[0]) / MIGRATIONS).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if name := re.search(r"^revision = ['\"](\w+)['\"]", text, re.MULTILINE):
            follows = re.search(r"^down_revision = (.*)$", text, re.MULTILINE)
            before[name[1]] = follows[1] if follows else ""
    followed = set(re.findall(r"\w+", " ".join(before.values())))
    [latest] = set(before) - followed
    return set(before), latest
