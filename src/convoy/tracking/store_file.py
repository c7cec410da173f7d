"""The database file of a local store: is it readable, writable, of this MLflow, and are its artifacts where it says?

MLflow retries an unusable file for a minute, with a traceback, and follows absolute paths into folders that a moved
repository has left. So the file is checked by SQLite alone, before MLflow opens it.
"""

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from convoy.core import stage
from convoy.core.errors import ConvoyError, RequestError, listed
from convoy.tracking import settings

MIGRATIONS = Path("store/db_migrations/versions")
"""Folder of MLflow with one file per change of its tables, each naming the one before."""

ARTIFACTS = "mlartifacts"
"""Folder of a repository with the artifacts of the local store."""

PATHS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's tables that hold absolute paths."""

LOCKED_S = 10.0  # longest wait for another process that writes to the file


class StoreFileError(ConvoyError):
    """Report a database file that cannot be used as it is, with the remedy."""


def path_of(address: str) -> Path | None:
    """Return the file of a local store; None for a server."""
    return Path(address.removeprefix(settings.SQLITE)) if address.startswith(settings.SQLITE) else None


def check(address: str, *, write: bool = False) -> None:
    """Refuse a file that MLflow cannot use, or whose artifacts were left elsewhere; servers and absent files pass.

    MLflow itself would upgrade some older files when it opens them, before anybody has made a copy.

    Args:
        address: of the store.
        write: whether the file must take entries, too.

    Raises:
        StoreFileError: it is locked, read-only, damaged or moved.
        RequestError: another version of MLflow wrote it; with the commands that copy the file and upgrade it.
    """
    path = path_of(address)
    if path is None:
        return
    if not path.exists():
        if write and not os.access(path.parent, os.W_OK):  # MLflow would try again for a minute
            raise StoreFileError(
                f"{path} cannot be created: its folder does not exist, or this user may not write there. Type: ls -ld "
                f"{path.parent}, or set MLFLOW_TRACKING_URI to another store."
            )
        return
    with _opened(path, "rw" if write else "ro") as database:
        if write:
            database.execute("BEGIN IMMEDIATE")
            # A read-only file refuses the write, not the transaction.
            database.execute("CREATE TABLE convoy_probe (x)")
            database.execute("ROLLBACK")
        _check_revision(path, address, database)
        if left := _left_folders(path, database):
            raise StoreFileError(
                f"{path} records artifacts in {listed([str(folder) for folder in left], 2)}, but the repository is in "
                f"{path.parent}: it was moved or copied. Type: convoy sync --moved"
            )


def fault(error: BaseException) -> StoreFileError | None:
    """Find an error of SQLite behind one of MLflow, and describe it with its remedy; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "orig", seen)  # SQLAlchemy's name for the error that it wraps
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) is not None:
            return _describe(cause, path_of(settings.uri()))
        seen = seen.__cause__ or seen.__context__
    return None


def _describe(error: sqlite3.Error, path: Path | None) -> StoreFileError | None:
    """Describe a fault of a file, by SQLite's primary code; None for an error of a query."""
    file = path or "the store's database"
    folder = path.parent if path else "its folder"
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # errors of the module itself have none
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return StoreFileError(
            f"{file} was moved or replaced while it was in use. Type the command again, in a moved repository after: "
            "convoy sync --moved"
        )
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            text = (
                f"{file} is locked: another program has been writing to it, such as a database browser or a backup. Close "
                "it, then type the command again."
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            text = (
                f"{file} is read-only for this user. SQLite writes to the file and its folder; type: "
                f"chmod u+w {file} {folder}, or set MLFLOW_TRACKING_URI to another store."
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_AUTH:
            text = f"{file} cannot be opened. May this user read and write it and its folder? Type: ls -ld {folder} {file}"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            kind = "not a database" if code == sqlite3.SQLITE_NOTADB else "damaged"
            text = (
                f"{file} is {kind} ({error}). Restore a copy of it, or move it away: mv {file} {file}.damaged; the next "
                "`dvc repro` creates a new one. Runs in outbox/ and files in mlartifacts/ are kept."
            )
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            text = f"{file} takes no more entries ({error}). Free disk space: df -h {folder}"
        case _:
            return None
    return StoreFileError(text)


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """Open a file that exists.

    Raises:
        StoreFileError: it cannot be used.
    """
    if path.is_dir():
        raise StoreFileError(
            f"{path} is a folder. Name the file of a store in it: sqlite:///{path / 'mlflow.db'}"
        )
    try:
        with closing(
            sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}", LOCKED_S, uri=True, isolation_level=None
            )
        ) as database:
            yield database
    except sqlite3.Error as error:
        raise _describe(error, path) or StoreFileError(f"{path}: {error}") from error


