"""Print what a finished pipeline came to: the figures, and where to look next."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from convoy.files import read_json

METRICS = Path("build/metrics")


def summarise(console: Console | None = None) -> None:
    """Print accuracy, flips and latency of the served graph, and where report, model and UI are."""
    test = read_json(METRICS / "evaluate.json")["test"]
    deploy = read_json(METRICS / "export.json")["deploy"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "served accuracy",
        f"{deploy['accuracy']:.2%} of {test['images']:,} test images, 95 % interval "
        f"{test['accuracy_low']:.2%} to {test['accuracy_high']:.2%}",
    )
    table.add_row(
        "proof",
        f"{deploy['label_flips']} label flips, largest probability gap {deploy['max_probability_gap']:.1e}",
    )
    table.add_row(
        "latency",
        f"{deploy['latency_ms_p50']:.2f} ms (p95 {deploy['latency_ms_p95']:.2f}), eager torch {deploy['eager_latency_ms_p50']:.2f}",
    )
    table.add_row("report", "build/evaluation/report.html")
    table.add_row("model", "build/deploy/model.onnx (model_card.md beside it)")
    table.add_row("compare runs", "make ui")
    (console or Console(highlight=False, soft_wrap=True)).print(table)
