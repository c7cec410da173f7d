"""Decide whether a round trains.

It does where something that decides its result is not what the newest candidate was made of, and
where the champion is older than `gate.max_champion_age_days`.

What training by age means: every stage runs again with the same data, params and seed (`dvc repro
--force`), in today's software and on today's machine. That is what a fingerprint cannot see: packages,
drivers and processors change under a model that nobody touches, and whether it can still be made shows
only when it is made. Where nothing of that changed, the same weights come out, and the gate calls them
as good: `gate.on_equal` says what then becomes of the newer version. Another seed would give other
weights, but better ones only by luck, and a schedule that draws seeds until one passes the gate picks
the luckiest and not the best; so the seed stays what params.yaml says.

An age counts from when the champion became one, or from the newest candidate where that is younger: one
training per span is enough, whatever its verdict was.
"""

import time
from dataclasses import dataclass

from convoy.registry.client import Version
from convoy.retraining.trigger import Upstream

INPUTS = "convoy.retrain_inputs"
"""Tag of a version that a round brought to a verdict: digest of what the round was given."""

SOURCE = "convoy.retrain_source"
"""Tag of it: fingerprint of the data's source alone."""

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Decision:
    """Say whether a round trains, and why (not).

    Attributes:
        trains: whether it does.
        why: the trigger, or what was compared.
        aged: whether age alone is the trigger, so that every stage has to run again.
    """

    trains: bool
    why: str
    aged: bool = False


def decide(
    upstream: Upstream,
    candidate: Version | None,
    champion: Version | None,
    champion_since_ms: int,
    max_age_days: float | None,
) -> Decision:
    """Compare what a round would be given with what the newest candidate was made of.

    Args:
        upstream: what there is now.
        candidate: the newest; None before the first.
        champion: None where none serves.
        champion_since_ms: moment at which it became champion.
        max_age_days: `gate.max_champion_age_days`.
    """
    if why := _news(upstream, candidate):
        return Decision(trains=True, why=why)
    if champion and candidate and max_age_days is not None:
        days = (time.time() * 1000 - champion_since_ms) / DAY_MS
        trained = (time.time() * 1000 - candidate.created_ms) / DAY_MS
        if min(days, trained) > max_age_days:
            return Decision(
                trains=True,
                why=f"{champion} is champion for {days:,.1f} days, more than gate.max_champion_age_days "
                f"({max_age_days:g}); nothing else changed, so every stage runs again with the same inputs and seed",
                aged=True,
            )
    source = f" ({upstream.address})" if upstream.address else ""
    verdict = candidate.tags.get("gate.verdict") if candidate else None
    return Decision(
        trains=False,
        why=f"the data{source}, params, code and limits are those of {candidate}, which a round has judged already"
        + (f" ({verdict})" if verdict else ""),
    )


def _news(upstream: Upstream, candidate: Version | None) -> str:
    """Name what is not as it was for the newest candidate; empty where all is."""
    if candidate is None:
        return "nothing was registered yet"
    if candidate.tags.get(INPUTS) == upstream.inputs:
        return ""
    if SOURCE not in candidate.tags:
        return f"{candidate} was not made by a round that came to a verdict"
    if candidate.tags[SOURCE] != upstream.fingerprint:
        return f"the data changed upstream since {candidate}"
    return f"params, code or limits changed since {candidate}"
