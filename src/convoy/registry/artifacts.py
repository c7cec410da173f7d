"""Bring a registered version's files here, or say that they are gone."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from convoy.core import contract, files
from convoy.registry.client import ABSENT, Registry, Version
from convoy.tracking import store

DEPLOY = Path("build/deploy")
BESIDE = (contract.VERIFICATION, contract.MODEL_CARD, contract.IMAGES)
"""What is kept beside model.onnx; models that an earlier Convoy logged have less of it."""

NO_FILE = re.compile(
    r"404 Client Error|410 Client Error|\(404\)|NoSuchKey|BlobNotFound|Not Found|No such (file|artifact)"
)
"""How artifact stores (a server's own, S3, Azure, Google, a disk) say that they have no such file."""


class Gone(Exception):  # noqa: N818 (its message says what happened)
    """Tell that the store answers, but has not the file, or not these bytes."""


@dataclass(frozen=True)
class ModelArtifacts:
    """Hold the place of a model's files in the store.

    Attributes:
        registry: of the store.
        what: whose files they are, for messages.
        names: of the files that are there.
    """

    registry: Registry
    what: str
    names: frozenset[str]
    _repository: Any

    @classmethod
    def at(cls, registry: Registry, place: str, what: str) -> "ModelArtifacts":
        """Look at what lies at an address; nothing where the model was deleted.

        Raises:
            RegistryError: the store does not answer.
        """

        def look() -> tuple[Any, list[FileInfo]]:
            repository = get_artifact_repository(place, tracking_uri=str(registry.client.tracking_uri))
            try:
                return repository, repository.list_artifacts()
            except Exception as error:  # artifact stores raise what their libraries do
                if not _is_missing(error):
                    raise
                return repository, []

        repository, there = registry.ask(f"list the files of {what}", look)
        return cls(registry, what, frozenset(one.path for one in there if not one.is_dir), repository)

    @classmethod
    def of(cls, registry: Registry, version: Version) -> "ModelArtifacts":
        """Look at the files of a version."""
        place = registry.ask(
            f"say where {version} is kept",
            lambda: registry.client.get_model_version_download_uri(version.model, version.number),
        )
        return cls.at(registry, place, str(version))

    @property
    def has_model(self) -> bool:
        """Tell whether model.onnx is there."""
        return contract.VERIFIED in self.names

    def take(self, sha256: str, folder: Path) -> None:
        """Fetch model.onnx and what is kept beside it.

        Raises:
            Gone: the file is not there, or has other bytes.
            RegistryError: the store stopped answering.
        """
        if not self.has_model:
            raise Gone(f"{contract.VERIFIED} of {self.what} is not in the store any more")
        for name in (contract.VERIFIED, *BESIDE):
            if name in self.names:
                self.bring(name, folder)
        if (found := files.sha256(folder / contract.VERIFIED)) != sha256:
            raise Gone(
                f"{contract.VERIFIED} of {self.what} has other bytes in the store than were logged: sha256 {found[:12]} "
                f"instead of {sha256[:12]}"
            )

    def bring(self, name: str, folder: Path) -> Path:
        """Fetch one file, whatever it holds.

        Raises:
            Gone: it is not there.
            RegistryError: the store stopped answering.
        """
        if name not in self.names:
            raise Gone(f"{name} of {self.what} is not in the store")
        try:
            self._repository.download_artifacts(name, str(folder))
        except Exception as error:  # artifact stores raise what their libraries do
            if _is_missing(error):
                raise Gone(
                    f"{name} of {self.what} is listed in the store, but is not there: {store.explain(error)}"
                ) from error
            raise self.registry.failure(f"read {name} of {self.what}", error) from error
        return folder / name


def fetch(registry: Registry, version: Version, folder: Path) -> Path:
    """Put a version's model.onnx, and what is kept beside it, into a folder.

    The files of this workspace are taken where they have the same sha256.

    Args:
        registry: that has the version.
        version: to fetch.
        folder: is made where it does not exist.

    Returns:
        The folder.

    Raises:
        Gone: the file is not in the store, or has other bytes.
        RegistryError: the store does not answer.
    """
    if not version.sha256:
        raise Gone(f"{version} was not registered by Convoy: it has no sha256 to check its file by")
    folder.mkdir(parents=True, exist_ok=True)
    if holds(DEPLOY, version.sha256):
        copy(DEPLOY, folder)
    else:
        ModelArtifacts.of(registry, version).take(version.sha256, folder)
    return folder


def has_file(registry: Registry, version: Version) -> bool:
    """Tell whether the store lists a version's model.onnx.

    Raises:
        RegistryError: the store does not answer.
    """
    return ModelArtifacts.of(registry, version).has_model


def holds(folder: Path, sha256: str) -> bool:
    """Tell whether a folder has the proven file with these bytes, and its proof."""
    proof = folder / contract.VERIFICATION
    if not (folder / contract.VERIFIED).is_file() or not proof.is_file():
        return False
    try:
        said = files.read_json(proof)["model"]["sha256"]
    except (ValueError, LookupError, TypeError):  # a proof that was cut or edited proves nothing
        return False
    return bool(said == sha256 and files.sha256(folder / contract.VERIFIED) == sha256)


def copy(source: Path, folder: Path, names: Iterable[str] = (contract.VERIFIED, *BESIDE)) -> None:
    """Copy a model's files, those that there are."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _is_missing(error: Exception) -> bool:
    """Tell a file or a model that is not there from a store that does not answer or refuses.

    MLflow wraps what its artifact stores raise, so only the words are left of many.
    """
    if isinstance(error, MlflowException) and error.error_code == ABSENT:
        return True
    return isinstance(error, FileNotFoundError) or bool(NO_FILE.search(str(error)))
