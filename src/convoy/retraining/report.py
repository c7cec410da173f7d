"""The report of a round of retraining, in the Markdown that GitHub and GitLab show.

None of the class names, paths and errors may become markup (`convoy.core.escaping`).
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from convoy.core import files, templates
from convoy.core.escaping import code, prose, short, visible
from convoy.energy.meter import STAGES, format_energy
from convoy.gate import text
from convoy.gate.text import Name, Section, Table
from convoy.retraining.data_diff import Changes, Example
from convoy.retraining.outcome import RoundRecord
from convoy.retraining.worktree import FOLDER

OUT = Path("build/retrain")
VERDICT, REPORT = "verdict.json", "report.md"
CHANGES = ("before", "now", "added", "gone", "relabelled", "moved")  # counts in verdict.json

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
"""Label of each field of `outcome.Identity`."""

OVERRIDE = f"`{text.OVERRIDE}`"

MOST = 60_000
"""Characters of a report: GitHub takes 65,536 for a pull request, and a job may put something before it."""

SIZES = (100, 10, 2)
"""Rows of each list, from long to short: the first with which the report does not exceed `MOST`."""

FOLDED = 20  # rows up to which a table is shown unfolded
LONGEST_BLOCK = 3000  # of an error or a step's last lines


class Markdown(str):
    """A cell that is Markdown already."""

    __slots__ = ()


def scratch(root: Path) -> Path:
    """Return the folder that collects the report's files until the round ends."""
    return root / FOLDER / f"out-{os.getpid()}"


def clear(root: Path) -> None:
    """Remove the folders that killed rounds left."""
    for left in (root / FOLDER).glob("out-*"):
        shutil.rmtree(left, ignore_errors=True)


def write(root: Path, record: RoundRecord) -> Path:
    """Replace build/retrain/ by this round's verdict and report, and add the report to the job's summary.

    Returns:
        The report's path, relative to the repository.
    """
    folder, target = scratch(root), root / OUT
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / VERDICT, _verdict(record))
    pictures = {
        path.stem: quote(path.relative_to(folder).as_posix(), safe="/-._~")
        for path in record.files
        if path.suffix == ".png"
    }
    files.write_text(folder / REPORT, render(record, pictures))
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(render(record) + "\n")
    return OUT / REPORT


def _verdict(record: RoundRecord) -> dict[str, Any]:
    """Lay the record out for programs."""
    result = record.gate_result
    return {
        "verdict": record.outcome,
        "reason": record.reason or (result.reasons[0] if result else ""),
        "step": record.incomplete_step,
        "trigger": record.trigger,
        "uncommitted_params": {
            key: {"committed": committed, "working": working}
            for key, (committed, working) in record.uncommitted.items()
        },
        "started": record.started,
        "seconds": record.seconds,
        "steps": [asdict(step) for step in record.steps],
        "candidate": record.identity.version,
        "champion": record.champion,
        "champion_before": record.champion_before,
        "branch": record.identity.branch,
        "identity": asdict(record.identity),
        "pushed": {delivery.what: not delivery.why for delivery in record.deliveries},
        "data": {name: getattr(record.changes, name) for name in CHANGES} if record.changes else None,
        "judgement": result.as_json() if result else None,
    }


def render(record: RoundRecord, pictures: Mapping[str, str] = {}) -> str:
    """Render the report; `pictures` are links by the name of the figure.

    Without them, as for a pull request or a job's summary, the report names the figures' location and links `record.job`.
    """
    reasons, content = _reasons(record), ""
    filters: dict[str, templates.Filter] = {"prose": prose, "block": block, "table": table, "link": link}
    for most in SIZES:
        context = {
            "record": record,
            "incomplete": record.outcome in ("failed", "paused"),
            "title": _title(record),
            "serving": _serving(record),
            "reasons": reasons[: max(5, most)],
            "more_reasons": max(0, len(reasons) - max(5, most)),
            "about": _about(record),
            "sections": list(_sections(record, most)),
            "next_steps": [*record.hints, *_next_steps(record)],
            "pictures": pictures,
        }
        content = templates.render("convoy.retraining", "report.md.j2", context, filters)
        content = re.sub(r"\n{3,}", "\n\n", content).strip() + "\n"
        if len(content) <= MOST:
            break
    return content


# How the round ended


def _title(record: RoundRecord) -> str:
    candidate = code(record.identity.version) or "the candidate"
    match record.outcome:
        case "promoted":
            before = f", replacing {code(record.champion_before)}" if record.champion_before else ""
            return f"Promoted: {candidate} is the champion{before}"
        case "kept":
            return f"Kept: {code(record.champion)} stays champion" if record.champion else "Kept: no champion"
        case "refused":
            return f"Refused: {candidate} breaches limits of the gate"
        case "nothing-new":
            return "Nothing new: nothing was trained"
        case "skipped":
            return "Skipped: another round is running"
        case "failed" | "paused":
            step = f" in step {code(record.incomplete_step)}" if record.incomplete_step else ""
            return f"{record.outcome.capitalize()}{step}"


def _serving(record: RoundRecord) -> str:
    """State which version serves after the round."""
    if not record.champion:
        if record.outcome in ("failed", "paused", "skipped"):  # the registry may not have been read yet
            return "No alias was moved: what served before still serves."
        return "There is no champion, and there was none before."
    if record.champion == record.champion_before:
        return f"{code(record.champion)} still serves."
    before = f" {code(record.champion_before)} served before." if record.champion_before else ""
    return f"{code(record.champion)} serves now.{before}"


def _reasons(record: RoundRecord) -> list[str]:
    """List why the round ended as it did: the gate's reasons where the gate decided."""
    decided = record.gate_result is not None and record.outcome in ("promoted", "kept", "refused")
    reasons = list(record.gate_result.reasons) if record.gate_result and decided else []
    return [record.reason, *reasons] if record.reason else reasons


def _next_steps(record: RoundRecord) -> list[str]:
    branch = code(record.identity.branch)
    kept = [f"The results are on the branch {branch}."] if branch else []
    again = "`PUSH=1 make retrain`" if record.push else "`make retrain`"
    steps: list[str] = []
    match record.outcome:
        case "promoted":
            merge = f"Merge {branch}" if branch else "Commit `data.dvc` and `dvc.lock`"
            back = "To go back to the previous champion: `convoy rollback`"
            first = "This is the first champion: the next round compares its candidate with it."
            steps = [
                f"{merge}, so that the main branch has the `dvc.lock` of what serves.",
                back if record.champion_before else first,
            ]
        case "kept":
            steps = ["Nothing needs to be done.", *kept, f"To promote it anyway: {OVERRIDE}"]
        case "refused":
            labels = (
                "Compare the changed labels with the images, under *Data* below: was the change intended?"
            )
            steps = [
                *([labels] if record.changes and record.changes.relabelled else []),
                "Check the breached criteria; if the data are wrong, fix them at their source: the next round imports them.",
                *kept,
                f"If the candidate is right and the limit wrong: change the limit in `params.yaml`, section `gate`, or {OVERRIDE}",
            ]
        case "nothing-new":
            steps = ["Nothing needs to be done: the next round checks again."]
        case "skipped":
            steps = ["Nothing needs to be done: the running round writes its own report."]
        case "paused":
            steps = [f"Nothing needs to be fixed: the next round resumes. To start it now: {again}"]
        case "failed" if record.incomplete_step == "propose":
            steps = [
                "Open the request as described above. Another round would not open it: nothing is new after this one.",
                *kept,
            ]
        case "failed":
            steps = [f"Fix the cause above, then run {again}; finished stages come from the cache.", *kept]
    return steps


# Sections


def uncommitted(record: RoundRecord) -> list[str]:
    """List the params whose uncommitted values this round does not use, for the console."""
    rows = [
        f"  {visible(key)}: committed {short(committed, 60)} (used), here {short(working, 60)} (not used)"
        for key, (committed, working) in record.uncommitted.items()
    ]
    return [
        "params.yaml has uncommitted changes; a round uses the commit. To use them: git commit params.yaml",
        *rows,
    ]


def _about(record: RoundRecord) -> Table:
    """List when the round ran, on what, and why it trained."""
    began = datetime.fromisoformat(record.started).strftime("%Y-%m-%d %H:%M UTC")
    rows = [("started", f"{began}, took {duration(record.seconds)}")]
    rows += [("trained because", record.trigger)] * bool(record.trigger)
    rows += [("data from", Markdown(code(record.source, 200)))] * bool(record.source)
    rows += [("job", Markdown(link(record.job)))] * bool(record.job)
    return Table(("Round", ""), rows)


def _sections(record: RoundRecord, most: int) -> Iterator[Section]:
    data = [_data(record, record.changes, most)] if record.changes else []
    gate = list(text.sections(record.gate_result, most, min(most, 20))) if record.gate_result else []
    criteria = [section for section in gate if section.name == "criteria"]
    yield from [*criteria, *data, *(section for section in gate if section.name != "criteria")]
    if record.uncommitted:
        sentence = (
            "The round used the committed values. To use the others, commit params.yaml and run it again."
        )
        changed = [(Name(key), Name(was), Name(now)) for key, (was, now) in record.uncommitted.items()]
        table_ = Table(
            ("Param", "Committed, used", "Not committed, not used"), changed[:most], total=len(changed)
        )
        yield Section("params", "Uncommitted params", [sentence], [table_])
    if record.steps:
        yield Section("steps", "Minutes and energy", [], [_steps(record), *_energy(record)])
    if record.deliveries:
        rows = []
        for delivery in record.deliveries:
            where = "**not done**" if delivery.why else link(delivery.where) or "done"
            rows.append((delivery.what, Markdown(where), delivery.why))
        yield Section("deliveries", "Pushed", [], [Table(("What", "Where", "Note"), rows)])
    ids = [
        (IDENTITY[name], Markdown(code(value, 200)))
        for name, value in asdict(record.identity).items()
        if value
    ]
    if ids:
        trace = ["convoy trace with any of these ids leads to the others."] if record.identity.run_id else []
        yield Section("identity", "Identity", trace, [Table(("What", "Id"), ids)])


