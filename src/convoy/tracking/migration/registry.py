"""Copy registered models, their versions and aliases to another store."""

import json
from dataclasses import dataclass, field

from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.tracking.migration.artifacts import ORIGIN, Ids
from convoy.tracking.migration.experiments import VERSIONS
from convoy.tracking.store import all_pages

NO_STAGE = "None"
"""MLflow's name for the absence of a stage."""


@dataclass
class Registry:
    """Count what was copied of the registered models.

    Attributes:
        versions: (model, version) of the source, to the version of the target.
        models_created: registered models that were created now.
        created: versions that were created now.
        aliases: number in the source, with the same version in the target, and set now.
        notes: for the user, such as an alias that points elsewhere in the target.
        failed: versions that could not be copied, and why.
    """

    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    models_created: int = 0
    created: int = 0
    aliases: list[int] = field(default_factory=lambda: [0, 0, 0])
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def registered(client: MlflowClient) -> list[RegisteredModel]:
    """List the registered models."""
    return list(all_pages(lambda token: client.search_registered_models(page_token=token)))


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """List the versions of a registered model, oldest first."""
    query = "name = '{}'".format(name.replace("'", "''"))
    pages = all_pages(lambda token: client.search_model_versions(query, page_token=token))
    return sorted(pages, key=lambda version: int(version.version))


def copy_model(
    model: RegisteredModel, source: MlflowClient, target: MlflowClient, ids: Ids, counts: Registry
) -> None:
    """Copy a registered model with its versions and aliases.

    Args:
        model: of the source.
        source: read only.
        target: to copy to.
        ids: of runs and logged models, which were copied before.
        counts: updated.
    """
    _match_model(model, target, counts)
    there = {one.tags[ORIGIN]: str(one.version) for one in versions(target, model.name) if ORIGIN in one.tags}
    for version in versions(source, model.name):
        origin = f"{version.name}/{version.version} of {version.creation_timestamp}"
        number = there.get(origin)
        if number is None:
            if version.run_id and version.run_id not in ids:
                counts.failed.append(
                    f"{version.name}/{version.version}: its run {version.run_id} is deleted. Restore it (mlflow runs "
                    f"restore --run-id {version.run_id}) or delete the version"
                )
                continue
            try:
                number = _create(version, origin, target, ids)
            except MlflowException as error:
                counts.failed.append(f"{version.name}/{version.version}: {error!s:.300}")
                continue
            counts.created += 1
        counts.versions[version.name, str(version.version)] = number
        if number != str(version.version):
            counts.notes.append(
                f"{version.name}/{version.version} is {version.name}/{number} there: that number is taken"
            )
    _set_aliases(model, target, counts)


def _match_model(model: RegisteredModel, target: MlflowClient, counts: Registry) -> None:
    """Find or create the registered model of the same name, and add the tags that it lacks."""
    tags = dict(model.tags)
    try:
        there = target.get_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        target.create_registered_model(model.name, tags=tags, description=model.description)
        counts.models_created += 1
        return
    for key, value in tags.items():
        if key not in there.tags:
            target.set_registered_model_tag(model.name, key, value)
    if model.description and not there.description:
        target.update_registered_model(model.name, model.description)


def _create(version: ModelVersion, origin: str, target: MlflowClient, ids: Ids) -> str:
    """Create a version with the number that it had, or a higher one if the target has that already."""
    where = ids.address(str(version.source))
    while True:
        made = target.create_model_version(
            version.name,
            where,
            run_id=ids.get(version.run_id or "") or None,
            tags={key: ids.translate(value) for key, value in version.tags.items()} | {ORIGIN: origin},
            description=version.description,
            model_id=where.removeprefix("models:/") if where.startswith("models:/m-") else None,
        )
        if int(made.version) >= int(version.version):
            break
        # MLflow only counts up: a number that was deleted in the source is used up here as well.
        target.delete_model_version(version.name, str(made.version))
    if version.current_stage not in (None, NO_STAGE):
        target.transition_model_version_stage(version.name, str(made.version), version.current_stage)
    return str(made.version)


def _set_aliases(model: RegisteredModel, target: MlflowClient, counts: Registry) -> None:
    """Set the aliases that the target does not have; one that points elsewhere there is left unchanged."""
    there = {alias: str(number) for alias, number in target.get_registered_model(model.name).aliases.items()}
    for alias, number in model.aliases.items():
        counts.aliases[0] += 1
        wanted = counts.versions.get((model.name, str(number)))
        if wanted is None:
            counts.failed.append(f"{model.name}@{alias}: its version {number} was not copied")
            continue
        if alias not in there:
            target.set_registered_model_alias(model.name, alias, wanted)
            counts.aliases[2] += 1
        elif there[alias] != wanted:
            counts.notes.append(
                f"{model.name}@{alias} stays at version {there[alias]}, which the target has given it; "
                f"in the source it is {number}, there {wanted}"
            )
        counts.aliases[1] += 1


def link_versions(model: LoggedModel, target: MlflowClient, ids: Ids, counts: Registry) -> None:
    """Name the registered versions of a logged model in its tag."""
    known = json.loads(model.tags.get(VERSIONS, "[]"))
    wanted = [
        {"name": one["name"], "version": counts.versions[one["name"], str(one["version"])]}
        for one in known
        if (one["name"], str(one["version"])) in counts.versions
    ]
    if not wanted:
        return
    there = json.loads(target.get_logged_model(ids[model.model_id]).tags.get(VERSIONS, "[]"))
    # A server writes the version as a number, MLflow's client as text.
    named = {(one["name"], str(one["version"])) for one in there}
    lacking = [one for one in wanted if (one["name"], one["version"]) not in named]
    if lacking:
        target.set_logged_model_tags(ids[model.model_id], {VERSIONS: json.dumps([*there, *lacking])})
