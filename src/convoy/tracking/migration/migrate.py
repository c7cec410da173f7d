"""Copy a tracking store to another: experiments, runs, files, models and the registry.

MLflow has no tool for this. `mlflow-export-import` is unsuitable: its last release on PyPI (1.2.0, February
2023) supports MLflow 1 and 2.1 only, ends every run as FINISHED at the time of the import, ignores datasets and
logged models, compares nothing, and a repeated import duplicates every run.

MLflow does not let anyone set when a logged model or a version was created, so these times are lost. Runs and
models get new ids, to which tags and `MLmodel` files are updated; traces, prompts and deleted entries are not copied.
"""

from mlflow.entities import Experiment, LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.core.console import track
from convoy.core.errors import MigrationError, without_credentials
from convoy.tracking import store
from convoy.tracking.migration import artifacts, experiments, registry, stores
from convoy.tracking.migration.artifacts import Ids, Tree
from convoy.tracking.migration.report import Report
from convoy.tracking.migration.stores import Source


def migrate(target: str, source: str) -> Report:
    """Copy what the target lacks, then compare both stores; a second call finds nothing to send.

    Args:
        target: address of a server, or `sqlite:////PATH/mlflow.db`.
        source: address of the store to read; it is never changed.

    Raises:
        RequestError: source and target are the same store, or one of them is not a valid store.
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
                f"{without_credentials(target)} keeps what it has; run the same command again to continue."
            ) from error


class Migration:
    """Copy one store to another, then compare both."""

    def __init__(self, source: Source, target: MlflowClient, artifacts: str | None) -> None:
        """Copy between two different stores; a target without a server keeps its files in `artifacts`."""
        self.source = source
        self.target = target
        self.artifacts = artifacts
        self.ids = Ids()
        self.trees: dict[str, tuple[Tree, Tree]] = {}  # files of a run or model, here and there
        self.runs: list[Run] = []
        self.models: list[LoggedModel] = []
        self.new: set[str] = set()
        self.report = Report()

    def run(self) -> Report:
        """Match entries of both stores, send what is missing, compare."""
        for experiment in experiments.to_copy(self.source.client):
            self._match(experiment)
        for model in track(self.models, "models to send", len(self.models)):
            self.report.add("model files", sent=artifacts.send(*self.trees[model.model_id], self.ids))
            experiments.complete_model(model, self.target, self.ids)
        for run in track(self.runs, "runs to send", len(self.runs)):
            self._send(run)
        registry.copy(self.source.client, self.target, self.ids, self.models, self.report)
        for model in track(self.models, "models to compare", len(self.models)):
            lacking = experiments.missing_of_model(model, self.target, self.ids)
            wrong = [part for part, lacks in lacking.items() if lacks]
            self._compare("logged models", f"model {model.model_id} ({model.name})", model.model_id, wrong)
        for run in track(self.runs, "runs to compare", len(self.runs)):
            missing = experiments.missing(self.source.client, run, self.target, self.ids)
            for kind, lacks in missing.counts().items():
                total = missing.totals[kind]
                self.report.add(kind, total, max(0, total - lacks))
            name = f"run {run.info.run_id} ({run.info.run_name})"
            self._compare("runs", name, run.info.run_id, missing.parts())
        return self.report

    def _match(self, experiment: Experiment) -> None:
        """Find or create in the target everything with an id: an experiment, its runs and its models."""
        client, report = self.source.client, self.report
        there, created = experiments.match_experiment(self.target, experiment, self.artifacts)
        report.add("experiments", 1, 1, created)
        # Each by its own request: a search leaves out the models that a run took.
        runs = [client.get_run(run.info.run_id) for run in experiments.runs(client, experiment.experiment_id)]
        new = experiments.match_runs(self.target, there, runs, self.ids)
        report.add("runs", len(runs), sent=len(new))
        models = list(experiments.logged_models(client, experiment.experiment_id))
        created = experiments.match_models(self.target, there, models, self.ids)
        report.add("logged models", len(models), sent=created)
        for run in runs:
            copy = self.target.get_run(self.ids[run.info.run_id])
            self._pair(run.info.run_id, run.info.artifact_uri, copy.info.artifact_uri)
        for model in models:
            copied = self.target.get_logged_model(self.ids[model.model_id])
            self._pair(model.model_id, model.artifact_location, copied.artifact_location)
        if note := self.source.without_files(experiment):
            report.notes.append(note)
        self.new |= new
        self.runs += runs
        self.models += models

    def _pair(self, name: str, old: str, new: str) -> None:
        """Note where files lie; a version may name them by address or, on this machine, by path."""
        self.trees[name] = self.source.tree(old), Tree(new, self.target.tracking_uri)
        self.ids.addresses[old] = new
        if (path := artifacts.local(old)) is not None:
            self.ids.addresses[str(path)] = new

    def _send(self, run: Run) -> None:
        missing = experiments.missing(self.source.client, run, self.target, self.ids)
        experiments.send(run, missing, self.target, self.ids)
        sent = missing.counts()
        if (
            run.info.run_id in self.new
        ):  # it has some of its tags from the start, and points that its model brought
            sent |= {kind: missing.totals[kind] for kind in ("metric points", "tags")}
        for kind, number in sent.items():
            self.report.add(kind, sent=number)
        self.report.add("files", sent=artifacts.send(*self.trees[run.info.run_id], self.ids))
        if missing.end:
            experiments.end(run, self.target, self.ids)

    def _compare(self, kind: str, name: str, entry_id: str, wrong: list[str]) -> None:
        """Compare the files of a run or model, and report it with what else is `wrong` with it."""
        total, size, lacking = artifacts.check(*self.trees[entry_id], self.ids)
        self.report.add("files" if kind == "runs" else "model files", total, total - len(lacking))
        self.report.size += size
        wrong += lacking
        self.report.add(kind, target=int(not wrong))
        if wrong:
            self.report.wrong.append(f"{name}: {', '.join(wrong)}")
