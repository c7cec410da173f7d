"""Copy registered models, their versions and aliases to another store."""

import json
from collections.abc import Iterable

from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.tracking.migration.artifacts import ORIGIN, Ids
from convoy.tracking.migration.experiments import VERSIONS
from convoy.tracking.migration.report import Report
from convoy.tracking.store import all_pages

NO_STAGE = "None"
"""MLflow's name for the absence of a stage."""


def copy(
    source: MlflowClient, target: MlflowClient, ids: Ids, models: Iterable[LoggedModel], report: Report
) -> None:
    """Copy all registered models; runs and logged models were copied before."""
    for model in all_pages(lambda token: source.search_registered_models(page_token=token)):
        _match_model(model, target, report)
        _copy_versions(model.name, source, target, ids, report)
        _set_aliases(model, target, ids, report)
    for logged in models:
        _link_versions(logged, target, ids)


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """List the versions of a registered model, oldest first."""
    query = "name = '{}'".format(name.replace("'", "''"))
    pages = all_pages(lambda token: client.search_model_versions(query, page_token=token))
    return sorted(pages, key=lambda version: int(version.version))


def _copy_versions(name: str, source: MlflowClient, target: MlflowClient, ids: Ids, report: Report) -> None:
    """Find or create each version of a registered model, and add it to `ids`."""
    there = {
        version.tags[ORIGIN]: str(version.version)
        for version in _versions(target, name)
        if ORIGIN in version.tags
    }
    for version in _versions(source, name):
        report.add("versions", 1)
        label = f"{name}/{version.version}"
        origin = f"{label} of {version.creation_timestamp}"
        number = there.get(origin)
        if number is None:
            if version.run_id and version.run_id not in ids:
                report.wrong.append(
                    f"{label}: its run {version.run_id} is deleted. Restore it (mlflow runs "
                    f"restore --run-id {version.run_id}) or delete the version"
                )
                continue
            try:
                number = _create(version, origin, target, ids)
            except MlflowException as error:
                report.wrong.append(f"{label}: {error!s:.300}")
                continue
            report.add("versions", sent=1)
        report.add("versions", target=1)
        ids.versions[name, str(version.version)] = number
        if number != str(version.version):
            report.notes.append(f"{label} is {name}/{number} there: that number is taken")


def _match_model(model: RegisteredModel, target: MlflowClient, report: Report) -> None:
    """Find or create the registered model of the same name, and add the tags that it lacks."""
    tags = dict(model.tags)
    report.add("registered models", 1, 1)
    try:
        there = target.get_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        target.create_registered_model(model.name, tags=tags, description=model.description)
        report.add("registered models", sent=1)
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


def _set_aliases(model: RegisteredModel, target: MlflowClient, ids: Ids, report: Report) -> None:
    """Set the aliases that the target does not have; one that points elsewhere there is left unchanged."""
    there = {alias: str(number) for alias, number in target.get_registered_model(model.name).aliases.items()}
    for alias, number in model.aliases.items():
        report.add("aliases", 1)
        wanted = ids.versions.get((model.name, str(number)))
        if wanted is None:
            report.wrong.append(f"{model.name}@{alias}: its version {number} was not copied")
            continue
        report.add("aliases", target=1)
        if alias not in there:
            target.set_registered_model_alias(model.name, alias, wanted)
            report.add("aliases", sent=1)
        elif there[alias] != wanted:
            report.notes.append(
                f"{model.name}@{alias} stays at version {there[alias]}, which the target has given it; "
                f"in the source it is {number}, there {wanted}"
            )


def _link_versions(model: LoggedModel, target: MlflowClient, ids: Ids) -> None:
    """Name the registered versions of a logged model in its tag."""
    versions = [
        (entry["name"], str(entry["version"])) for entry in json.loads(model.tags.get(VERSIONS, "[]"))
    ]
    there = json.loads(target.get_logged_model(ids[model.model_id]).tags.get(VERSIONS, "[]"))
    # A server writes the version as a number, MLflow's client as text.
    known = {(entry["name"], str(entry["version"])) for entry in there}
    lacking = [
        {"name": name, "version": ids.versions[name, version]}
        for name, version in versions
        if (name, version) in ids.versions and (name, ids.versions[name, version]) not in known
    ]
    if lacking:
        target.set_logged_model_tags(ids[model.model_id], {VERSIONS: json.dumps([*there, *lacking])})
