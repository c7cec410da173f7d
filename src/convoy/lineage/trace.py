"""Answer `convoy trace`: the chain of one run, the runs of one commit or hash, two runs side by side."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from convoy.core.errors import RequestError
from convoy.lineage.chain import Link, Places, chain, data_place, missing, moment
from convoy.lineage.resolve import Asked, find
from convoy.lineage.runs import COMMIT, Record, StoreError, open_records
from convoy.repo import dvc_cache, git
from convoy.tracking.settings import uri

LISTED = 20
"""Runs of one commit or hash that are listed; the rest are counted."""

ABBREVIATED = 12


def look(text: str, root: Path) -> tuple[Asked, Places]:
    """Find what a text names, in this repository and its tracking store.

    Where the store does not answer, a run that waits in the outbox is found all the same.

    Raises:
        RequestError: nothing is known of it.
        StoreError: the tracking store does not answer, and it is not in the outbox.
    """
    records = open_records(uri(), root)
    held = dvc_cache.of_repository(root)
    silent = ""
    try:
        asked = find(text, records, root, held)
    except StoreError as error:
        records = replace(records, client=None)
        try:
            asked = find(text, records, root, held)
        except RequestError:
            raise error from None
        if not asked.records:
            raise
        silent = str(error)
    return asked, Places(root, records, held, (asked.onnx, asked.sha256) if asked.onnx else None, silent)


def as_json(asked: Asked, places: Places) -> dict[str, Any]:
    """Render for `--json`: every run with its whole chain."""
    return {
        "asked": asked.text,
        "kind": asked.kind,
        "subject": asked.subject,
        "runs": [
            {
                "run_id": record.run_id,
                "mlflow_run_id": record.mlflow_run_id,
                "name": record.name,
                "status": record.status,
                "chain": [_link(link) for link in chain(record, places)],
            }
            for record in asked.records[:LISTED]
        ],
        "store_error": places.silent or None,
        "runs_left_out": max(0, len(asked.records) - LISTED),
    }


def _link(link: Link) -> dict[str, Any]:
    return {
        "name": link.name,
        "value": link.value,
        "notes": list(link.notes),
        "missing": link.missing or None,
    }


def lines(asked: Asked, places: Places) -> Iterator[str]:
    """Render for people."""
    if places.silent:
        yield f"Only what waits in the outbox is shown: {places.silent}"
        yield ""
    if len(asked.records) == 1:
        yield from _one(asked, asked.records[0], places)
        return
    if asked.records:
        yield from _many(asked)
        return
    yield f"{asked.kind} {asked.subject}: no run is known that was made from it"
    if asked.kind == "data":
        notes, lacking = data_place(asked.subject, places)
        yield from (f"  {note}" for note in (*notes, lacking) if note)
    if asked.kind == "commit":
        held = git.holders(places.root, asked.subject)
        subject = git.ask(places.root, "log", "-1", "--format=%s", asked.subject)
        yield f'  "{subject}"' + (f", in {', '.join(held[:4])}" if held else "")
        yield "  A run records the commit that is checked out when it starts: dvc repro"


ASKED_LINK = {
    "run": "convoy run",
    "version": "registered",
    "alias": "registered",
    "ONNX": "model.onnx",
    "data": "data",
    "params": "params",
    "dvc.lock": "dvc.lock",
    "commit": "git commit",
    "experiment": "experiment",
}


def _one(asked: Asked, record: Record, places: Places) -> Iterator[str]:
    """Print the chain from oldest to newest; `→` marks what was asked for."""
    links = chain(record, places)
    width = max(len(link.name) for link in links)
    mark = "MLflow run" if asked.subject == record.mlflow_run_id else ASKED_LINK[asked.kind]
    for link in links:
        sign = "→" if link.name == mark else " "
        yield f"{sign} {link.name:<{width}}  {link.value or 'none'}"
        yield from (f"  {'':<{width}}  {note}" for note in link.notes)
    lacking = list(missing(links))
    yield ""
    if not lacking:
        yield "Nothing is missing."
        if record.tag("convoy.lock"):
            yield f"To have it again: convoy trace {record.run_id} --restore ../restored"
        return
    yield "Missing:"
    yield from (f"  {text}" for text in lacking)


def _many(asked: Asked) -> Iterator[str]:
    """List runs, newest first, each with what differs from the others."""
    yield f"{asked.kind} {asked.subject}: {len(asked.records)} runs, newest first"
    without_credentials = asked.records[:LISTED]
    for record, differing in zip(without_credentials, _differing(without_credentials), strict=True):
        versions = f"  {', '.join(map(str, record.versions))}" if record.versions else ""
        yield f"  {record.run_id or record.mlflow_run_id}  {record.status:<9} {moment(record.started_ms)}  {record.name}{versions}"
        if differing:
            yield f"      {differing}"
    if len(asked.records) > LISTED:
        yield f"  and {len(asked.records) - LISTED} older"
    if len({record.tag("convoy.data_hash") for record in without_credentials} - {""}) > 1:
        yield "Their data differ: metrics of runs on different data do not compare."
    yield f"One of them: convoy trace {without_credentials[0].run_id}   Two: convoy trace {without_credentials[1].run_id} {without_credentials[0].run_id}"


def _differing(records: tuple[Record, ...]) -> Iterator[str]:
    """Name the values of each run in which these runs are not all the same."""

    def facts(record: Record) -> dict[str, str]:
        tags = {"commit": COMMIT, "data": "convoy.data_hash", "experiment": "convoy.dvc_experiment"}
        return record.params | {name: record.tag(tag)[:ABBREVIATED] for name, tag in tags.items()}

    every = [facts(record) for record in records]
    names = list(dict.fromkeys(name for one in every for name in one))
    varying = [name for name in names if len({one.get(name) for one in every}) > 1]
    for one in every:
        yield ", ".join(f"{name} {one[name]}" for name in varying if one.get(name))
