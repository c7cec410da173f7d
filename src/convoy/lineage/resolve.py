"""Find the runs that anything with an identity belongs to: an id, a version, a file, a hash, a commit, a name."""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from convoy.core import files
from convoy.core.errors import RequestError, without_credentials
from convoy.core.params import did_you_mean
from convoy.lineage.runs import COMMIT, Record, Records
from convoy.repo import git
from convoy.repo.dvc_cache import Cache

RUN_ID = re.compile(r"\d{4,8}(-\d{0,6}(-[0-9a-f]{0,6})?)?")
HEX = re.compile(r"[0-9a-f]{4,64}")
VERSION = re.compile(r"(models:/)?(?P<model>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>\d+))")

SHORTEST = 7
"""Digits that the beginning of a commit or a hash must have; ids of runs may be shorter."""

HASHES = (
    ("data", "convoy.data_hash"),
    ("data", "convoy.data_md5"),
    ("params", "convoy.params_hash"),
    ("ONNX", "convoy.onnx_sha256"),
    ("dvc.lock", "convoy.lock"),
)

NEAREST = 3
"""Ids named where one is unknown."""


@dataclass(frozen=True)
class Asked:
    """Say what a text turned out to be.

    Attributes:
        text: as typed.
        kind: `run`, `version`, `alias`, `ONNX`, `data`, `params`, `dvc.lock`, `commit` or `experiment`.
        subject: its full name.
        records: the runs that it belongs to, newest first; none where no run is known of it.
        onnx: the file, where one was named.
        sha256: of that file.
    """

    text: str
    kind: str
    subject: str
    records: tuple[Record, ...]
    onnx: Path | None = None
    sha256: str = ""


def find(text: str, records: Records, root: Path, cache: Cache) -> Asked:
    """Find out what a text names.

    Raises:
        RequestError: nothing is known of it, with the nearest that is; or it begins several ids.
        StoreError: the tracking store does not answer.
    """
    asked = text.strip()
    if asked.startswith("runs:/"):
        found = _run(asked.removeprefix("runs:/"), records)
    elif match := VERSION.fullmatch(asked):
        found = _version(asked, match, records) or _file(asked, records)
    else:
        found = _file(asked, records) or _run(asked, records) or _alias(asked, records)
        found = found or _experiment(asked, records, root) or _commit(asked, records, root)
        found = found or _hash(asked, records, cache)
    if found is None:
        raise RequestError(_unknown(asked, records, root))
    return replace(found, text=text, records=tuple(records.with_versions(record) for record in found.records))


def _run(text: str, records: Records) -> Asked | None:
    for key, form in (("convoy.run_id", RUN_ID), ("run_id", HEX)):
        if not form.fullmatch(text):
            continue
        if found := records.where(key, text) or records.where(key, text, begins=True):
            names = [record.run_id if key == "convoy.run_id" else record.mlflow_run_id for record in found]
            if len(found) > 1:
                raise RequestError(_ambiguous(text, "runs", names))
            return Asked(text, "run", names[0], tuple(found))
    return None


def _version(text: str, match: re.Match[str], records: Records) -> Asked | None:
    model, alias, number = match["model"], match["alias"], match["number"]
    models = records.models()
    if model not in models:
        if not text.startswith("models:/") and "/" in text:
            return None  # may be a path
        there = did_you_mean(model, models) if models else "; none is registered"
        raise RequestError(f"{without_credentials(records.uri)} has no registered model `{model}`{there}")
    if alias:
        if alias not in models[model]:
            there = did_you_mean(alias, models[model]) if models[model] else "; it has none"
            raise RequestError(f"model {model} has no alias `{alias}`{there}")
        number = models[model][alias]
    runs = records.numbers(model)
    if number not in runs:
        known = ", ".join(sorted(runs, key=int)) or "none"
        raise RequestError(f"model {model} has no version {number}; there are: {known}")
    record = records.of_run(runs[number]) if runs[number] else None
    return Asked(text, "alias" if alias else "version", f"{model}/{number}", (record,) if record else ())


def _alias(text: str, records: Records) -> Asked | None:
    for model, aliases in records.models().items():
        if text in aliases and (match := VERSION.fullmatch(f"{model}@{text}")):
            return _version(text, match, records)
    return None


