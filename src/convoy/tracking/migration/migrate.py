"""Copy a tracking store to another: experiments, runs, files, models and the registry.

MLflow has no tool for this. `mlflow-export-import` is unsuitable: its last release on PyPI (1.2.0, February
2023) supports MLflow 1 and 2.1 only, ends every run as FINISHED at the time of the import, ignores datasets and
logged models, compares nothing, and a repeated import duplicates every run.

MLflow does not let anyone set when a logged model or a version was created, so these times are lost. Runs and
models get new ids, to which tags and `MLmodel` files are updated; traces, prompts and deleted entries are not copied.
"""

from dataclasses import dataclass, field

from mlflow.entities import Experiment, LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.core import console
from convoy.core.console import track
from convoy.core.errors import MigrationError, without_credentials
from convoy.tracking import store
from convoy.tracking.migration import artifacts, experiments, registry, stores
from convoy.tracking.migration.artifacts import Ids, Tree
from convoy.tracking.migration.stores import Source

KINDS = (
    "experiments",
    "runs",
    "params",
    "metric points",
    "tags",
    "datasets",
    "files",
    "logged models",
    "model files",
    "models of runs",
    "registered models",
    "versions",
    "aliases",
)


@dataclass
class Count:
    """Count one kind of entry.

    Attributes:
        source: number to copy.
        target: number of them in the target, as compared at the end.
        sent: number sent now.
    """

    source: int = 0
    target: int = 0
    sent: int = 0


