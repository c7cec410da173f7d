"""Compare two runs link by link; warn if their data differ, since then their metrics are not comparable."""

from collections.abc import Iterator, Mapping
from typing import Any

from convoy.core import contract
from convoy.core.console import table
from convoy.core.errors import RequestError, listed
from convoy.lineage.runs import Match, Record
from convoy.lineage.trace import DIFF, Sources, restore_command
from convoy.repo import git

CHOOSING = ("data.splits", "data.max_quarantined")
"""Params of `prepare` that decide which images are in the test split; the others change how they are packed."""

OVERRIDDEN = "param."  # begins the tag that holds a param's value where MLflow has an earlier value
FIRST = ("test/", "deploy/", "val/", "best/", "train/")  # order in which metrics are shown; the others follow
SHORT, NAMED = 12, 5  # digits of a hash; runs


def only_run(match: Match) -> Record:
    """Take the run of a match.

    Raises:
        RequestError: it belongs to several runs, or to none.
    """
    if len(match.records) == 1:
        return match.records[0]
    if not match.records:
        raise RequestError(f"{match.kind} {match.text} belongs to no run")
    names = listed([record.id for record in match.records], NAMED)
    raise RequestError(
        f"{match.kind} {match.text} belongs to {len(match.records)} runs. Name one of them: {names}"
    )


def compare(before: Record, after: Record, sources: Sources) -> dict[str, Any]:
    """Compare two runs; ready for JSON.

    Returns:
        `runs`, and for each of `commit`, `data`, `params`, `metrics`, `onnx` and `lock` what differs.
    """
    runs = (before, after)
    old, new = (record.tag(contract.GIT_COMMIT) for record in runs)
    data = _data(before, after, sources)
    known = all(git.commit(sources.root, number) for number in (old, new) if number)
    return {
        "runs": [
            {"run_id": record.run_id, "mlflow_run_id": record.mlflow_run_id, "name": record.name}
            for record in runs
        ],
        "commit": {
            "old": old,
            "new": new,
            "dirty": [record.tag(contract.GIT_DIRTY) == "true" for record in runs],
            "diff": f"git diff {old[:10]} {new[:10]}" if old != new and known else None,
        },
        "params": _differences(*map(_params, runs)),
        "data": data,
        "metrics": _differences(*map(_metrics, runs)),
        "onnx": _tag(before, after, contract.ONNX_SHA256),
        "lock": _tag(before, after, contract.LOCK),
        "restore": restore_command(after, sources, "../other") if data["verdict"] == "other" else None,
    }


def _params(record: Record) -> dict[str, str]:
    tags = record.tags.items()
    return record.params | {
        key.removeprefix(OVERRIDDEN): value for key, value in tags if key.startswith(OVERRIDDEN)
    }


def _metrics(record: Record) -> dict[str, float]:
    metrics = record.metrics.items()
    return {name: value for name, value in metrics if not name.startswith(("system/", "step/"))}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    names = sorted({*old, *new})
    return {
        name: {"old": old.get(name), "new": new.get(name)} for name in names if old.get(name) != new.get(name)
    }


def _tag(before: Record, after: Record, name: str) -> dict[str, Any]:
    old, new = before.tag(name), after.tag(name)
    return {"old": old, "new": new, "same": old == new and bool(old)}


def _data(before: Record, after: Record, sources: Sources) -> dict[str, Any]:
    """Compare data: equal; packed differently from the same delivery; or other, so that metrics are not comparable."""
    packed, delivered = (_tag(before, after, tag) for tag in (contract.DATA_HASH, contract.DATA_MD5))
    compared: dict[str, Any] = {"verdict": "other", "packed": packed, "delivered": delivered}
    if not (packed["old"] and packed["new"]):
        return compared | {"verdict": "unknown"}
    if packed["same"]:
        return compared | {"verdict": "same"}
    resplit = any(name.startswith(CHOOSING) for name in _differences(_params(before), _params(after)))
    if delivered["same"] and not resplit:
        return compared | {"verdict": "packed otherwise"}
    then, now = (sources.cache.members(delivered[side]) for side in ("old", "new"))
    if then and now:
        compared["members"] = {
            "added": len(now.keys() - then.keys()),
            "removed": len(then.keys() - now.keys()),
            "changed": sum(then[name] != now[name] for name in then.keys() & now.keys()),
        }
    return compared


