"""Resolve an id, a version, an alias, a file, a hash, a commit or an experiment's name to the runs that it belongs to."""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from convoy.core import contract, files
from convoy.core.errors import RequestError, without_credentials
from convoy.core.params import did_you_mean
from convoy.lineage.runs import Record, Records
from convoy.repo import git
from convoy.repo.dvc_cache import Cache

RUN_ID = re.compile(r"\d{4,8}(-\d{0,6}(-[0-9a-f]{0,6})?)?")
HEX = re.compile(r"[0-9a-f]{4,64}")
VERSION = re.compile(r"(models:/)?(?P<model>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>\d+))")

SHORTEST = 7
"""Digits that the beginning of a commit or a hash must have; ids of runs may be shorter."""

HASHES = (
    ("data", contract.DATA_HASH),
    ("data", contract.DATA_MD5),
    ("params", contract.PARAMS_HASH),
    ("ONNX", contract.ONNX_SHA256),
    ("dvc.lock", contract.LOCK),
)

NEAREST = 3
"""Ids named for an unknown one."""


@dataclass(frozen=True)
class Match:
    """Hold what a text resolved to.

    Attributes:
        text: as typed.
        kind: `run`, `version`, `alias`, `ONNX`, `data`, `params`, `dvc.lock`, `commit` or `experiment`.
        subject: its full name.
        records: the runs that it belongs to, newest first; may be empty.
        onnx: the file, if one was named.
        sha256: of that file.
    """

    text: str
    kind: str
    subject: str
    records: tuple[Record, ...]
    onnx: Path | None = None
    sha256: str = ""


def resolve(text: str, records: Records, root: Path, cache: Cache) -> Match:
    """Resolve a text.

    Raises:
        RequestError: it matches nothing, with the nearest names; or it is the beginning of several ids.
        StoreError: the tracking store does not answer.
    """
    name = text.strip()
    if name.startswith("runs:/"):
        match = _run(name.removeprefix("runs:/"), records)
    elif version := VERSION.fullmatch(name):
        match = _version(name, version, records) or _file(name, records)
    else:
        match = _file(name, records) or _run(name, records) or _alias(name, records)
        match = match or _experiment(name, records, root) or _commit(name, records, root)
        match = match or _hash(name, records, cache)
    if match is None:
        raise RequestError(_not_found(name, records, root))
    return replace(match, text=text, records=tuple(records.with_versions(record) for record in match.records))


def _run(text: str, records: Records) -> Match | None:
    for key, form in ((contract.RUN_ID, RUN_ID), ("run_id", HEX)):
        if form.fullmatch(text) and (
            runs := records.where(key, text) or records.where(key, text, prefix=True)
        ):
            names = [record.run_id if key == contract.RUN_ID else record.mlflow_run_id for record in runs]
            if len(runs) > 1:
                raise RequestError(_ambiguous(text, "runs", names))
            return Match(text, "run", names[0], tuple(runs))
    return None


def _version(text: str, parts: re.Match[str], records: Records) -> Match | None:
    model, alias, number = parts["model"], parts["alias"], parts["number"]
    models = records.models()
    if model not in models:
        if not text.startswith("models:/") and "/" in text:
            return None  # may be a path
        known = did_you_mean(model, models) if models else "; no model is registered"
        raise RequestError(
            f"registered model `{model}` not found in {without_credentials(records.uri)}{known}"
        )
    if alias:
        if alias not in models[model]:
            known = did_you_mean(alias, models[model]) if models[model] else "; it has no aliases"
            raise RequestError(f"model {model} has no alias `{alias}`{known}")
        number = models[model][alias]
    runs = records.numbers(model)
    if number not in runs:
        versions = ", ".join(sorted(runs, key=int)) or "none"
        raise RequestError(f"model {model} has no version {number}; its versions: {versions}")
    owners = records.where("run_id", runs[number])[:1]
    return Match(text, "alias" if alias else "version", f"{model}/{number}", tuple(owners))


def _alias(text: str, records: Records) -> Match | None:
    for model, aliases in records.models().items():
        if text in aliases and (parts := VERSION.fullmatch(f"{model}@{text}")):
            return _version(text, parts, records)
    return None


