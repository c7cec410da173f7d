"""The tables of the report, each as Markdown; empty where there is nothing to list."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from convoy.energy.meter import STAGES, format_energy
from convoy.gate import written
from convoy.gate.result import ClassFigures, Flip, GateResult
from convoy.retraining.data_diff import Changes, Example
from convoy.retraining.escaped import code, link, prose
from convoy.retraining.facts import Facts, Identity

IDENTITY = {
    "commit": "git commit (code and params)",
    "branch": "branch of this round",
    "lock_commit": "its commit with dvc.lock",
    "data_md5": "data, as delivered",
    "data_hash": "data, as packed",
    "params_hash": "params",
    "run_id": "Convoy run",
    "mlflow_run_id": "MLflow run",
    "version": "registered version",
    "onnx_sha256": "model.onnx, sha256",
    "lock_sha256": "dvc.lock, sha256",
}
"""Each part of `facts.Identity`, in words."""

FOLDED = 20
"""Rows up to which a table of classes stands open."""


def about(facts: Facts, sentence: int) -> str:
    """Say when the round ran, on what, and why it trained."""
    began = datetime.fromisoformat(facts.started).strftime("%Y-%m-%d %H:%M UTC")
    rows = [("began", f"{began}, took {duration(facts.seconds)}")]
    if facts.trigger:
        rows.append(("trained because", prose(facts.trigger, sentence)))
    if facts.source:
        rows.append(("data from", code(facts.source, 200)))
    if facts.incomplete_step and facts.outcome != "failed":
        rows.append(("ended in step", code(facts.incomplete_step)))
    if facts.job:
        rows.append(("job", link(facts.job)))
    return table(("Round", ""), rows)


def criteria(judgement: GateResult, sentence: int) -> str:
    """List what was asked, what is breached first and in bold."""
    rows = []
    for one in written.ordered(judgement.criteria):
        found, limit = written.sides(one)
        title, outcome = prose(one.title[:1].upper() + one.title[1:]), written.outcome(one)
        if one.held is False:
            title, outcome = f"**{title}**", f"**{outcome}**"
        rows.append((title, found, limit, outcome, prose(one.note, sentence)))
    return table(("Criterion", ">Found", ">Limit", "Outcome", "Note"), rows)


def shares(judgement: GateResult) -> str:
    """List both accuracies and the gain, with their intervals."""
    rows = []
    for name, share in written.shares(judgement):
        right = f"{share.correct:,} of {share.images:,}"
        ends = " to ".join(written.number(end, "share", 2) for end in (share.low, share.high))
        rows.append((code(name), right, written.number(share.accuracy, "share", 2), ends))
    if both := judgement.comparison:
        ends = f"{written.gain(both.low)} to {written.gain(both.high)}"
        rows.append(("gain, in points", "", written.gain(both.gain), ends))
    interval = f">{written.confidence(judgement.conditions)} interval"
    return table(("Model", ">Right", ">Accuracy", interval), rows)


def recalls(judgement: GateResult, most: int) -> str:
    """List classes: all, or those that fell furthest, and then the worst."""
    classes = list(judgement.classes)
    if len(classes) > most:

        def fall(one: ClassFigures) -> tuple[float, float]:
            mine = one.candidate if one.candidate is not None else 0.0
            return (mine - one.champion if one.champion is not None else 0.0, mine)

        classes = sorted(classes, key=fall)[:most]
    rivals = written.rivals(judgement)
    rows = []
    for one in classes:
        cells = [code(one.name), f"{one.images:,}", written.number(one.candidate, "share")]
        if rivals:
            cells.insert(2, written.number(one.champion, "share"))
            cells.append(written.difference(one))
        rows.append(cells)
    head = ["Class", ">Images", *([">Champion"] if rivals else []), ">Candidate"]
    head += [">Difference, points"] if rivals else []
    return _folded(table(head, rows, len(judgement.classes)), f"Recall of {len(rows):,} classes", len(rows))


def flips(without_credentials: Sequence[Flip]) -> str:
    """List images with label, both answers and their probabilities."""
    rows = [
        (
            code(flip.path),
            code(flip.label),
            f"{code(flip.champion)} {flip.champion_probability:.2f}",
            f"{code(flip.candidate)} {flip.candidate_probability:.2f}",
        )
        for flip in without_credentials
    ]
    return table(("File", "Label", "Champion", "Candidate"), rows)


def classes(changes: Changes, most: int) -> str:
    """List classes with their images before and now: all, or those that changed most."""
    known = changes.before is not None
    listed = list(changes.classes)
    if len(listed) > most:
        listed = sorted(listed, key=lambda one: -abs(one.difference))[:most]
    rows = [
        (
            code(one.name),
            f"{one.before:,}",
            f"{one.now:,}",
            f"{one.difference:+,}" if one.difference else "0",
        )
        if known
        else (code(one.name), f"{one.now:,}")
        for one in listed
    ]
    head = ("Class", ">Before", ">Now", ">Difference") if known else ("Class", ">Now")
    return _folded(table(head, rows, len(changes.classes)), f"Images of {len(rows):,} classes", len(rows))


def relabels(changes: Changes, most: int) -> str:
    """List which label became which, the most frequent first."""
    rows = [(code(was), code(now), f"{images:,}") for was, now, images in changes.relabels[:most]]
    return table(("Label before", "Label now", ">Images"), rows, len(changes.relabels))


def examples(kind: str, total: int, found: Sequence[Example], most: int) -> str:
    """List images that changed, folded."""
    rows = [
        (
            code(one.path) or written.NOTHING,
            code(one.pixels[:12]),
            code(one.before) or written.NOTHING,
            code(one.now) or written.NOTHING,
            prose(one.split),
        )
        for one in found[:most]
    ]
    head = ("File today", "Pixels", "Label before", "Label now", "Part")
    listed = "" if len(rows) == total else f", {len(rows):,} listed"
    return _folded(table(head, rows), f"{kind}: {total:,}{listed}", FOLDED + 1)


def steps(facts: Facts, sentence: int) -> str:
    """List the steps with the time that each took."""
    rows = []
    for one in facts.steps:
        failed = "**failed**" if facts.outcome == "failed" and one.name == facts.incomplete_step else ""
        note = ": ".join(filter(None, (failed, prose(one.note, sentence))))
        rows.append((code(one.name), duration(one.seconds), note))
    return table(("Step", ">Time", ""), [*rows, ("together", duration(facts.seconds), "")] if rows else [])


def energy(figures: Mapping[str, Any]) -> str:
    """List the stages with the energy that each used; the sum last."""
    rows = []
    for stage, head in [*((stage, f"{stage}_") for stage in STAGES), ("together", "")]:
        if f"{head}kwh" in figures and f"{head}co2_kg" in figures:
            used = format_energy(figures[f"{head}kwh"], figures[f"{head}co2_kg"])
            rows.append((stage, used, prose(figures.get(f"{head}how", ""))))
    return table(("Stage", ">Energy", ""), rows)


def identity(found: Identity) -> str:
    """List the ids that lead from the data to what is served."""
    parts = ((IDENTITY[one.name], getattr(found, one.name)) for one in fields(found))
    return table(("What", "Id"), [(words, code(value, 200)) for words, value in parts if value])


def duration(seconds: float) -> str:
    """Write a duration, such as `3 min 20 s` or `0.04 s`."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], total: int = 0) -> str:
    """Write a table; a head that begins with `>` stands over numbers.

    Args:
        head: names of the columns.
        rows: cells, which are Markdown already.
        total: rows that there are in all; the missing ones are counted below.
    """
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    if not lines:
        return ""
    names = f"| {' | '.join(name.removeprefix('>') for name in head)} |"
    rule = f"|{'|'.join('--:' if name.startswith('>') else '---' for name in head)}|"
    more = [f"\n{total - len(lines):,} more are not listed."] if total > len(lines) else []
    return "\n".join([names, rule, *lines, *more])


def _folded(content: str, summary: str, rows: int) -> str:
    """Fold a long table away behind its summary."""
    if not content or rows <= FOLDED:
        return content
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"
