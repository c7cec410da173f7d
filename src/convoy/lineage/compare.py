"""Set two runs side by side, link by link; warn where their data differ, since then metrics do not compare."""

from collections.abc import Iterator
from typing import Any

from convoy.core.errors import RequestError
from convoy.lineage.chain import Places
from convoy.lineage.resolve import Asked
from convoy.lineage.runs import COMMIT, Record
from convoy.repo import git

CHOOSING = ("data.splits", "data.max_quarantined")
"""Params of `prepare` that decide which images are in the test split; the others change how they are packed."""

OVERRIDDEN = "param."
"""Begins the tag that holds a param's value where MLflow has an earlier one."""

SHORT = 12
NAMED = 5
FIRST = ("test/", "deploy/", "val/", "best/", "train/")
"""Order in which metrics are shown; the others follow."""


def only_run(asked: Asked) -> Record:
    """Take the run that a text names.

    Raises:
        RequestError: it names several, or none.
    """
    if len(asked.records) == 1:
        return asked.records[0]
    if not asked.records:
        raise RequestError(f"{asked.kind} {asked.text} belongs to no run that is known")
    names = ", ".join(record.run_id or record.mlflow_run_id for record in asked.records[:NAMED])
    more = f" and {len(asked.records) - NAMED} more" if len(asked.records) > NAMED else ""
    raise RequestError(
        f"{asked.kind} {asked.text} belongs to {len(asked.records)} runs. Name one of them: {names}{more}"
    )


def compare(before: Record, after: Record, places: Places) -> dict[str, Any]:
    """Compare two runs; ready for JSON.

    Returns:
        `runs`, and for each of `commit`, `data`, `params`, `metrics`, `onnx` and `lock` what differs.
    """
    commits = [record.tag(COMMIT) for record in (before, after)]
    known = all(git.commit(places.root, number) for number in commits if number)
    return {
        "runs": [
            {"run_id": one.run_id, "mlflow_run_id": one.mlflow_run_id, "name": one.name}
            for one in (before, after)
        ],
        "commit": {
            "old": commits[0],
            "new": commits[1],
            "dirty": [record.tag("convoy.git_dirty") == "true" for record in (before, after)],
            "diff": f"git diff {commits[0][:10]} {commits[1][:10]}"
            if commits[0] != commits[1] and known
            else None,
        },
        "params": _differing(_params(before), _params(after)),
        "data": _data(before, after, places),
        "metrics": _differing(_metrics(before), _metrics(after)),
        "onnx": _tag(before, after, "convoy.onnx_sha256"),
        "lock": _tag(before, after, "convoy.lock"),
    }


def _params(record: Record) -> dict[str, str]:
    changed = {
        key.removeprefix(OVERRIDDEN): value
        for key, value in record.tags.items()
        if key.startswith(OVERRIDDEN)
    }
    return record.params | changed


def _metrics(record: Record) -> dict[str, float]:
    return {
        name: value for name, value in record.metrics.items() if not name.startswith(("system/", "step/"))
    }