def _rows(database: sqlite3.Connection, query: str) -> list[str]:
    """Read a column of text; empty if MLflow has not made the table yet."""
    try:
        return [str(row[0]) for row in database.execute(query) if row[0]]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            return []
        raise


def _check_revision(path: Path, address: str, database: sqlite3.Connection) -> None:
    """Refuse tables of another MLflow version."""
    revision = next(iter(_rows(database, "SELECT version_num FROM alembic_version")), "")
    known, latest = _known_revisions()
    if revision in ("", latest):
        return
    installed = f"MLflow {version('mlflow')}"
    if revision not in known:
        raise RequestError(
            f"{path} was written by a newer MLflow than the installed one ({installed} has no revision "
            f"{revision}). Install the version that requirements.txt names: make repro"
        )
    raise RequestError(
        f"{path} was written by an older MLflow: its tables have revision {revision}, {installed} needs {latest}.\n"
        "Copy it, then upgrade it, while no `dvc repro` runs:\n"
        f"  cp {path} {path}.before\n"
        f"  mlflow db upgrade {address}"
    )


def _known_revisions() -> tuple[set[str], str]:
    """List the revisions of the installed MLflow, and the latest: the only one without a successor."""
    package = find_spec("mlflow")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("MLflow is not installed")
    before: dict[str, str] = {}
    for path in (Path(package.submodule_search_locations[0]) / MIGRATIONS).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if name := re.search(r"^revision = ['\"](\w+)['\"]", text, re.MULTILINE):
            predecessor = re.search(r"^down_revision = (.*)$", text, re.MULTILINE)
            before[name[1]] = predecessor[1] if predecessor else ""
    [latest] = set(before) - set(re.findall(r"\w+", " ".join(before.values())))
    return set(before), latest


def _left_folders(path: Path, database: sqlite3.Connection) -> list[Path]:
    """List the folders of artifacts in which a repository's own store was before; empty for any other store."""
    home = stage.repository()
    if path.resolve().parent != home:
        return []
    left: dict[Path, None] = {}
    for location in _rows(database, "SELECT DISTINCT artifact_location FROM experiments"):
        parts = urlsplit(location)
        place = Path(url2pathname(parts.path))
        for folder in (place, *place.parents):
            # A link from the old place to the new one is as good.
            if parts.scheme == "file" and folder.name == ARTIFACTS and folder.resolve() != home / ARTIFACTS:
                left[folder] = None
    return list(left)


def relocate(address: str) -> list[str]:
    """Replace the paths that a moved or copied repository's store has of its old place; the file is copied first.

    Artifacts that are still in the old place, and only there, are copied: a run that continued after the move wrote
    them. Returns what was done, one line each.

    Raises:
        RequestError: the store is on a server.
        StoreFileError: the file takes no entries.
    """
    path = path_of(address)
    if path is None or not path.exists():
        raise RequestError(
            "--moved repairs the paths in mlflow.db of this repository, which does not exist or is not in use. "
            "Leave it out, or unset MLFLOW_TRACKING_URI."
        )
    done = []
    new = (stage.repository() / ARTIFACTS).as_uri()
    with _opened(path, "rw") as database:
        left = _left_folders(path, database)
        if left:
            before = path.with_name(f"{path.name}.before")
            with closing(sqlite3.connect(before)) as copy:
                database.backup(copy)
            done.append(f"copied {path.name} to {before.name}")
        for folder in left:
            old = folder.as_uri()
            count = sum(_copy_missing(location, old) for location in _places(database, old))
            database.execute("BEGIN IMMEDIATE")
            for table, columns in PATHS.items():
                for column in columns:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 (own words)
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
            database.execute("COMMIT")
            copied = f", from which {count} folders of artifacts were copied" if count else ""
            done.append(f"artifacts: {folder} → {stage.repository() / ARTIFACTS}{copied}")
    return done


def _places(database: sqlite3.Connection, old: str) -> list[str]:
    """List the locations of runs and models below an old folder."""
    rows = [
        *_rows(database, "SELECT artifact_uri FROM runs"),
        *_rows(database, "SELECT artifact_location FROM logged_models"),
    ]
    return [row for row in rows if row.startswith(f"{old}/")]


def _copy_missing(location: str, old: str) -> bool:
    """Copy a run's or model's artifacts that are in the old folder only; return whether there were any."""
    source = Path(url2pathname(urlsplit(location).path))
    target = stage.repository() / ARTIFACTS / url2pathname(location[len(old) + 1 :])
    if target.exists() or not source.is_dir():
        return False
    shutil.copytree(source, target)
    return True