def _file(text: str, records: Records) -> Match | None:
    path = Path(text).expanduser()
    if not path.exists() or not ("/" in text or path.suffix):
        return None  # a folder such as `data` may have the name of a branch
    if path.is_dir() or path.suffix != ".onnx":
        raise RequestError(
            f"{text} is not an ONNX file. Name one, such as build/deploy/model.onnx, or an id."
        )
    identity, sha256 = _metadata(path), files.sha256(path)
    runs = records.where(contract.RUN_ID, identity.get("run_id", ""))
    runs = runs or records.where(contract.ONNX_SHA256, sha256)
    if not runs and not identity:
        raise RequestError(
            f"{text} was not exported by Convoy: it names no run, and no run has its sha256 {sha256}"
        )
    if not runs:
        tags = {contract.GIT_COMMIT: identity["git_commit"], contract.DATA_HASH: identity["data_hash"]}
        tags |= {contract.PARAMS_HASH: identity["params_hash"], contract.ONNX_SHA256: sha256}
        runs = [Record(identity["run_id"], "", "", "", 0, tags, {}, {})]
    return Match(text, "ONNX", sha256, tuple(runs), path, sha256)


def _metadata(path: Path) -> dict[str, str]:
    """Read the identity that Convoy writes into its models; empty for a model of others."""
    import onnx  # noqa: PLC0415 (seconds of imports that only this needs)

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises what its parser does
        raise RequestError(
            f"{path} cannot be read as ONNX: {error!s:.200}. Was it copied completely?"
        ) from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if contract.RUN_ID not in metadata:
        return {}
    return {key: metadata[f"convoy.{key}"] for key in contract.IDENTITY}


def _experiment(text: str, records: Records, root: Path) -> Match | None:
    experiments = git.experiments(root)
    by_commit = {number: name for name, number in experiments.items()}
    name = by_commit.get(git.commit(root, text), text) if HEX.fullmatch(text) else text
    runs = records.where(contract.DVC_EXPERIMENT, name)
    return Match(text, "experiment", name, tuple(runs)) if runs or name in experiments else None


def _commit(text: str, records: Records, root: Path) -> Match | None:
    digits = HEX.fullmatch(text) and len(text) >= SHORTEST
    # A word of few digits is no commit, though git would find one: `1234` may begin a run's id.
    number = git.commit(root, text) if digits or not HEX.fullmatch(text) else ""
    if number:
        return Match(text, "commit", number, tuple(records.where(contract.GIT_COMMIT, number)))
    return _prefix(text, "commit", contract.GIT_COMMIT, records) if digits else None


def _hash(text: str, records: Records, cache: Cache) -> Match | None:
    digits = text.removesuffix(".dir")
    if not (HEX.fullmatch(digits) and len(digits) >= SHORTEST):
        return None
    for kind, key in HASHES:
        if match := _prefix(digits, kind, key, records):
            return match
    for md5 in (digits, f"{digits}.dir"):
        if len(digits) == 32 and cache.path(md5).exists():
            return Match(text, "data", md5, ())
    return None


def _prefix(text: str, kind: str, key: str, records: Records) -> Match | None:
    runs = records.where(key, text, prefix=True)
    values = {record.tag(key) for record in runs}
    if len(values) > 1:
        raise RequestError(_ambiguous(text, f"{kind}s", sorted(values)))
    return Match(text, kind, values.pop(), tuple(runs)) if runs else None


def _ambiguous(text: str, kind: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"`{text}` matches several {kind}: {', '.join(names[:5])}{more}. Type more digits."


def _not_found(text: str, records: Records, root: Path) -> str:
    latest, models = records.latest(200), records.models()
    ids = ((run.run_id, run.mlflow_run_id, run.tag(contract.DVC_EXPERIMENT)) for run in latest)
    names = [name for own in ids for name in own if name]
    names += [*git.experiments(root), *models, *(alias for aliases in models.values() for alias in aliases)]
    near = difflib.get_close_matches(text, dict.fromkeys(names), n=NEAREST, cutoff=0.6)
    message = f"`{text}` not found in {without_credentials(records.uri)}, git and DVC's cache"
    if near:
        return f"{message}. Nearest: {', '.join(near)}"
    if latest:
        known = ", ".join(f"{run.id} ({run.name})" for run in latest[:NEAREST])
        return f"{message}. The latest runs: {known}"
    return f"{message}. No run exists yet: `dvc repro` makes one. MLFLOW_TRACKING_URI selects another store."
