"""What is known of one run; and the runs that wait on disk to be delivered to the tracking store."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convoy.tracking import journal

COMMIT = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Version:
    """Name a registered version of a model, with the aliases that point to it now."""

    model: str
    number: str
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Spell it as MLflow's addresses do."""
        names = ", ".join(f"@{alias}" for alias in self.aliases)
        return f"{self.model}/{self.number}" + (f" ({names})" if names else "")


@dataclass(frozen=True)
class Record:
    """State what is known of one run.

    Attributes:
        run_id: Convoy's id; empty for a run that Convoy did not make.
        mlflow_run_id: empty while the store has not heard of it.
        name: as the UI shows it.
        status: MLflow's word, such as FINISHED.
        started_ms: milliseconds since 1970, UTC.
        tags: all of them.
        params: flat names to values, as text.
        metrics: the latest value of each.
        versions: registered ones that come from this run.
        waiting: folder in which what was not delivered yet lies; None where all was.
        destination: address of the store to which that is to go.
    """

    run_id: str
    mlflow_run_id: str
    name: str
    status: str
    started_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    versions: tuple[Version, ...] = ()
    waiting: Path | None = None
    destination: str = ""

    def tag(self, name: str) -> str:
        """Read a tag; empty where the run has none."""
        return self.tags.get(name, "")


def read(outbox: Path) -> Iterator[Record]:
    """Read the runs of an outbox, oldest first."""
    for path in sorted(outbox.glob(f"*/{journal.FILE}")):
        if record := _sum_up(path):
            yield record


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """List the files that wait beside a journal, by the name that they get among a run's artifacts."""
    for entry, _ in journal.read(folder / journal.FILE):
        if entry.get("kind") == "files":
            kept = folder / entry["at"]
            for path in sorted(kept.rglob("*")):
                if path.is_file():
                    yield (
                        "/".join(filter(None, [entry.get("folder"), path.relative_to(kept).as_posix()])),
                        path,
                    )


def _sum_up(path: Path) -> Record | None:
    """Sum up the journal of one run; None where it says nothing yet."""
    summed = journal.State()
    params: dict[str, str] = {}
    metrics: dict[str, tuple[int, float]] = {}
    for entry, _ in journal.read(path):
        summed.take(entry)
        if entry.get("kind") == "params":
            params |= entry["params"]
        elif entry.get("kind") == "points":
            for name, value, step, _ in entry["points"]:
                if step >= metrics.get(name, (-1, 0.0))[0]:
                    metrics[name] = (step, value)
    if "convoy.run_id" not in summed.tags:
        return None
    return Record(
        run_id=summed.tags["convoy.run_id"],
        mlflow_run_id=journal.Sent.load(path.parent).mlflow_run_id,
        name=str(summed.opened.get("name", "")),
        status=summed.ended or "RUNNING",
        started_ms=int(summed.opened.get("time_ms", 0)),
        tags=summed.tags,
        params=params,
        metrics={name: value for name, (_, value) in metrics.items()},
        waiting=path.parent,
        destination=str(summed.opened.get("uri", "")),
    )