def lines(compared: dict[str, Any]) -> Iterator[str]:
    """Render for people; the warning comes last, where it is seen."""
    for sign, run in zip("AB", compared["runs"], strict=True):
        yield f"{sign}  {run['run_id'] or run['mlflow_run_id']}  {run['name']}"
    yield ""
    sections = {
        "git commit": _commit_lines(compared["commit"]),
        "data": _data_lines(compared["data"]),
        "params": _difference_lines(compared["params"], sorted(compared["params"])),
        "metrics": _difference_lines(compared["metrics"], sorted(compared["metrics"], key=_rank)),
        "model.onnx": [_short(compared["onnx"])],
        "dvc.lock": [_short(compared["lock"])],
    }
    rows = [
        (title if not number else "", line)
        for title, own in sections.items()
        for number, line in enumerate(own)
    ]
    yield table(("", ""), rows)
    if compared["data"]["verdict"] == "unknown":
        yield "\nWARNING: it is not recorded whether both used the same data, so their metrics may not be comparable."
    elif compared["data"]["verdict"] == "other":
        yield "\nWARNING: the runs were trained and measured on different data, so their metrics are not comparable."
        yield (
            f"To compare code and params only: {compared['restore']}, put the "
            "other run's data there, and `dvc repro`. To keep data from changing: dvc freeze data.dvc (docs/data.md)."
        )


def _commit_lines(commit: dict[str, Any]) -> Iterator[str]:
    old, new = (commit[side][:10] or "none" for side in ("old", "new"))
    if old == new:
        yield f"the same, {old}"
    else:
        yield f"{old} → {new}  {commit['diff'] or 'a commit is not in this repository'}"
    if dirty := [sign for sign, is_dirty in zip("AB", commit["dirty"], strict=True) if is_dirty]:
        yield f"{' and '.join(dirty)} had uncommitted changes: artifact {DIFF}"


def _data_lines(data: dict[str, Any]) -> Iterator[str]:
    old, new = (data["packed"][side][:SHORT] for side in ("old", "new"))
    match data["verdict"]:
        case "same":
            yield f"the same, {old}"
        case "packed otherwise":
            yield "the same delivery and test images, packed differently: params data.* differ"
        case "unknown":
            yield "unknown: a run has no data hash"
        case _:
            yield f"DIFFER: {old} → {new}"
            if data["delivered"]["same"]:
                yield "the same delivery, split differently: params data.* differ"
            elif members := data.get("members"):
                counts = ", ".join(f"{count:,} {kind}" for kind, count in members.items() if count)
                yield f"of the delivered files: {counts}"


def _difference_lines(entries: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    if not entries:
        return ["the same"]
    rows = []
    for name in names:
        old, new = entries[name]["old"], entries[name]["new"]
        change = f"  ({new - old:+.4g})" if isinstance(old, float) and isinstance(new, float) else ""
        rows.append((name, f"{_value(old)} → {_value(new)}{change}"))
    return table(("", ""), rows).splitlines()


def _value(value: object) -> str:
    if value is None:
        return "(none)"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _rank(name: str) -> tuple[int, str]:
    return next((rank for rank, start in enumerate(FIRST) if name.startswith(start)), len(FIRST)), name


def _short(entry: dict[str, Any]) -> str:
    old, new = (entry[side][:SHORT] or "none" for side in ("old", "new"))
    return f"the same, {old}" if entry["same"] else f"{old} → {new}"
