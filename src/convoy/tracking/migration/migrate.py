"""Carry a tracking store to another: experiments, runs, files, models and the registry.

MLflow has no tool of its own for this. `mlflow-export-import` does not fit: its last release on
PyPI (1.2.0, February 2023) is of MLflow 1 and 2.1, ends every run as FINISHED at the time of the
import, knows neither datasets nor logged models (its repository has learnt the latter since, in
no release), compares nothing, and an import that is repeated doubles every run.

What MLflow does not let anybody set is lost: when a logged model or a version was created. Runs
and models get new ids, which tags and `MLmodel` files are made to name; traces, prompts and what
was deleted stay behind.
"""

from mlflow.entities import Experiment, LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.core.console import track
from convoy.core.errors import MigrationError, without_credentials
from convoy.tracking import store
from convoy.tracking.migration import copies, logged_models, model_registry, rows, stores
from convoy.tracking.migration.copies import Tree
from convoy.tracking.migration.ids import Ids
from convoy.tracking.migration.report import Report
from convoy.tracking.migration.stores import Source


def migrate(target: str, source: str) -> Report:
    """Carry what the target lacks, then compare both stores; a second time it finds nothing to send.

    Args:
        target: address of a server, or `sqlite:////PATH/mlflow.db`.
        source: address of the store to read; it is never changed.

    Raises:
        RequestError: source and target are one, or one of them cannot be such.
        MigrationError: a store does not answer, or no longer.
    """
    with stores.open_source(source) as opened:
        client = stores.open_target(target, opened)
        try:
            with store.as_default(target):
                return Migration(opened, client, stores.artifacts_of(target)).run()
        except (MlflowException, OSError) as error:
            raise MigrationError(
                f"stopped: {store.explain(error)}\n"
                f"What {without_credentials(target)} has by now is kept; the same command goes on from there."
            ) from error


