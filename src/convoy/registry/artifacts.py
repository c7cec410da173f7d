"""Download a registered version's files, or report that they are missing."""

import re
import shutil
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
"""Files stored beside model.onnx; models that an earlier Convoy logged have fewer."""

# MLflow wraps what artifact stores (a server's own, S3, Azure, Google, a disk) raise, so of many only words are left.
NO_FILE = re.compile(
    r"404 Client Error|410 Client Error|\(404\)|NoSuchKey|BlobNotFound|Not Found|No such (file|artifact)"
)


class ArtifactMissing(Exception):  # noqa: N818 (a state of the store that callers handle)
    """The store answers, but does not have the file, or has other bytes."""


@dataclass(frozen=True)
class ModelArtifacts:
    """The files that the store lists of a logged model; `owner` names its version or run in messages."""

    registry: Registry
    owner: str
    names: frozenset[str]
    _repository: Any

    @classmethod
    def at(cls, registry: Registry, uri: str, owner: str) -> "ModelArtifacts":
        """List the files at a URI; none if the model was deleted."""

        def read() -> tuple[Any, list[FileInfo]]:
            repository = get_artifact_repository(uri, tracking_uri=str(registry.client.tracking_uri))
            try:
                return repository, repository.list_artifacts()
            except Exception as error:  # artifact stores raise what their libraries do
                if not _is_missing(error):
                    raise
                return repository, []

        repository, entries = registry.call(f"list the files of {owner}", read)
        names = frozenset(entry.path for entry in entries if not entry.is_dir)
        return cls(registry, owner, names, repository)

    @classmethod
    def of(cls, registry: Registry, version: Version) -> "ModelArtifacts":
        """List the files of a version."""
        uri = registry.call(
            f"locate the files of {version}",
            lambda: registry.client.get_model_version_download_uri(version.model, version.number),
        )
        return cls.at(registry, uri, str(version))

    @property
    def has_model(self) -> bool:
        """Whether the store lists model.onnx."""
        return contract.VERIFIED in self.names

    def download(self, sha256: str, folder: Path) -> None:
        """Download model.onnx and the files beside it.

        Raises:
            ArtifactMissing: model.onnx is not in the store, or has other bytes.
            RegistryError: the store stopped answering.
        """
        if not self.has_model:
            raise ArtifactMissing(f"{contract.VERIFIED} of {self.owner} is no longer in the store")
        for name in (contract.VERIFIED, *BESIDE):
            if name in self.names:
                self.download_file(name, folder)
        if (actual := files.sha256(folder / contract.VERIFIED)) != sha256:
            raise ArtifactMissing(
                f"{contract.VERIFIED} of {self.owner} has other bytes in the store than were logged: sha256 "
                f"{actual[:12]} instead of {sha256[:12]}"
            )

    def download_file(self, name: str, folder: Path) -> Path:
        """Download one file without checking its content; one that is not in the store is an ArtifactMissing."""
        if name not in self.names:
            raise ArtifactMissing(f"{name} of {self.owner} is not in the store")
        try:
            self._repository.download_artifacts(name, str(folder))
        except Exception as error:  # artifact stores raise what their libraries do
            if _is_missing(error):
                raise ArtifactMissing(
                    f"{name} of {self.owner} is listed in the store, but missing: {store.explain(error)}"
                ) from error
            raise self.registry.failure(f"read {name} of {self.owner}", error) from error
        return folder / name


def fetch(registry: Registry, version: Version, folder: Path) -> Path:
    """Put a version's model.onnx and the files beside it into a folder, which is created if need be.

    Files of this workspace with the same sha256 are copied instead of downloaded.

    Raises:
        ArtifactMissing: the file is not in the store, or has other bytes.
        RegistryError: the store does not answer.
    """
    if not version.sha256:
        raise ArtifactMissing(
            f"{version} was not registered by Convoy: it has no sha256 to check its file against"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if is_verified(DEPLOY, version.sha256):
        copy(DEPLOY, folder)
    else:
        ModelArtifacts.of(registry, version).download(version.sha256, folder)
    return folder


def is_verified(folder: Path, sha256: str) -> bool:
    """Check that a folder has model.onnx with these bytes, and the verification of these bytes."""
    verification = folder / contract.VERIFICATION
    if not (folder / contract.VERIFIED).is_file() or not verification.is_file():
        return False
    try:
        recorded = files.read_json(verification)["model"]["sha256"]
    except (ValueError, LookupError, TypeError):  # cut or edited by hand
        return False
    return bool(recorded == sha256 and files.sha256(folder / contract.VERIFIED) == sha256)


def copy(source: Path, folder: Path) -> None:
    """Copy those of a model's files that exist."""
    for name in (contract.VERIFIED, *BESIDE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _is_missing(error: Exception) -> bool:
    """Distinguish a missing file or model from a store that does not answer or refuses."""
    if isinstance(error, MlflowException) and error.error_code == ABSENT:
        return True
    return isinstance(error, FileNotFoundError) or bool(NO_FILE.search(str(error)))