def _file(text: str, records: Records) -> Asked | None:
    path = Path(text).expanduser()
    if not path.exists() or not ("/" in text or path.suffix):
        return None  # a folder such as `data` may have the name of a branch
    if path.is_dir() or path.suffix != ".onnx":
        raise RequestError(f"{text} is no ONNX file. Name one, such as build/deploy/model.onnx, or an id.")
    said, sha256 = _metadata(path), files.sha256(path)
    found = records.where("convoy.run_id", said.get("run_id", "")) or records.where(
        "convoy.onnx_sha256", sha256
    )
    if not found and not said:
        raise RequestError(
            f"{text} was not exported by Convoy: it names no run, and no run has its sha256 {sha256}"
        )
    if not found:
        tags = {COMMIT: said["git_commit"], "convoy.data_hash": said["data_hash"]}
        tags |= {"convoy.params_hash": said["params_hash"], "convoy.onnx_sha256": sha256}
        found = [Record(said["run_id"], "", "", "", 0, tags, {}, {})]
    return Asked(text, "ONNX", sha256, tuple(found), path, sha256)


def _metadata(path: Path) -> dict[str, str]:
    """Read the identity that Convoy writes into its models; empty in one that it did not write."""
    import onnx  # noqa: PLC0415 (seconds of imports that only this needs)

    from convoy.core.contract import IDENTITY  # noqa: PLC0415 (seconds of imports that only this needs)

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises what its parser does
        raise RequestError(f"{path} cannot be read as ONNX: {error!s:.200}. Was it copied whole?") from error
    held = {entry.key: entry.value for entry in model.metadata_props}
    return {key: held[f"convoy.{key}"] for key in IDENTITY} if "convoy.run_id" in held else {}


def _experiment(text: str, records: Records, root: Path) -> Asked | None:
    known = git.experiments(root)
    by_commit = {number: name for name, number in known.items()}
    name = by_commit.get(git.commit(root, text), text) if HEX.fullmatch(text) else text
    found = records.where("convoy.dvc_experiment", name)
    return Asked(text, "experiment", name, tuple(found)) if found or name in known else None


def _commit(text: str, records: Records, root: Path) -> Asked | None:
    digits = HEX.fullmatch(text) and len(text) >= SHORTEST
    # A word of few digits is no commit, though git would find one: `1234` may begin a run's id.
    number = git.commit(root, text) if digits or not HEX.fullmatch(text) else ""
    if number:
        return Asked(text, "commit", number, tuple(records.where(COMMIT, number)))
    return _begun(text, "commit", COMMIT, records) if digits else None


def _hash(text: str, records: Records, cache: Cache) -> Asked | None:
    digits = text.removesuffix(".dir")
    if not (HEX.fullmatch(digits) and len(digits) >= SHORTEST):
        return None
    for kind, key in HASHES:
        if found := _begun(digits, kind, key, records):
            return found
    for md5 in (digits, f"{digits}.dir"):
        if len(digits) == 32 and cache.path(md5).exists():
            return Asked(text, "data", md5, ())
    return None


def _begun(text: str, kind: str, key: str, records: Records) -> Asked | None:
    found = records.where(key, text, begins=True)
    values = {record.tag(key) for record in found}
    if len(values) > 1:
        raise RequestError(_ambiguous(text, f"{kind}s", sorted(values)))
    return Asked(text, kind, values.pop(), tuple(found)) if found else None


def _ambiguous(text: str, what: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"`{text}` begins several {what}: {', '.join(names[:5])}{more}. Give more of it."


def _unknown(text: str, records: Records, root: Path) -> str:
    latest = records.latest(200)
    own = ((one.run_id, one.mlflow_run_id, one.tag("convoy.dvc_experiment")) for one in latest)
    names = [name for one in own for name in one if name]
    names += [*git.experiments(root), *records.models()]
    names += [alias for aliases in records.models().values() for alias in aliases]
    near = difflib.get_close_matches(text, dict.fromkeys(names), n=NEAREST, cutoff=0.6)
    why = f"nothing is known of `{text}` in {without_credentials(records.uri)}, git and DVC's cache"
    if near:
        return f"{why}. Nearest: {', '.join(near)}"
    if latest:
        known = ", ".join(f"{one.run_id or one.mlflow_run_id} ({one.name})" for one in latest[:NEAREST])
        return f"{why}. The latest runs: {known}"
    return f"{why}. No run is there yet: `dvc repro` makes one, MLFLOW_TRACKING_URI names another store."