def _differing(old: dict[str, Any], new: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = sorted({*old, *new})
    return {
        name: {"old": old.get(name), "new": new.get(name)} for name in names if old.get(name) != new.get(name)
    }


def _tag(before: Record, after: Record, name: str) -> dict[str, Any]:
    old, new = before.tag(name), after.tag(name)
    return {"old": old, "new": new, "same": old == new and bool(old)}


def _data(before: Record, after: Record, places: Places) -> dict[str, Any]:
    """Compare data: the same; packed otherwise from the same delivery; or others, of which metrics do not compare."""
    packed = _tag(before, after, "convoy.data_hash")
    delivered = _tag(before, after, "convoy.data_md5")
    if not (packed["old"] and packed["new"]):
        return {"verdict": "unknown", "packed": packed, "delivered": delivered}
    if packed["same"]:
        return {"verdict": "same", "packed": packed, "delivered": delivered}
    params = _differing(_params(before), _params(after))
    chosen = [name for name in params if name.startswith(CHOOSING)]
    if delivered["same"] and not chosen:
        return {"verdict": "packed otherwise", "packed": packed, "delivered": delivered}
    then, now = (places.cache.members(delivered[side]) for side in ("old", "new"))
    changes: dict[str, Any] = {"verdict": "other", "packed": packed, "delivered": delivered}
    if then and now:
        changes["members"] = {
            "added": len(now.keys() - then.keys()),
            "removed": len(then.keys() - now.keys()),
            "changed": sum(then[name] != now[name] for name in then.keys() & now.keys()),
        }
    return changes


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Render for people; the warning stands last, where the eye is."""
    for sign, run in zip("AB", found["runs"], strict=True):
        yield f"{sign}  {run['run_id'] or run['mlflow_run_id']}  {run['name']}"
    yield ""
    yield from _commit_lines(found["commit"])
    yield from _data_lines(found["data"])
    yield from _table("params", found["params"], ordered=sorted(found["params"]))
    yield from _table("metrics", found["metrics"], ordered=sorted(found["metrics"], key=_rank))
    for key, name in (("onnx", "model.onnx"), ("lock", "dvc.lock")):
        yield f"{name:<11} {_short(found[key])}"
    if found["data"]["verdict"] in ("other", "unknown"):
        yield ""
        yield from _warning(found)


def _commit_lines(commit: dict[str, Any]) -> Iterator[str]:
    if commit["old"] == commit["new"]:
        yield f"{'git commit':<11} the same, {commit['old'][:10] or 'none'}"
    else:
        old, new = commit["old"][:10] or "none", commit["new"][:10] or "none"
        yield f"{'git commit':<11} {old} → {new}  {commit['diff'] or 'one of them is not in this repository'}"
    dirty = [sign for sign, is_dirty in zip("AB", commit["dirty"], strict=True) if is_dirty]
    if dirty:
        yield f"{'':<11} {' and '.join(dirty)} had changes that were not committed: pipeline/workspace.diff of the run"


def _data_lines(data: dict[str, Any]) -> Iterator[str]:
    delivered, packed = data["delivered"], data["packed"]
    match data["verdict"]:
        case "same":
            yield f"{'data':<11} the same, {packed['old'][:SHORT]}"
        case "packed otherwise":
            yield f"{'data':<11} the same delivery and the same test images, packed otherwise: params data.* differ"
        case "unknown":
            yield f"{'data':<11} unknown: a run names none"
        case _:
            yield f"{'data':<11} DIFFER: {packed['old'][:SHORT]} → {packed['new'][:SHORT]}"
            if delivered["same"]:
                yield f"{'':<11} the same delivery, split otherwise: params data.* differ"
            elif members := data.get("members"):
                counts = ", ".join(f"{count:,} {what}" for what, count in members.items() if count)
                yield f"{'':<11} of the delivered files: {counts}"


def _table(title: str, entries: dict[str, dict[str, Any]], ordered: list[str]) -> Iterator[str]:
    if not entries:
        yield f"{title:<11} the same"
        return
    width = max(map(len, entries))
    for number, name in enumerate(ordered):
        old, new = entries[name]["old"], entries[name]["new"]
        change = f"  ({new - old:+.4g})" if isinstance(old, float) and isinstance(new, float) else ""
        yield f"{title if not number else '':<11} {name:<{width}}  {_value(old)} → {_value(new)}{change}"


def _value(value: object) -> str:
    if value is None:
        return "(none)"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _rank(name: str) -> tuple[int, str]:
    return next((rank for rank, start in enumerate(FIRST) if name.startswith(start)), len(FIRST)), name


def _short(entry: dict[str, Any]) -> str:
    if entry["same"]:
        return f"the same, {entry['old'][:SHORT]}"
    return f"{entry['old'][:SHORT] or 'none'} → {entry['new'][:SHORT] or 'none'}"


def _warning(found: dict[str, Any]) -> Iterator[str]:
    if found["data"]["verdict"] == "unknown":
        yield "WARNING: whether both saw the same data is not known, so their metrics may not compare."
        return
    yield "WARNING: the two were trained and measured on different data, so their metrics do not compare."
    second = found["runs"][1]["run_id"]
    yield (
        f"To compare the code and params alone: convoy trace {second} --restore ../other, put the other's data there, "
        "and `dvc repro`. To keep it from happening: dvc freeze data.dvc (docs/data.md)."
    )
