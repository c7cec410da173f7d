"""Decide whether a round trains: compare the source of the data and all other inputs with those of the newest candidate.

The source is not downloaded; its fingerprint is compared: of a local source DVC's hash of the files, of a web server the
ETag, of a bucket the ETags or versions in its listing, of a path in another git repository that repository's commit.

A round also trains if the champion is older than `gate.max_champion_age_days`: every stage runs again with the same
data, params and seed (`dvc repro --force`), with today's software and machine, whose changes no fingerprint shows. If
nothing of that changed, the same weights come out, and `gate.on_equal` decides about the newer version. The seed stays:
a schedule that draws seeds until one passes the gate picks the luckiest and not the best model. The age counts from when
the champion became champion, or from the newest candidate if that is younger: one training per span is enough, whatever
its verdict.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import contract, params, pipeline, yaml
from convoy.core.errors import RequestError, without_credentials
from convoy.gate.settings import TRIGGER
from convoy.registry.client import Version
from convoy.repo import dvc
from convoy.retraining.worktree import DATA, RoundError, follows_source

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Upstream:
    """The state of the data's source, and of everything else that a round depends on."""

    address: str  # of the source as data.dvc has it, without a password; empty if it has none
    fingerprint: str
    changed: bool  # whether the source has other data than data.dvc names
    inputs: str  # digest of the source, params, code and commands of the stages, and the limits of the gate
    hint: str = ""  # a remark about this source


@dataclass(frozen=True)
class Decision:
    """Whether a round trains, and why; `aged` if age is the only trigger, so that every stage has to run again."""

    trains: bool
    why: str
    aged: bool = False


def look(tree: Path) -> Upstream:
    """Read the fingerprints of the source that data.dvc names and of all other inputs of the stages, as committed.

    Raises:
        RequestError: there is no data.dvc, or its source is of a kind without a fingerprint.
        RoundError: the source does not answer.
    """
    if not (tree / DATA).exists():
        raise RequestError(
            f"{DATA} does not exist, so the source of the data is unknown. Run `convoy data use PATH-OR-URL`, then commit "
            f"{DATA}."
        )
    data = pipeline.data_import(tree)
    address, hint = without_credentials(data.address), ""
    if follows_source(tree / DATA):
        try:
            source = dvc.import_source(tree, DATA)
        except dvc.DvcError as error:
            raise RoundError(
                f"the source of the data does not answer: {address}\n{error}\n"
                f"Does it exist, and may this machine read it? To try by hand: `dvc update {DATA}`. To change the source: "
                "`convoy data use`."
            ) from error
        address, recorded, now = source.address, source.recorded, source.current
        if not source.has_fingerprint:
            hint = (
                f"`{address}` sends no ETag, so neither a round nor `dvc update` can detect changes at the source. Configure "
                "the server to send ETags, or import from a bucket or a folder."
            )
    else:
        recorded = now = data.md5
        hint = (
            f"`{DATA}` has no source, so new data come only with a commit of it. To give it a source: "
            "`convoy data use PATH-OR-URL`"
        )
        if data.frozen:
            hint = f"`{DATA}` is frozen, so its source is not checked. To change that: `dvc unfreeze {DATA}`, then commit it."
    # Changed limits may give another verdict on the same model.
    gate: dict[str, Any] = yaml.read(tree / params.PARAMS_FILE).get("gate") or {}
    limits = {name: limit for name, limit in gate.items() if name != TRIGGER}
    inputs = params.digest({"source": now, "stages": dvc.stage_inputs(tree), "gate": limits})
    return Upstream(address, params.digest({"source": now}), recorded != now, inputs, hint)


def decide(
    upstream: Upstream,
    candidate: Version | None,
    champion: Version | None,
    champion_since_ms: int,
    max_age_days: float | None,
) -> Decision:
    """Compare the inputs of a round with those of the newest candidate, and the champion's age with its limit."""
    if candidate is None:
        return Decision(trains=True, why="no version is registered yet")
    if contract.RETRAIN_SOURCE not in candidate.tags:
        return Decision(trains=True, why=f"no round has judged {candidate}")
    if candidate.tags.get(contract.RETRAIN_INPUTS) != upstream.inputs:
        same_data = candidate.tags[contract.RETRAIN_SOURCE] == upstream.fingerprint
        changed = "params, code or limits" if same_data else "the data"
        return Decision(trains=True, why=f"{changed} changed since {candidate}")
    if champion and max_age_days is not None:
        now_ms = time.time() * 1000
        days, trained = ((now_ms - ms) / DAY_MS for ms in (champion_since_ms, candidate.created_ms))
        if min(days, trained) > max_age_days:
            why = (
                f"{champion} has been champion for {days:,.1f} days, more than gate.max_champion_age_days "
                f"({max_age_days:g}); nothing else changed, so every stage runs again with the same inputs and seed"
            )
            return Decision(trains=True, why=why, aged=True)
    source = f" ({upstream.address})" if upstream.address else ""
    verdict = candidate.tags.get(contract.VERDICT)
    why = f"the data{source}, params, code and limits are those of {candidate}, which has been judged"
    return Decision(trains=False, why=why + (f" (verdict: {verdict})" if verdict else ""))
