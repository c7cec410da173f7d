"""Deliver one journal to the MLflow store that it names, so that a second delivery changes nothing.

Points carry their own time, params are compared before they are sent, tags and files replace
themselves, a model is looked for before it is logged. So wherever a courier is killed, the
next one goes on from the last note in `sent.json`.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunStatus
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from convoy.tracking import model, sampling, schema, store
from convoy.tracking.journal import FILE, Entry, Sent, State, read
from convoy.tracking.names import usable
from convoy.tracking.values import Values, is_plain

ENTRIES = 2000
"""Entries that are sent before it is noted how far a journal is delivered."""

UPLOADS = 4
"""Files that are sent to a server at once."""

HEARTBEAT = "convoy.heartbeat"
HEARTBEAT_SECONDS = 60.0


class Waiting(Exception):  # noqa: N818 (nothing failed)
    """Put a journal off until the run that it belongs under is in the store."""


class Delivery:
    """Send what a journal holds, entry by entry, and note how far that is."""

    def __init__(self, folder: Path) -> None:
        """Take up a journal where the last delivery left it."""
        self.folder = folder
        self.sent = Sent.load(folder)
        self.state = State()
        self._read = 0
        self._client: MlflowClient | None = None
        self._values: Values | None = None
        self._sampling: sampling.Sampling | None = None
        self._beat = 0.0

    @property
    def uri(self) -> str:
        """Name the store; empty while the journal has no first entry."""
        return str(self.state.opened.get("uri", ""))

    def look(self) -> None:
        """Read what was written since the last look."""
        for entry, end in read(self.folder / FILE, self._read):
            self.state.take(entry)
            self._read = end

    def is_alive(self) -> bool:
        """Tell whether more may be written."""
        return not self.state.ended and self.state.is_alive(self.folder / FILE)

    def is_delivered(self) -> bool:
        """Tell whether the store has everything that was read."""
        return self.sent.size >= self._read

    def deliver(self) -> None:
        """Send the next entries.

        Raises:
            Waiting: the run that this one belongs under is not in the store yet.
            Exception: whatever the store and its artifacts raise; what was sent until then is noted.
        """
        try:
            if self._values is None and self.sent.entries:
                self._collect(self._mlflow().get_run(self.sent.mlflow_run_id))
            self._send(list(islice(self._pending(), ENTRIES)))
            if self.is_alive():
                self.beat()
            self._sample()
        except Exception:
            self._values = None  # made anew from what the store has by then
            raise

    def beat(self) -> None:
        """Say in the store that the run lives, once a minute."""
        if self.sent.mlflow_run_id and time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            self._mlflow().set_tag(self.sent.mlflow_run_id, HEARTBEAT, now())
            self._sample()

    def fail(self, error: Exception) -> str:
        """Note why a try failed, in words for people."""
        self.sent.error = store.explain(error)
        self.sent.tried_ms = int(time.time() * 1000)
        with contextlib.suppress(OSError):  # a full disk; courier.log has the reason as well
            self.sent.save(self.folder)
        return self.sent.error

    def stop(self) -> None:
        """Stop sampling the machine."""
        if self._sampling:
            self._sampling.stop()
            self._sampling = None

    def _pending(self) -> Iterator[tuple[Entry, int]]:
        """Read what `look` has seen and was not sent."""
        for entry, end in read(self.folder / FILE, self.sent.size):
            if end > self._read:
                return
            yield entry, end

    def _send(self, found: list[tuple[Entry, int]]) -> None:
        """Send entries; values that follow each other go together, and so do files."""
        files: list[Entry] = []
        done = self.sent.entries
        for entry, end in found:
            done += 1
            if entry.get("kind") in {"tags", "params", "points"} and self._values:
                self._values.take(entry)
            elif entry.get("kind") == "files":
                files.append(entry)
            else:
                self._flush(files)
                self._act(entry)
                self._note(done, end)
        self._flush(files)
        if found:
            self._note(done, found[-1][1])

    def _sample(self) -> None:
        """Have the machine sampled while the run asks for it and lives; a monitor that gave up is replaced."""
        wanted = self.state.sampled and self.is_alive()
        if self._sampling and not (wanted and self._sampling.lives()):
            self.stop()
        if wanted and self._sampling is None and self.sent.mlflow_run_id:
            self._sampling = sampling.Sampling(self.sent.mlflow_run_id, self.uri)

    def _collect(self, run: StoredRun) -> None:
        """Collect values for a run; a journal that was removed and made anew does not know all its points."""
        self._values = Values(self._mlflow(), run, self._upload_text, lost_points=self.state.remade)

    def _note(self, entries: int, size: int) -> None:
        self.sent.entries, self.sent.size, self.sent.error = entries, size, ""
        self.sent.tried_ms = int(time.time() * 1000)
        self.sent.save(self.folder)

    def _mlflow(self) -> MlflowClient:
        if self._client is None:
            schema.check(self.uri)
            store.make_file(self.uri)
            self._client = store.connect(self.uri)
        return self._client

    def _flush(self, files: list[Entry]) -> None:
        """Send the values that were collected, then the files, and forget both."""
        if self._values:
            self._values.send()
        if files:
            self._upload(files)
            files.clear()

    def _act(self, entry: Entry) -> None:
        """Do what an entry asks that is neither a value nor a file."""
        kind, run_id, client = entry.get("kind"), self.sent.mlflow_run_id, self._mlflow()
        if kind == "open":
            self._open(entry)
        elif kind == "dataset":
            dataset = Dataset("dataset", entry["digest"], "local", entry["source"], profile=entry["profile"])
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        elif kind == "model":
            model.log(
                client, client.get_run(run_id), self.folder / entry["at"], entry["sha256"], self._results()
            )
        elif kind == "end":
            self.stop()
            self._end(entry)

    def _open(self, entry: Entry) -> None:
        """Find the run, join the one that `mlflow run` opened, or create one."""
        client = self._mlflow()
        known = self.sent.mlflow_run_id
        run = client.get_run(known) if known else store.find(entry["tags"]["convoy.run_id"], client)
        tags = entry["tags"] | {HEARTBEAT: now()}
        self._beat = time.monotonic()
        if entry["parent"]:
            tags |= self._under(entry["parent"])
        if run is None and (offered := self._offered(entry)):
            run = offered
            client.update_run(run.info.run_id, name=entry["name"])
        if run is None:
            experiment = store.experiment(client, entry["experiment"])
            first = {name: value for name, value in tags.items() if is_plain(name, value)}
            run = client.create_run(experiment.experiment_id, entry["time_ms"], first, entry["name"])
            tags = {name: value for name, value in tags.items() if name not in first}
        elif entry["resumed"]:
            client.update_run(run.info.run_id, "RUNNING", entry["name"])
            if entry["offered"] not in {"", run.info.run_id}:
                client.set_tag(entry["offered"], "convoy.continues", entry["tags"]["convoy.run_id"])
        self.sent.mlflow_run_id = run.info.run_id
        self.sent.save(self.folder)
        self._collect(run)
        if tags and self._values:
            self._values.take({"kind": "tags", "tags": tags})
            self._values.send()

    def _offered(self, entry: Entry) -> StoredRun | None:
        """Give the run that `mlflow run` opened; None if it is in another store, deleted or another's."""
        if not entry["offered"] or entry["resumed"]:
            return None
        try:
            run = self._mlflow().get_run(entry["offered"])
        except MlflowException as error:
            if not store.refused(error):
                raise
            return None
        mine = (
            run.data.tags.get("convoy.run_id", entry["tags"]["convoy.run_id"])
            == entry["tags"]["convoy.run_id"]
        )
        return run if mine and run.info.lifecycle_stage == "active" else None

    def _under(self, parent: str) -> dict[str, str]:
        """Name the parent as MLflow does; without one whose journal is gone and that the store lacks."""
        if found := store.find(parent, self._mlflow()):
            return {"mlflow.parentRunId": found.info.run_id}
        if (self.folder.parent / parent / FILE).exists():
            raise Waiting(parent)
        return {}

    def _end(self, entry: Entry) -> None:
        client, run_id, status = self._mlflow(), self.sent.mlflow_run_id, entry["status"]
        if status == RunStatus.to_string(RunStatus.SCHEDULED):
            client.update_run(run_id, status)
        else:
            client.set_terminated(run_id, status, entry["time_ms"])

    def _results(self) -> list[Metric]:
        """Read the metrics that are results rather than points of a curve."""
        found = {
            name: Metric(usable(name), value, when, step)
            for entry, _ in read(self.folder / FILE)
            if entry.get("kind") == "points"
            for name, value, step, when in entry["points"]
            if step == 0
        }
        return list(found.values())

    def _upload(self, entries: list[Entry]) -> None:
        """Send files, several at once where each is a request."""
        client, run_id = self._mlflow(), self.sent.mlflow_run_id
        named = [
            (str(path), "/".join(part for part in (entry["folder"], _inside(path, folder)) if part) or None)
            for entry in entries
            for folder in [self.folder / entry["at"]]
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        at_once = UPLOADS if self.uri.startswith("http") else 1
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda one: client.log_artifact(run_id, *one), named))

    def _upload_text(self, text: str, name: str) -> None:
        self._mlflow().log_text(self.sent.mlflow_run_id, text, name)


def now() -> str:
    """Tell the time as heartbeats do."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _inside(path: Path, folder: Path) -> str:
    """Name the folder of a file below another; empty for the folder itself."""
    name = path.parent.relative_to(folder).as_posix()
    return "" if name == "." else name
