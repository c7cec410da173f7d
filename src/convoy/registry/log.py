"""Write down each move of `champion`, before and after: an MLflow run per move, in an experiment of their own.

An entry is a run that is RUNNING from before the alias moves, and ends when it is known what came
of it: FINISHED, the alias moved; FAILED, it did not. One that stays RUNNING was left by a process or
store that died in between; where the alias stands tells which of both it was.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run

from convoy.core.errors import RequestError
from convoy.registry.client import Registry, RegistryError, Version
from convoy.repo import identity
from convoy.tracking import settings, store
from convoy.tracking.run import now_ms

SUFFIX = " promotions"

MOVE = "convoy.move"
MODEL = "convoy.model"
KIND = "convoy.kind"
FROM = "convoy.from"
TO = "convoy.to"
REASON = "convoy.reason"
OUTCOME = "convoy.outcome"
NOTE = "mlflow.note.content"

LONGEST_REASON = 5000
"""Characters of a reason that every store takes as a tag."""

MOVED = "moved"
NOT_MOVED = "not moved"


@dataclass(frozen=True)
class Entry:
    """State one move of `champion`.

    Attributes:
        move: its own id; a store that died may have made two runs of one move.
        kind: `promote`, `rollback` or `override`.
        before: number of the version that was champion; empty where none was.
        after: number of the version that became champion.
        reason: in words.
        moment_ms: milliseconds since 1970, UTC.
        user: who moved it.
        host: where.
        moved: whether the alias did move.
    """

    move: str
    kind: str
    before: str
    after: str
    reason: str
    moment_ms: int
    user: str
    host: str
    moved: bool


@dataclass(frozen=True)
class Intent:
    """Hold an entry whose outcome is not known yet.

    Attributes:
        run: MLflow's id of the entry.
        before: as in `Entry`.
        after: as in `Entry`.
    """

    run: str
    before: str
    after: str


def check_reason(reason: str) -> str:
    """Take a reason as it is, unless stores do not.

    Raises:
        RequestError: it is too long.
    """
    if len(reason) > LONGEST_REASON:
        raise RequestError(
            f"the reason has {len(reason):,} characters; stores take {LONGEST_REASON:,}. Shorten it, or name a page."
        )
    return reason.strip()


def intend(
    registry: Registry, kind: str, before: str, to: Version, *, reason: str, files: Sequence[Path]
) -> Intent:
    """Write that the alias is about to move, with the files that say why.

    Raises:
        RegistryError: the store does not take it; then nothing may move.
    """
    process = identity.process_tags()
    tags = {
        MOVE: secrets.token_hex(8),
        MODEL: registry.model,
        KIND: kind,
        FROM: before,
        TO: to.number,
        REASON: reason,
        NOTE: reason,
        "convoy.onnx_sha256": to.sha256,
        **{key: process[key] for key in ("mlflow.user", "convoy.host", "convoy.owner", "convoy.version")},
    }
    name = f"{kind} {to}"

    def write() -> str:
        experiment = _experiment(registry)
        run = registry.client.create_run(experiment, now_ms(), tags, name)
        for path in files:
            registry.client.log_artifact(run.info.run_id, str(path))
        return str(run.info.run_id)

    doing = "write the move into the promotion log, before which nothing moves"
    return Intent(registry.ask(doing, write), before, to.number)


def end(registry: Registry, intent: Intent, outcome: str) -> None:
    """Write what came of it: `moved`, `not moved`, or why that is not known."""

    def write() -> None:
        registry.client.set_tag(intent.run, OUTCOME, outcome)
        registry.client.set_terminated(intent.run, "FINISHED" if outcome == MOVED else "FAILED")

    registry.ask("write into the promotion log", write)


def wait_until_uploaded(registry: Registry, champion: str) -> list[str]:
    """End the entries that dead processes left, by where the alias stands; call it with the lock held.

    Args:
        registry: whose log it is.
        champion: number of the version that the alias points to now; empty where there is none.

    Returns:
        A sentence for each.
    """
    said = []
    for run in _runs(registry, "attributes.status = 'RUNNING'"):
        intent = Intent(run.info.run_id, run.data.tags[FROM], run.data.tags[TO])
        outcome = _outcome(intent, champion)
        end(registry, intent, outcome)
        said.append(f"an earlier `{run.info.run_name}` was broken off: the alias had {outcome}")
    return said


def history(registry: Registry, champion: str) -> list[Entry]:
    """Read the log, oldest move first.

    Args:
        registry: whose log it is.
        champion: number of the version that the alias points to now: it tells what came of an entry left open.
    """
    entries: dict[str, Entry] = {}
    for run in _runs(registry):
        entry = _entry(run, champion)
        known = entries.get(entry.move)
        if known is None or (entry.moved and not known.moved):
            entries[entry.move] = entry
    return sorted(entries.values(), key=lambda entry: entry.moment_ms)


def stack(entries: Sequence[Entry], champion: str) -> list[str]:
    """Put the champions in order, the present one last: a rollback goes to the one before it.

    A promotion puts its version on top. A rollback takes away all above its version; one to a
    version that an earlier rollback took away puts back what is up to it. Moves that the log knows
    nothing of, by hand or by another tool, count as promotions.

    Args:
        entries: oldest first.
        champion: number of the version that the alias points to now.
    """
    champions: list[str] = []
    undone: list[str] = []

    def put(number: str) -> None:
        if number and champions[-1:] != [number]:
            champions.append(number)
            undone.clear()

    for entry in entries:
        if not entry.moved:
            continue
        put(entry.before)
        if entry.kind == "rollback":
            _roll_back(champions, undone, entry.after)
        else:
            put(entry.after)
    put(champion)
    return champions


def _roll_back(champions: list[str], undone: list[str], to: str) -> None:
    """Move champions between the two stacks until `to` is on top; one in neither takes the place of the last."""
    if to in champions[:-1]:
        undone.append(champions.pop())
        while champions[-1] != to:
            undone.append(champions.pop())
    elif to in undone:
        while champions[-1:] != [to]:
            champions.append(undone.pop())
    else:
        del champions[-1:]
        champions.append(to)
        undone.clear()


def _outcome(intent: Intent, champion: str) -> str:
    if champion == intent.after:
        return MOVED
    if champion == intent.before:
        return NOT_MOVED
    return f"{NOT_MOVED}, or was moved since: it points to {champion or 'nothing'}"


def _entry(run: Run, champion: str) -> Entry:
    tags = run.data.tags
    before, after = tags.get(FROM, ""), tags[TO]
    status = run.info.status
    moved = status == "FINISHED" or (status == "RUNNING" and champion == after)
    return Entry(
        move=tags[MOVE],
        kind=tags[KIND],
        before=before,
        after=after,
        reason=tags.get(REASON, ""),
        moment_ms=int(run.info.start_time or 0),
        user=tags.get("mlflow.user", ""),
        host=tags.get("convoy.host", ""),
        moved=moved,
    )


def _runs(registry: Registry, query: str = "") -> Iterator[Run]:
    """Walk the entries of this registered model."""
    name = settings.experiment() + SUFFIX
    found = registry.ask("read the promotion log", lambda: registry.client.get_experiment_by_name(name))
    if found is None:
        return
    _insist_active(found.lifecycle_stage, name, found.experiment_id)
    mine = " and ".join(filter(None, [f"tags.`{MODEL}` = '{registry.model}'", query]))
    token: str | None = None
    while True:
        page = registry.ask(
            "read the promotion log",
            lambda token=token: registry.client.search_runs(  # type: ignore[misc] # mypy reads no defaults of lambdas
                [found.experiment_id], mine, page_token=token, order_by=["attributes.start_time ASC"]
            ),
        )
        yield from page
        if not (token := page.token):
            return


def _experiment(registry: Registry) -> str:
    """Find or create the experiment of the log."""
    name = settings.experiment() + SUFFIX
    found = store.experiment(registry.client, name)
    _insist_active(found.lifecycle_stage, name, found.experiment_id)
    if settings.LOG not in found.tags:
        registry.client.set_experiment_tag(found.experiment_id, settings.LOG, "promotions")
        registry.client.set_experiment_tag(
            found.experiment_id, NOTE, "What moved the alias champion, one run per move. Kept by Convoy."
        )
    return str(found.experiment_id)


def _insist_active(lifecycle: str, name: str, number: str) -> None:
    if lifecycle != "active":
        raise RegistryError(
            f"the experiment `{name}`, which is the promotion log, was deleted. Bring it back: "
            f"mlflow experiments restore --experiment-id {number}"
        )
