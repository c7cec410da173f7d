"""Send tags, params and points in as few calls as MLflow allows, leaving out what it has already."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

from convoy.tracking import store
from convoy.tracking.journal import Entry
from convoy.tracking.names import usable

LONG_BYTES = 300_000
"""Most text sent in one call: MLflow's servers refuse a request of a million bytes, and escape what is not ASCII."""

T = TypeVar("T")


class Values:
    """Collect a run's tags, params and points until they are sent.

    MLflow throws on a param that changes, on a long one and on odd names: a changed value becomes
    the tag `param.<name>`, a long one the file `params/<name>.txt`.
    """

    def __init__(
        self, client: MlflowClient, run: Run, upload: Callable[[str, str], None], *, lost_points: bool
    ) -> None:
        """Collect for a run.

        Args:
            client: of the store.
            run: as the store has it.
            upload: takes a text and the name of the artifact that it becomes.
            lost_points: whether the store has points of this run that its journal does not know.
        """
        self._client = client
        self._run_id = run.info.run_id
        self._known: dict[str, str] = dict(run.data.params)
        self._upload = upload
        self._lost_points = lost_points
        self._there: dict[str, set[int]] = {}
        self._tags: dict[str, str] = {}
        self._params: dict[str, str] = {}
        self._points: list[Metric] = []

    def take(self, entry: Entry) -> None:
        """Collect what an entry holds."""
        if entry["kind"] == "tags":
            self._tags |= entry["tags"]
        elif entry["kind"] == "params":
            for name, value in entry["params"].items():
                self._take_param(usable(name), value)
        else:
            for name, value, step, when in entry["points"]:
                point = Metric(usable(name), value, when, step)
                if not self._is_there(point, result=entry.get("result", False)):
                    self._points.append(point)

    def send(self) -> None:
        """Send what was collected; it is forgotten once the store has it."""
        tags = [self._tag(name, value) for name, value in self._tags.items()]
        params = [Param(name, value) for name, value in self._params.items()]
        if params and not self._send_params(params):
            tags += [tag for one in params for tag in self._send_alone(one)]
        for some in _batches(tags, MAX_PARAMS_TAGS_PER_BATCH, lambda one: len(one.value)):
            self._client.log_batch(self._run_id, tags=some)
        for points in _batches(self._points, MAX_METRICS_PER_BATCH, lambda one: len(one.key) + 100):
            self._client.log_batch(self._run_id, metrics=points)
        self._tags, self._params, self._points = {}, {}, []

    def _take_param(self, name: str, value: str) -> None:
        """Collect a param, unless the run has it; a changed one becomes a tag."""
        if self._known.get(name, value) != value:
            self._tags[f"param.{name}"] = value
        elif name not in self._known:
            self._known[name] = value
            if len(value) > MAX_PARAM_VAL_LENGTH:
                self._tags[f"param.{name}"] = self._as_file(f"params/{name}.txt", value)
            else:
                self._params[name] = value

    def _tag(self, name: str, value: str) -> RunTag:
        """Make a tag; a value that is too long becomes a file."""
        name = usable(name)
        if len(value) > MAX_TAG_VAL_LENGTH:
            value = self._as_file(f"tags/{name}.txt", value)
        return RunTag(name, value)

    def _as_file(self, path: str, value: str) -> str:
        """Upload a long text; return what stands in its place."""
        self._upload(value, path)
        return f"{len(value):,} characters, in {path}"

    def _send_params(self, params: list[Param]) -> bool:
        """Send params; tell whether the store took them all: an older one has other limits."""
        try:
            for some in _batches(params, MAX_PARAMS_TAGS_PER_BATCH, lambda one: len(one.value)):
                self._client.log_batch(self._run_id, params=some)
        except MlflowException as error:
            if store.refused(error):
                return False
            raise
        return True

    def _send_alone(self, param: Param) -> list[RunTag]:
        """Send one param of several that were refused together; give the tag in its place if it is refused again."""
        try:
            self._client.log_param(self._run_id, param.key, param.value)
        except MlflowException as error:
            if not store.refused(error):
                raise
            return [self._tag(f"param.{param.key}", self._as_file(f"params/{param.key}.txt", param.value))]
        return []

    def _is_there(self, point: Metric, *, result: bool) -> bool:
        """Tell whether the store has a point at this step, or a curve where this is its result."""
        if not self._lost_points:
            return False
        if point.key not in self._there:
            history = self._client.get_metric_history(self._run_id, point.key)
            self._there[point.key] = {one.step for one in history}
        steps = self._there[point.key]
        return any(steps) if result else bool(point.step) and point.step in steps


def is_plain(name: str, value: str) -> bool:
    """Tell whether MLflow takes a tag as it is."""
    return usable(name) == name and len(value) <= MAX_TAG_VAL_LENGTH


def _batches(items: list[T], most: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Split into lists of at most `most` items and about `LONG_BYTES`."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and (len(batch) >= most or total + size(item) > LONG_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch
