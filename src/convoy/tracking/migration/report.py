"""What a migration found and did, counted by kind of thing."""

from dataclasses import dataclass, field

KINDS = (
    "experiments",
    "runs",
    "params",
    "metric points",
    "tags",
    "datasets",
    "files",
    "logged models",
    "model files",
    "models of runs",
    "registered models",
    "versions",
    "aliases",
)


@dataclass
class Count:
    """Count one kind of thing.

    Attributes:
        source: how many there are to carry.
        target: how many of them the target has, as compared at the end.
        sent: how many were sent now.
    """

    source: int = 0
    target: int = 0
    sent: int = 0


@dataclass
class Report:
    """Say what there was and what was done.

    Attributes:
        counts: by kind of thing.
        size: bytes of all files.
        notes: what people should know and that is right all the same.
        wrong: what the target lacks, one line per run, model or version.
    """

    counts: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    size: int = 0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, kind: str, source: int = 0, target: int = 0, sent: int = 0) -> None:
        """Add to the counts of a kind."""
        count = self.counts[kind]
        count.source += source
        count.target += target
        count.sent += sent


def table(report: Report) -> str:
    """Render a report for people."""
    lines = [f"{'':<20}{'in source':>16}{'in target':>16}{'sent now':>16}"]
    lines += [
        f"{kind:<20}{count.source:>16,}{count.target:>16,}{count.sent:>16,}"
        for kind, count in report.counts.items()
    ]
    lines += [f"note: {note}" for note in report.notes]
    if not report.wrong:
        files = report.counts["files"].target + report.counts["model files"].target
        equal = f"the sha256 of {files:,} files ({report.size:,} bytes)"
        lines.append(f"\nall there: counts are equal, and so is {equal}")
    return "\n".join(lines)
