"""Reach the registered model: its versions, and the aliases `candidate` and `champion` that point to them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.core import params
from convoy.core.errors import ConvoyError, RequestError, without_credentials
from convoy.registry import refusal
from convoy.tracking import schema, settings, store

CANDIDATE = "candidate"
CHAMPION = "champion"

SHA256 = "convoy.onnx_sha256"
RUN_ID = "convoy.run_id"

ABSENT = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"
T = TypeVar("T")


class RegistryError(ConvoyError):
    """Report a registry that does not answer, refuses, or contradicts itself."""


@dataclass(frozen=True)
class Version:
    """Name a version of the registered model.

    Attributes:
        model: name of the registered model.
        number: counted by MLflow from 1.
        sha256: of its model.onnx; empty where Convoy did not register it.
        run_id: Convoy's id of the run that it comes from.
        mlflow_run_id: MLflow's.
        created_ms: milliseconds since 1970, UTC.
        tags: all of them.
    """

    model: str
    number: str
    sha256: str
    run_id: str
    mlflow_run_id: str
    created_ms: int
    tags: dict[str, str]

    def __str__(self) -> str:
        """Spell it as MLflow's addresses do."""
        return f"{self.model}/{self.number}"


class Registry:
    """Ask one tracking store about one registered model; every refusal says what to do."""

    def __init__(self, client: MlflowClient, model: str) -> None:
        """Take a client of the store and the name of the registered model."""
        self.client = client
        self.model = model

    @classmethod
    def open(cls) -> "Registry":
        """Open the store of this repository and the model that params.yaml names; nothing is asked yet.

        Raises:
            RequestError: another MLflow wrote the store, or params.yaml names no model.
        """
        named = params.section("tracking", settings.TrackingParams).registered_model
        schema.check(store.uri())
        return cls(store.connect(), named)

    @property
    def address(self) -> str:
        """Name the store for people, without a password."""
        return without_credentials(str(self.client.tracking_uri))

    def aliases(self) -> dict[str, str]:
        """Map the aliases to numbers of versions, whether these exist or not."""
        found = self.registered()
        return {alias: str(number) for alias, number in found.aliases.items()} if found else {}

    def alias(self, alias: str) -> Version | None:
        """Look up the version that an alias points to; None while there is no such model or alias.

        Raises:
            RegistryError: it points to a version that does not exist.
        """
        number = self.aliases().get(alias)
        if number is None:
            return None
        found = self._version(number)
        if found is None:
            raise RegistryError(self._nowhere(alias, number))
        return found

    def version(self, number: str) -> Version:
        """Look up a version.

        Raises:
            RequestError: there is none of this number, with those that there are.
        """
        found = self._version(number) if number.isdecimal() else None
        if found is None:
            known = ", ".join(one.number for one in self.versions()) or "none"
            raise RequestError(f"{self.model} has no version {number}; there are: {known}")
        return found

    def versions(self) -> list[Version]:
        """List the versions, oldest first."""
        return self._search(f"name = '{self.model}'")

    def by_sha256(self, sha256: str) -> Version | None:
        """Find the newest version with these bytes."""
        found = self._search(f"name = '{self.model}' and tags.`{SHA256}` = '{sha256}'")
        return found[-1] if found else None

    def point(self, alias: str, version: Version) -> None:
        """Let an alias point to a version."""
        self.ask(
            f"move the alias {alias} to {version}",
            lambda: self.client.set_registered_model_alias(self.model, alias, version.number),
        )

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, text in tags.items():
            self.ask(
                f"tag {version}",
                lambda key=key, text=text: self.client.set_model_version_tag(  # type: ignore[misc] # mypy reads no defaults of lambdas
                    self.model, version.number, key, text
                ),
            )

    def registered(self) -> RegisteredModel | None:
        """Read the registered model with its tags and aliases; None while there is none."""
        return self._unless_absent(
            f"read the registered model {self.model}", lambda: self.client.get_registered_model(self.model)
        )

    def create(self) -> None:
        """Create the registered model where there is none."""
        if self.registered():
            return

        def make() -> None:
            try:
                self.client.create_registered_model(
                    self.model,
                    tags={"convoy.kind": "image classifier"},
                    description=DESCRIPTION,
                )
            except MlflowException as error:
                if error.error_code != EXISTS:  # another process was faster
                    raise

        self.ask(f"create the registered model {self.model}", make)

    def add(self, model_id: str, mlflow_run_id: str, tags: Mapping[str, str], description: str) -> Version:
        """Add a version that is a logged model."""
        with store.as_default(str(self.client.tracking_uri)):
            made = self.ask(
                f"add a version to {self.model}",
                lambda: self.client.create_model_version(
                    self.model,
                    f"models:/{model_id}",
                    run_id=mlflow_run_id,
                    tags=dict(tags),
                    description=description,
                    model_id=model_id,
                ),
            )
        return _as_version(made)

    def ask(self, doing: str, call: Callable[[], T]) -> T:
        """Ask the store.

        Args:
            doing: what is asked, as in `may not …`.
            call: asks it.

        Raises:
            RegistryError: the store does not answer or refuses, with what to do.
        """
        try:
            return call()
        except Exception as error:  # stores raise what their libraries do
            raise self.failure(doing, error) from error

    def failure(self, doing: str, error: Exception) -> RegistryError:
        """Phrase why the store did not do what was asked."""
        return RegistryError(refusal.phrase(error, doing, str(self.client.tracking_uri), self.model))

    def _search(self, query: str) -> list[Version]:
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self.ask(
                f"list the versions of {self.model}",
                lambda token=token: self.client.search_model_versions(query, page_token=token),  # type: ignore[misc] # as above
            )
            found += page
            if not (token := page.token):
                return sorted(map(_as_version, found), key=lambda one: int(one.number))

    def _version(self, number: str) -> Version | None:
        found = self._unless_absent(
            f"read {self.model}/{number}", lambda: self.client.get_model_version(self.model, number)
        )
        return _as_version(found) if found else None

    def _unless_absent(self, doing: str, call: Callable[[], T]) -> T | None:
        def look() -> T | None:
            try:
                return call()
            except MlflowException as error:
                if error.error_code != ABSENT:
                    raise
                return None

        return self.ask(doing, look)

    def _nowhere(self, alias: str, number: str) -> str:
        known = ", ".join(one.number for one in self.versions()) or "none"
        remedy = (
            "Let it point to one of them: convoy rollback --to VERSION"
            if alias == CHAMPION
            else "Register the model of this workspace, which moves it: convoy register"
        )
        return (
            f"the alias {alias} of {self.model} at {self.address} points to version {number}, which does not exist; "
            f"there are: {known}. {remedy}"
        )


DESCRIPTION = (
    "Image classifiers that Convoy exported and proved. `candidate` is the version registered last, `champion` the one "
    "that serves: only `convoy promote` and `convoy rollback` move it."
)


def refuse_inside_experiment(command: str) -> None:
    """Refuse to touch the aliases from a stage or an experiment: what is tried there is not what serves.

    Raises:
        RequestError: DVC runs this.
    """
    inside = [name for name in ("DVC_STAGE", "DVC_EXP_NAME") if os.environ.get(name)]
    if inside:
        raise RequestError(
            f"`convoy {command}` does not work inside a DVC stage or experiment ({inside[0]} is "
            f"{os.environ[inside[0]]}): experiments and sweeps never touch the aliases. Apply the experiment first "
            f"(dvc exp apply NAME), then type `convoy {command}` in the repository."
        )


def _as_version(found: Any) -> Version:  # noqa: ANN401 (MLflow's client declares less than it gives)
    tags = dict(found.tags)
    return Version(
        model=found.name,
        number=str(found.version),
        sha256=tags.get(SHA256, ""),
        run_id=tags.get(RUN_ID, ""),
        mlflow_run_id=found.run_id or "",
        created_ms=int(found.creation_timestamp or 0),
        tags=tags,
    )
