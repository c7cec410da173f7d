"""Read and change the registered model in MLflow: its versions with their files, and the aliases `candidate` and `champion`."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from mlflow.entities import FileInfo
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from convoy.core import contract, files, params
from convoy.core.contract import KIND, ONNX_SHA256, RUN_ID
from convoy.core.errors import ConvoyError, RequestError, without_credentials
from convoy.tracking import settings, store, store_file

CANDIDATE = "candidate"
CHAMPION = "champion"

ABSENT = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"

TAG_CHARACTERS = 5000
"""Longest value of a tag, and longest description, that every store of MLflow accepts; sqlite accepts more."""

DESCRIPTION = (
    "Image classifiers that Convoy exported and verified. `candidate` is the version registered last, `champion` the "
    "version that serves; only `convoy promote` and `convoy rollback` move it."
)

DEPLOY = Path("build/deploy")

# MLflow wraps what artifact stores (a server's own, S3, Azure, Google, a disk) and databases raise: of many errors only
# words are left.
UNAUTHENTICATED = re.compile(r"401 Client Error|\(401\)")
FORBIDDEN = re.compile(r"403 Client Error|\(403\)|AccessDenied|Permission denied|readonly database")
NO_FILE = re.compile(
    r"404 Client Error|410 Client Error|\(404\)|NoSuchKey|BlobNotFound|Not Found|No such (file|artifact)"
)

LOG_IN = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."

P = ParamSpec("P")
T = TypeVar("T")


class RegistryError(ConvoyError):
    """The registry does not answer, refuses a request, or contradicts itself."""


class ArtifactMissing(Exception):  # noqa: N818 (a state of the store that callers handle)
    """The store answers, but does not have the file, or has other bytes."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model.

    Attributes:
        sha256: of its model.onnx; empty if Convoy did not register it.
        run_id: Convoy's id of the run that made it.
        created_ms: milliseconds since 1970, UTC.
    """

    model: str
    number: str
    sha256: str
    run_id: str
    mlflow_run_id: str
    created_ms: int
    tags: dict[str, str]

    def __str__(self) -> str:
        """Format as in MLflow's URIs: `convoy/7`."""
        return f"{self.model}/{self.number}"


