"""Carry the artifact files of one run or model to another store, and compare them by sha256."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from convoy.core import files
from convoy.tracking.migration.ids import Ids

TRANSLATED = "MLmodel"
"""The one artifact that names the run and the model it belongs to, by MLflow's ids."""


@dataclass(frozen=True)
class Tree:
    """Locate the artifacts of one run or model.

    Attributes:
        uri: as the store names it.
        store: address of the tracking store, which serves `mlflow-artifacts:` addresses.
        moved: folder to read instead of the one in `uri`; None where that one is right.
    """

    uri: str
    store: str
    moved: Path | None = None

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Give a folder of this machine that holds the files, fetched where they are elsewhere."""
        if (here := self.moved or local(self.uri)) is not None:
            yield here
            return
        with tempfile.TemporaryDirectory() as scratch:
            repository = self.repository()
            if repository.list_artifacts():
                repository.download_artifacts("", dst_path=scratch)  # type: ignore[no-untyped-call] # MLflow has no types here
            yield Path(scratch)

    def repository(self) -> ArtifactRepository:
        """Open what MLflow reads and writes artifacts by."""
        return get_artifact_repository(self.uri, tracking_uri=self.store)

    def sizes(self) -> dict[str, int]:
        """List the files that the store has, with their bytes."""
        repository = self.repository()
        found: dict[str, int] = {}
        folders: list[str | None] = [None]
        while folders:
            for entry in repository.list_artifacts(folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    found[entry.path] = entry.file_size or 0
        return found


@dataclass(frozen=True)
class Difference:
    """Compare the files of a source with those of its target.

    Attributes:
        total: files of the source.
        size: their bytes.
        missing: those that the target lacks or has otherwise.
    """

    total: int
    size: int
    missing: tuple[str, ...]


def local(uri: str) -> Path | None:
    """Turn the address of artifacts into a folder of this machine; None where they are elsewhere."""
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def send(source: Tree, target: Tree, ids: Ids) -> int:
    """Upload what the target lacks or has in another size.

    Returns:
        How many files were sent.
    """
    with source.on_disk() as folder:
        names = _names(folder)
        known = target.sizes() if names else {}
        lacking = [name for name in names if known.get(name) != (folder / name).stat().st_size]
        _upload(folder, lacking, target, ids)
        return len(lacking)


def check(source: Tree, target: Tree, ids: Ids) -> Difference:
    """Fetch what the target has and compare sha256; a file that differs is sent once more, then compared."""
    with source.on_disk() as folder:
        names = _names(folder)
        size = sum((folder / name).stat().st_size for name in names)
        wrong = _wrong(folder, names, target, ids)
        if wrong:
            _upload(folder, wrong, target, ids)
            wrong = _wrong(folder, wrong, target, ids)
        return Difference(len(names), size, tuple(wrong))


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _upload(folder: Path, names: list[str], target: Tree, ids: Ids) -> None:
    repository = target.repository()
    for name in names:
        parent = PurePosixPath(name).parent.as_posix()
        with _translated(folder / name, ids) as path:
            repository.log_artifact(str(path), None if parent == "." else parent)  # type: ignore[no-untyped-call] # as above


def _wrong(folder: Path, names: list[str], target: Tree, ids: Ids) -> list[str]:
    """Name the files that the target does not hold with the very bytes."""
    if not names:
        return []
    wrong = []
    with target.on_disk() as there:
        for name in names:
            with _translated(folder / name, ids) as path:
                if not (there / name).is_file() or files.sha256(path) != files.sha256(there / name):
                    wrong.append(name)
    return wrong


@contextmanager
def _translated(path: Path, ids: Ids) -> Iterator[Path]:
    """Give the file as the target shall have it: ids in an `MLmodel` are those of the target."""
    if path.name != TRANSLATED:
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        translated = Path(scratch) / path.name
        translated.write_text(ids.translate(path.read_text(encoding="utf-8")), encoding="utf-8")
        yield translated
