"""Copy the artifact files of one run or model to another store, and compare them by sha256."""

import re
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

TRANSLATED = "MLmodel"
"""The only artifact that names the run and the model it belongs to, by MLflow's ids."""

ORIGIN = "convoy.migrated_from"
"""Tag of everything that was copied: its id in the source."""

ID = re.compile(r"\b(?:m-)?[0-9a-f]{32}\b")
"""MLflow's form of the id of a run, or of a model (`m-…`)."""


class Ids(dict[str, str]):
    """Map ids of the source to those of the target; addresses of artifacts and (model, version) likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: dict[str, str] = {}
        self.versions: dict[tuple[str, str], str] = {}

    def translate(self, text: str) -> str:
        """Replace every known id in a text, such as the tag `mlflow.parentRunId`."""
        return ID.sub(lambda match: self.get(match[0], match[0]), text)

    def address(self, uri: str) -> str:
        """Return the address in the target of artifacts of the source, whose paths are absolute."""
        for old, new in self.addresses.items():
            if uri == old or uri.startswith(f"{old}/"):
                return new + uri.removeprefix(old)
        return self.translate(uri)


@dataclass(frozen=True)
class Tree:
    """Locate the artifacts of one run or model."""

    uri: str
    store: str
    """Address of the tracking store, which serves `mlflow-artifacts:` addresses."""

    moved: Path | None = None
    """Folder to read instead of the one in `uri`; None if that is right."""

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield a folder of this machine with the files, downloaded if they are elsewhere."""
        if (folder := self.moved or local(self.uri)) is not None:
            yield folder
            return
        with tempfile.TemporaryDirectory() as scratch:
            repository = self.repository()
            if repository.list_artifacts():
                repository.download_artifacts("", dst_path=scratch)  # type: ignore[no-untyped-call] # MLflow has no types here
            yield Path(scratch)

    def repository(self) -> ArtifactRepository:
        """Open MLflow's access to the artifacts."""
        return get_artifact_repository(self.uri, tracking_uri=self.store)

    def sizes(self) -> dict[str, int]:
        """List the files of the store with their sizes in bytes."""
        repository = self.repository()
        sizes: dict[str, int] = {}
        folders: list[str | None] = [None]
        while folders:
            for entry in repository.list_artifacts(folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    sizes[entry.path] = entry.file_size or 0
        return sizes


def local(uri: str) -> Path | None:
    """Turn the address of artifacts into a folder of this machine; None if they are elsewhere."""
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def send(source: Tree, target: Tree, ids: Ids) -> int:
    """Upload the files that the target lacks or has in another size; return how many."""
    with source.on_disk() as folder:
        names = _names(folder)
        known = target.sizes() if names else {}
        lacking = [name for name in names if known.get(name) != (folder / name).stat().st_size]
        _upload(folder, lacking, target, ids)
        return len(lacking)


def check(source: Tree, target: Tree, ids: Ids) -> tuple[int, int, list[str]]:
    """Download the target's files and compare sha256; a file that differs is sent once more, then compared.

    Returns:
        Number and bytes of the source's files, and those that the target lacks or has with other bytes.
    """
    with source.on_disk() as folder:
        names = _names(folder)
        wrong = _wrong(folder, names, target, ids)
        if wrong:
            _upload(folder, wrong, target, ids)
            wrong = _wrong(folder, wrong, target, ids)
        return len(names), sum((folder / name).stat().st_size for name in names), wrong


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _upload(folder: Path, names: list[str], target: Tree, ids: Ids) -> None:
    repository = target.repository()
    for name in names:
        parent = PurePosixPath(name).parent.as_posix()
        with _translated(folder / name, ids) as path:
            repository.log_artifact(str(path), None if parent == "." else parent)  # type: ignore[no-untyped-call] # as above


def _wrong(folder: Path, names: list[str], target: Tree, ids: Ids) -> list[str]:
    """List the files that the target lacks or has with other bytes."""
    if not names:
        return []
    with target.on_disk() as copy:
        return [name for name in names if not _equal(folder / name, copy / name, ids)]


def _equal(source: Path, copy: Path, ids: Ids) -> bool:
    with _translated(source, ids) as path:
        return copy.is_file() and files.sha256(path) == files.sha256(copy)


@contextmanager
def _translated(path: Path, ids: Ids) -> Iterator[Path]:
    """Yield the file for the target: ids in an `MLmodel` are those of the target."""
    if path.name != TRANSLATED:
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        translated = Path(scratch) / path.name
        translated.write_text(ids.translate(path.read_text(encoding="utf-8")), encoding="utf-8")
        yield translated