class Migration:
    """Carry one store to another, then compare both."""

    def __init__(self, source: Source, target: MlflowClient, artifacts: str | None) -> None:
        """Take two stores that differ; `artifacts` is where a target without a server keeps its files."""
        self.source = source
        self.target = target
        self.artifacts = artifacts
        self.ids = Ids()
        self.new: set[str] = set()
        self.report = Report()

    def run(self) -> Report:
        """Match what both have, send what is missing, compare."""
        runs: list[Run] = []
        models: list[LoggedModel] = []
        for experiment in rows.experiments(self.source.client):
            self._match(experiment, runs, models)
        for model in track(models, "models to send", len(models)):
            self.report.add("model files", sent=copies.send(*self._model_trees(model), self.ids))
            logged_models.complete(model, self.target, self.ids)
        for run in track(runs, "runs to send", len(runs)):
            self._send(run)
        self._registry(runs, models)
        for model in track(models, "models to compare", len(models)):
            self._check_model(model)
        for run in track(runs, "runs to compare", len(runs)):
            self._check(run)
        return self.report

    def _match(self, experiment: Experiment, all_runs: list[Run], all_models: list[LoggedModel]) -> None:
        """Find or create in the target what MLflow gives an id: an experiment, its runs and its models."""
        client, report = self.source.client, self.report
        there, created = rows.match_experiment(self.target, experiment, self.artifacts)
        report.add("experiments", 1, 1, created)
        # One by one: a search leaves out the models that a run took.
        found = rows.runs(client, experiment.experiment_id)
        runs = [client.get_run(run.info.run_id) for run in found]
        new = rows.match_runs(self.target, there, runs, self.ids)
        self.new |= new
        report.add("runs", len(runs), sent=len(new))
        models = list(logged_models.models(client, experiment.experiment_id))
        created = logged_models.match_models(self.target, there, models, self.ids)
        report.add("logged models", len(models), sent=created)
        if note := self.source.without_files(experiment):
            report.notes.append(note)
        all_runs += runs
        all_models += models

    def _send(self, run: Run) -> None:
        lacking = rows.missing(self.source.client, run, self.target, self.ids)
        rows.send(run, lacking, self.target, self.ids)
        self.report.add("params", sent=len(lacking.params))
        # A run that is new has some of its tags from the start, and points that its model brought.
        new = run.info.run_id in self.new
        self.report.add("metric points", sent=lacking.total if new else len(lacking.points))
        self.report.add("tags", sent=len(run.data.tags) if new else len(lacking.tags))
        self.report.add("datasets", sent=len(lacking.datasets))
        self.report.add("models of runs", sent=logged_models.tie(run, self.target, self.ids))
        self.report.add("files", sent=copies.send(*self._run_trees(run), self.ids))
        if lacking.end:
            rows.end(run, self.target, self.ids)

    def _check(self, run: Run) -> None:
        """Read a run of the target back and compare it with the source's."""
        lacking = rows.missing(self.source.client, run, self.target, self.ids)
        files = copies.check(*self._run_trees(run), self.ids)
        links = logged_models.links(run, self.target, self.ids)
        tags = len(run.data.tags)
        for kind, total, gone in (
            ("params", len(run.data.params), len(lacking.params)),
            ("metric points", lacking.total, len(lacking.points)),
            ("tags", tags, min(tags, len(lacking.tags))),
            ("datasets", len(rows.datasets(run)), len(lacking.datasets)),
            ("models of runs", links.total, len(links.inputs) + len(links.outputs)),
            ("files", files.total, len(files.missing)),
        ):
            self.report.add(kind, total, total - gone)
        wrong = [*lacking.parts(), *links.parts(), *files.missing]
        self.report.size += files.size
        self.report.add("runs", target=int(not wrong))
        if wrong:
            self.report.wrong.append(f"run {run.info.run_id} ({run.info.run_name}): {', '.join(wrong)}")

    def _check_model(self, model: LoggedModel) -> None:
        files = copies.check(*self._model_trees(model), self.ids)
        wrong = [*logged_models.incomplete(model, self.target, self.ids), *files.missing]
        self.report.add("model files", files.total, files.total - len(files.missing))
        self.report.size += files.size
        self.report.add("logged models", target=int(not wrong))
        if wrong:
            self.report.wrong.append(f"model {model.model_id} ({model.name}): {', '.join(wrong)}")

    def _registry(self, runs: list[Run], models: list[LoggedModel]) -> None:
        for run in runs:
            old, new = self._run_trees(run)
            self._place(old, new)
        for logged in models:
            old, new = self._model_trees(logged)
            self._place(old, new)
        registry = model_registry.Registry()
        found = list(model_registry.registered(self.source.client))
        for model in found:
            model_registry.carry(model, self.source.client, self.target, self.ids, registry)
        for logged in models:
            model_registry.tie(logged, self.target, self.ids, registry)
        versions = sum(len(model_registry.versions(self.source.client, one.name)) for one in found)
        self.report.add("registered models", len(found), len(found), registry.models_created)
        self.report.add("versions", versions, len(registry.versions), registry.created)
        self.report.add("aliases", *registry.aliases)
        self.report.notes += registry.notes
        self.report.wrong += registry.failed

    def _place(self, old: Tree, new: Tree) -> None:
        """Remember where files went; a version may name them by address or, on this machine, by path."""
        self.ids.places[old.uri] = new.uri
        if (path := copies.local(old.uri)) is not None:
            self.ids.places[str(path)] = new.uri

    def _run_trees(self, run: Run) -> tuple[Tree, Tree]:
        there = self.target.get_run(self.ids[run.info.run_id]).info.artifact_uri
        return self.source.tree(run.info.artifact_uri), Tree(there, self.target.tracking_uri)

    def _model_trees(self, model: LoggedModel) -> tuple[Tree, Tree]:
        there = self.target.get_logged_model(self.ids[model.model_id]).artifact_location
        return self.source.tree(model.artifact_location), Tree(there, self.target.tracking_uri)