@dataclass
class Report:
    """Count what the stores have and what was sent.

    Attributes:
        counts: by kind of entry.
        size: bytes of all files.
        notes: remarks for the user that are no errors.
        wrong: what the target lacks, one line per run, model or version.
    """

    counts: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    size: int = 0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, kind: str, source: int = 0, target: int = 0, sent: int = 0) -> None:
        """Add to the counts of a kind."""
        count = self.counts[kind]
        count.source += source
        count.target += target
        count.sent += sent


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
        self.new: set[str] = set()
        self.report = Report()

    def run(self) -> Report:
        """Match entries of both stores, send what is missing, compare."""
        runs: list[Run] = []
        models: list[LoggedModel] = []
        for experiment in experiments.to_copy(self.source.client):
            self._match(experiment, runs, models)
        for model in track(models, "models to send", len(models)):
            self.report.add("model files", sent=artifacts.send(*self._model_trees(model), self.ids))
            experiments.complete_model(model, self.target, self.ids)
        for run in track(runs, "runs to send", len(runs)):
            self._send(run)
        self._registry(runs, models)
        for model in track(models, "models to compare", len(models)):
            self._check_model(model)
        for run in track(runs, "runs to compare", len(runs)):
            self._check(run)
        return self.report

    def _match(self, experiment: Experiment, all_runs: list[Run], all_models: list[LoggedModel]) -> None:
        """Find or create in the target everything with an id: an experiment, its runs and its models."""
        client, report = self.source.client, self.report
        there, created = experiments.match_experiment(self.target, experiment, self.artifacts)
        report.add("experiments", 1, 1, created)
        # One by one: a search leaves out the models that a run took.
        runs = [client.get_run(run.info.run_id) for run in experiments.runs(client, experiment.experiment_id)]
        new = experiments.match_runs(self.target, there, runs, self.ids)
        self.new |= new
        report.add("runs", len(runs), sent=len(new))
        models = list(experiments.logged_models(client, experiment.experiment_id))
        created = experiments.match_models(self.target, there, models, self.ids)
        report.add("logged models", len(models), sent=created)
        if note := self.source.without_files(experiment):
            report.notes.append(note)
        all_runs += runs
        all_models += models

    def _send(self, run: Run) -> None:
        lacking = experiments.missing(self.source.client, run, self.target, self.ids)
        experiments.send(run, lacking, self.target, self.ids)
        self.report.add("params", sent=len(lacking.params))
        # A run that is new has some of its tags from the start, and points that its model brought.
        new = run.info.run_id in self.new
        self.report.add("metric points", sent=lacking.total if new else len(lacking.points))
        self.report.add("tags", sent=len(run.data.tags) if new else len(lacking.tags))
        self.report.add("datasets", sent=len(lacking.datasets))
        self.report.add("models of runs", sent=experiments.link_models(run, self.target, self.ids))
        self.report.add("files", sent=artifacts.send(*self._run_trees(run), self.ids))
        if lacking.end:
            experiments.end(run, self.target, self.ids)

    def _check(self, run: Run) -> None:
        """Read a run of the target back and compare it with the source."""
        lacking = experiments.missing(self.source.client, run, self.target, self.ids)
        files = artifacts.check(*self._run_trees(run), self.ids)
        links = experiments.links(run, self.target, self.ids)
        tags = len(run.data.tags)
        for kind, total, gone in (
            ("params", len(run.data.params), len(lacking.params)),
            ("metric points", lacking.total, len(lacking.points)),
            ("tags", tags, min(tags, len(lacking.tags))),
            ("datasets", len(experiments.datasets(run)), len(lacking.datasets)),
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
        files = artifacts.check(*self._model_trees(model), self.ids)
        wrong = [*experiments.incomplete_parts(model, self.target, self.ids), *files.missing]
        self.report.add("model files", files.total, files.total - len(files.missing))
        self.report.size += files.size
        self.report.add("logged models", target=int(not wrong))
        if wrong:
            self.report.wrong.append(f"model {model.model_id} ({model.name}): {', '.join(wrong)}")

    def _registry(self, runs: list[Run], models: list[LoggedModel]) -> None:
        for run in runs:
            old, new = self._run_trees(run)
            self._map_address(old, new)
        for logged in models:
            old, new = self._model_trees(logged)
            self._map_address(old, new)
        copied = registry.Registry()
        registered = registry.registered(self.source.client)
        for model in registered:
            registry.copy_model(model, self.source.client, self.target, self.ids, copied)
        for logged in models:
            registry.link_versions(logged, self.target, self.ids, copied)
        versions = sum(len(registry.versions(self.source.client, model.name)) for model in registered)
        self.report.add("registered models", len(registered), len(registered), copied.models_created)
        self.report.add("versions", versions, len(copied.versions), copied.created)
        self.report.add("aliases", *copied.aliases)
        self.report.notes += copied.notes
        self.report.wrong += copied.failed

    def _map_address(self, old: Tree, new: Tree) -> None:
        """Map the address of files; a version may name them by address or, on this machine, by path."""
        self.ids.addresses[old.uri] = new.uri
        if (path := artifacts.local(old.uri)) is not None:
            self.ids.addresses[str(path)] = new.uri

    def _run_trees(self, run: Run) -> tuple[Tree, Tree]:
        there = self.target.get_run(self.ids[run.info.run_id]).info.artifact_uri
        return self.source.tree(run.info.artifact_uri), Tree(there, self.target.tracking_uri)

    def _model_trees(self, model: LoggedModel) -> tuple[Tree, Tree]:
        there = self.target.get_logged_model(self.ids[model.model_id]).artifact_location
        return self.source.tree(model.artifact_location), Tree(there, self.target.tracking_uri)


def table(report: Report) -> str:
    """Format a report."""
    rows = [
        (kind, f"{count.source:,}", f"{count.target:,}", f"{count.sent:,}")
        for kind, count in report.counts.items()
    ]
    lines = [console.table(("", "in source", "in target", "sent now"), rows, right=(1, 2, 3))]
    lines += [f"note: {note}" for note in report.notes]
    if not report.wrong:
        files = report.counts["files"].target + report.counts["model files"].target
        equal = f"the sha256 of {files:,} files ({report.size:,} bytes)"
        lines.append(f"\ncomplete: counts are equal, and so is {equal}")
    return "\n".join(lines)
