"""Count what a migration copies, and format the result."""

from dataclasses import dataclass, field

from convoy.core import console

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
    """Count one kind of entry: how many there are to copy, in the target at the end, and sent now."""

    source: int = 0
    target: int = 0
    sent: int = 0


@dataclass
class Report:
    """Count what the stores have and what was sent.

    Attributes:
        counts: by kind of entry.
        size: bytes of all files.
        notes: remarks for the user that are no errors.
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

    def table(self) -> str:
        """Format counts and notes."""
        rows = [
            (kind, f"{count.source:,}", f"{count.target:,}", f"{count.sent:,}")
            for kind, count in self.counts.items()
        ]
        lines = [console.table(("", "in source", "in target", "sent now"), rows, right=(1, 2, 3))]
        lines += [f"note: {note}" for note in self.notes]
        if not self.wrong:
            files = self.counts["files"].target + self.counts["model files"].target
            equal = f"the sha256 of {files:,} files ({self.size:,} bytes)"
            lines.append(f"\ncomplete: counts are equal, and so is {equal}")
        return "\n".join(lines)