@dataclass(frozen=True)
class Registry:
    """The registered model in a tracking store; every error names what to do."""

    client: MlflowClient
    model: str

    @classmethod
    def open(cls) -> "Registry":
        """Open the store of this repository and the model that params.yaml names, without contacting it.

        Raises:
            RequestError: another version of MLflow wrote the store, or params.yaml names no model.
        """
        model = params.section("tracking", settings.TrackingParams).registered_model
        store_file.check(store.uri())
        return cls(store.connect(), model)

    @property
    def address(self) -> str:
        """Address of the store, without a password."""
        return without_credentials(str(self.client.tracking_uri))

    def registered(self) -> RegisteredModel | None:
        """Read the registered model with its tags and aliases; None if it does not exist."""
        action = f"read the registered model {self.model}"
        return self._unless(ABSENT, action, self.client.get_registered_model, self.model)

    def create(self) -> None:
        """Create the registered model if it does not exist."""
        if not self.registered():
            self._unless(
                EXISTS,  # another process was faster
                f"create the registered model {self.model}",
                self.client.create_registered_model,
                self.model,
                tags={KIND: "image classifier"},
                description=DESCRIPTION,
            )

    def aliases(self) -> dict[str, str]:
        """Map aliases to numbers of versions, which may have been deleted."""
        model = self.registered()
        return {alias: str(number) for alias, number in model.aliases.items()} if model else {}

    def alias(self, alias: str) -> Version | None:
        """Look up the version that an alias points to; None if there is no such model or alias.

        Raises:
            RegistryError: it points to a version that does not exist.
        """
        number = self.aliases().get(alias)
        if number is None:
            return None
        if version := self._version(number):
            return version
        remedy = (
            "Point it to an existing version: convoy rollback --to VERSION"
            if alias == CHAMPION
            else "Registering the model of this workspace moves it: convoy register"
        )
        raise RegistryError(
            f"the alias {alias} of {self.model} at {self.address} points to version {number}, which does not exist; "
            f"versions: {self._numbers()}. {remedy}"
        )

    def version(self, number: str) -> Version:
        """Look up a version.

        Raises:
            RequestError: it does not exist; names those that do.
        """
        version = self._version(number) if number.isdecimal() else None
        if version is None:
            raise RequestError(f"{self.model} has no version {number}; versions: {self._numbers()}")
        return version

    def versions(self) -> list[Version]:
        """List the versions, oldest first."""
        return self._search(f"name = '{self.model}'")

    def by_sha256(self, sha256: str) -> list[Version]:
        """List the versions with these bytes, oldest first."""
        return self._search(f"name = '{self.model}' and tags.`{ONNX_SHA256}` = '{sha256}'")

    def point(self, alias: str, version: Version) -> None:
        """Point an alias to a version."""
        action, write = f"move the alias {alias} to {version}", self.client.set_registered_model_alias
        self.call(action, write, self.model, alias, version.number)

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        write = self.client.set_model_version_tag
        for key, text in tags.items():
            self.call(f"tag {version}", write, self.model, version.number, key, text)

    def add(self, model_id: str, mlflow_run_id: str, tags: Mapping[str, str], description: str) -> Version:
        """Add a logged model as a version."""
        with store.as_default(str(self.client.tracking_uri)):
            created = self.call(
                f"add a version to {self.model}",
                self.client.create_model_version,
                self.model,
                f"models:/{model_id}",
                run_id=mlflow_run_id,
                tags=dict(tags),
                description=description,
                model_id=model_id,
            )
        return _as_version(created)

    def delete(self, version: Version) -> None:
        """Delete a version."""
        self.call(f"delete {version}", self.client.delete_model_version, version.model, version.number)

    def call(self, action: str, request: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Send a request to the store; `action` completes messages such as `may not …`.

        Raises:
            RegistryError: the store does not answer or refuses, with what to do.
        """
        try:
            return request(*args, **named)
        except Exception as error:  # stores raise what their libraries do
            raise self.failure(action, error) from error

    def failure(self, action: str, error: Exception) -> RegistryError:
        """Describe an error: not logged in, no permission, refused, or no answer."""
        uri = str(self.client.tracking_uri)
        reason, user = store.explain(error), account(uri)
        code = error.error_code if isinstance(error, MlflowException) else ""
        if code == "UNAUTHENTICATED" or UNAUTHENTICATED.search(reason):
            return RegistryError(
                f"{self.address} rejects {user}, so Convoy could not {action}: {reason}\n{LOG_IN}"
            )
        forbidden = code == "PERMISSION_DENIED" or FORBIDDEN.search(reason)
        if forbidden and uri.startswith(settings.SQLITE):
            return RegistryError(
                f"this user may not {action} in {self.address}: {reason}\n"
                "The owner of the file has to grant write access to it and its folder."
            )
        if forbidden:
            return RegistryError(
                f"{user} may not {action} at {self.address}: {reason}\n"
                f"Request the permission EDIT on the registered model `{self.model}` and on the experiments of this "
                f"project from the server's administrator, or use another account. {LOG_IN}"
            )
        if store_file.fault(error) or isinstance(error, store.LocalArtifactsError):
            return RegistryError(f"Convoy could not {action}: {reason}")
        if isinstance(error, MlflowException) and store.refused(error):
            return RegistryError(f"{self.address} refused to {action}: {reason}")
        return RegistryError(
            f"{self.address} did not answer the request to {action}: {reason}\n"
            "Start its server, or set MLFLOW_TRACKING_URI to the store that has the models; then try again."
        )

    def _search(self, query: str) -> list[Version]:
        pages = store.all_pages(lambda token: self.client.search_model_versions(query, page_token=token))
        versions = self.call(f"list the versions of {self.model}", lambda: list(map(_as_version, pages)))
        return sorted(versions, key=lambda version: int(version.number))

    def _version(self, number: str) -> Version | None:
        read = self.client.get_model_version
        version = self._unless(ABSENT, f"read {self.model}/{number}", read, self.model, number)
        return _as_version(version) if version else None

    def _unless(
        self, code: str, action: str, request: Callable[P, T], *args: P.args, **named: P.kwargs
    ) -> T | None:
        """Send a request; None if it fails with this code of MLflow's."""

        def attempt() -> T | None:
            try:
                return request(*args, **named)
            except MlflowException as error:
                if error.error_code != code:
                    raise
                return None

        return self.call(action, attempt)

    def _numbers(self) -> str:
        return ", ".join(version.number for version in self.versions()) or "none"


def account(uri: str) -> str:
    """Describe the account that requests are sent with."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME") or urlsplit(uri).username:
        return f"the account `{name}`"
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return "the account of MLFLOW_TRACKING_TOKEN"
    return "requests without an account (MLFLOW_TRACKING_USERNAME is not set)"


def refuse_inside_experiment(command: str) -> None:
    """Refuse to change aliases from a DVC stage or experiment, whose models are not meant to serve.

    Raises:
        RequestError: DVC runs this process.
    """
    inside = [name for name in ("DVC_STAGE", "DVC_EXP_NAME") if os.environ.get(name)]
    if inside:
        raise RequestError(
            f"`convoy {command}` does not work inside a DVC stage or experiment ({inside[0]} is "
            f"{os.environ[inside[0]]}): experiments and sweeps never change the aliases. Apply the experiment first "
            f"(dvc exp apply NAME), then run `convoy {command}` in the repository."
        )


def _as_version(version: Any) -> Version:  # noqa: ANN401 (MLflow's client declares less than it gives)
    tags = dict(version.tags)
    return Version(
        model=version.name,
        number=str(version.version),
        sha256=tags.get(ONNX_SHA256, ""),
        run_id=tags.get(RUN_ID, ""),
        mlflow_run_id=version.run_id or "",
        created_ms=int(version.creation_timestamp or 0),
        tags=tags,
    )


@dataclass(frozen=True)
class ModelArtifacts:
    """The files and folders that the store lists of a logged model; `owner` names its version or run in messages."""

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
        names = frozenset(entry.path for entry in entries)
        return cls(registry, owner, names, repository)

    @classmethod
    def of(cls, registry: Registry, version: Version) -> "ModelArtifacts":
        """List the files of a version."""
        locate = registry.client.get_model_version_download_uri
        uri = registry.call(f"locate the files of {version}", locate, version.model, version.number)
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
        for name in self.names & {contract.VERIFIED, *contract.BESIDE}:
            self.download_file(name, folder)
        if (actual := files.sha256(folder / contract.VERIFIED)) != sha256:
            raise ArtifactMissing(
                f"{contract.VERIFIED} of {self.owner} has other bytes in the store than were logged: sha256 "
                f"{actual[:12]} instead of {sha256[:12]}"
            )

    def download_file(self, name: str, folder: Path) -> Path:
        """Download a file or folder without checking its content; what is not in the store is an ArtifactMissing."""
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


def fetch(registry: Registry, version: Version, folder: Path) -> None:
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
        copy_files(DEPLOY, folder)
    else:
        ModelArtifacts.of(registry, version).download(version.sha256, folder)


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


def copy_files(source: Path, folder: Path) -> None:
    """Copy those of a model's files and folders that exist."""
    for name in (contract.VERIFIED, *contract.BESIDE):
        if (source / name).exists():
            files.copy(source / name, folder / name)


def _is_missing(error: Exception) -> bool:
    """Distinguish a missing file or model from a store that does not answer or refuses."""
    if isinstance(error, MlflowException) and error.error_code == ABSENT:
        return True
    return isinstance(error, FileNotFoundError) or bool(NO_FILE.search(str(error)))