def _data(record: RoundRecord, changes: Changes, most: int) -> Section:
    """List what changed in the data since the champion's training."""
    if changes.before is None:
        missing = (
            "The champion's training images are unknown"
            if record.champion_before
            else "There was no champion before"
        )
        sentence = f"{changes.now:,} images. {missing}, so there is nothing to compare with."
    elif changes.none:
        sentence = f"The same {changes.now:,} images as before, with the same labels, in the same splits."
    else:
        sentence = (
            f"{changes.before:,} images before, {changes.now:,} now: {changes.added:,} added, {changes.gone:,} removed, "
            f"{changes.relabelled:,} relabelled, {changes.moved:,} moved between train, val and test. Images are compared by "
            "their pixels."
        )
    relabels = [(Name(was), Name(now), f"{images:,}") for was, now, images in changes.relabels[:most]]
    tables = [
        Table(("Label before", "Label now", ">Images"), relabels, total=len(changes.relabels)),
        _examples("Relabelled", changes.relabelled, changes.relabelled_examples[:most]),
        _examples("Added", changes.added, changes.added_examples[:most]),
        _examples("Removed", changes.gone, changes.gone_examples[:most]),
        _class_counts(changes, most),
    ]
    return Section("relabelled", "Data", [sentence], tables, "images with another label than before")


def _examples(kind: str, total: int, examples: Sequence[Example]) -> Table:
    rows = []
    for image in examples:
        names = (image.path, image.pixels[:12], image.before, image.now)
        rows.append((*(Name(name or text.NOTHING) for name in names), image.split))
    header = ("File today", "Pixels", "Label before", "Label now", "Split")
    return Table(header, rows, total=total, title=f"{kind}: {total:,}")


def _class_counts(changes: Changes, most: int) -> Table:
    """List classes with their images before and now: all, or those that changed most."""
    listed = list(changes.classes)
    if len(listed) > most:
        listed = sorted(listed, key=lambda row: -abs(row.difference))[:most]
    if changes.before is None:
        rows: list[tuple[str, ...]] = [(Name(row.name), f"{row.now:,}") for row in listed]
        return Table(("Class", ">Now"), rows, total=len(changes.classes))
    rows = [
        (Name(row.name), f"{row.before:,}", f"{row.now:,}", f"{row.difference:+,}" if row.difference else "0")
        for row in listed
    ]
    return Table(("Class", ">Before", ">Now", ">Difference"), rows, total=len(changes.classes))


def _steps(record: RoundRecord) -> Table:
    rows = []
    for step in record.steps:
        ended = [record.outcome] if step is record.steps[-1] and record.incomplete_step else []
        rows.append((Name(step.name), duration(step.seconds), ": ".join(filter(None, [*ended, step.note]))))
    return Table(("Step", ">Time", ""), [*rows, ("total", duration(record.seconds), "")])


def _energy(record: RoundRecord) -> list[Table]:
    """List the energy of each stage; the sum last."""
    energy, rows = record.energy, []
    for stage, head in [*((stage, f"{stage}_") for stage in STAGES), ("total", "")]:
        if f"{head}kwh" in energy and f"{head}co2_kg" in energy:
            used = format_energy(energy[f"{head}kwh"], energy[f"{head}co2_kg"])
            rows.append((stage, used, str(energy.get(f"{head}how", ""))))
    return [Table(("Stage", ">Energy", ""), rows)] if rows else []


def duration(seconds: float) -> str:
    """Format a duration, such as `3 min 20 s` or `0.04 s`."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# Markdown


def table(listed: Table) -> str:
    """Render a table, folded where it is long; the first cell of a breach is bold. Empty without rows."""
    if not listed.rows:
        return ""
    lines = [f"| {' | '.join(name.removeprefix('>') for name in listed.header)} |"]
    lines.append(f"|{'|'.join('--:' if name.startswith('>') else '---' for name in listed.header)}|")
    for number, row in enumerate(listed.rows):
        cells = [_cell(cell) for cell in row]
        if number < listed.breached:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {' | '.join(cells)} |")
    if listed.total > len(listed.rows):
        lines.append(f"\n{listed.total - len(listed.rows):,} more are not listed.")
    content = "\n".join(lines)
    if len(listed.rows) > FOLDED:
        summary = listed.title or f"{len(listed.rows):,} rows"
        return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"
    return f"**{prose(listed.title)}**\n\n{content}" if listed.title else content


def _cell(cell: str) -> str:
    if isinstance(cell, Markdown):
        return cell
    return code(cell) if isinstance(cell, Name) else prose(cell)


def block(lines: str, longest: int = LONGEST_BLOCK) -> str:
    """Show lines as they are; only the last lines of a long text."""
    shown = "\n".join(visible(line) for line in lines.strip("\n").splitlines())
    if len(shown) > longest:
        shown = f"…{shown[-longest:]}"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def link(address: str, label: str = "") -> str:
    """Link an address of the web; show anything else as code."""
    if urlsplit(address).scheme not in {"http", "https"}:
        return code(address, 300)
    target = quote(address, safe=":/?#@!$&'*+,;=%-._~")
    return f"[{prose(label or address)}]({target})"
