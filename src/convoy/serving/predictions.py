"""Hold predictions of files and write them as lines, JSON, CSV or Parquet."""

import csv
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from convoy.core import escaping
from convoy.core.console import PLAIN_SECONDS, ProgressBar, info
from convoy.core.errors import RequestError

Format = Literal["table", "json", "csv", "parquet"]

ROWS = 8192
"""Rows of a group of a Parquet file."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Hold the probabilities that a file's image got, or the reason why it has no prediction.

    Attributes:
        path: as given, or below a folder or an archive that was given.
        reason: empty for a prediction.
        classes: K names.
        probabilities: (K,), 0..1.
    """

    path: Path
    reason: str = ""
    classes: Sequence[str] = ()
    probabilities: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def label(self) -> str:
        """Return the most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Return the probability of the most probable class."""
        return float(self.probabilities.max())

    def ranked(self, top: int) -> list[tuple[str, float]]:
        """List the `top` most probable classes, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")[:top]
        return [(self.classes[k], float(self.probabilities[k])) for k in order]


@dataclass(frozen=True)
class Wanted:
    """Hold how predictions are written.

    Attributes:
        format: of the output.
        top: classes of each file; 0 for all, in a table for the most probable.
        model: name of the model that answers, such as `convoy/7`, written into every row.
        classes: its K names.
        out: file to write; None for standard output.
    """

    format: Format
    top: int
    model: str
    classes: Sequence[str]
    out: Path | None = None


def write(predictions: Iterable[Prediction], wanted: Wanted) -> int:
    """Write predictions and return the exit code: 1 if a file has none.

    A file is replaced in one step once it is complete.

    Raises:
        RequestError: Parquet without a file, or the file cannot be written.
    """
    if wanted.format == "parquet" and wanted.out is None:
        raise RequestError("parquet is no text for a terminal. Name a file: --out predictions.parquet")
    failed = done = 0
    printed = sys.stdout  # the bar replaces it while it is shown, by its own standard error
    # Lines in a terminal are progress enough.
    is_shown = wanted.out is None and printed.isatty()
    plain = math.inf if is_shown else PLAIN_SECONDS
    with (
        _replaced(wanted.out) as scratch,
        ProgressBar("classify images", stderr=True, unit="images", plain_seconds=plain) as bar,
    ):
        for prediction in _written(predictions, wanted, scratch, printed, bar if is_shown else None):
            failed += bool(prediction.reason)
            done += 1
            bar.advance()
    if wanted.out is not None:
        info(f"{done:,} files, {failed:,} without a prediction: {wanted.out}", stderr=True)
    return 1 if failed else 0


def _written(
    predictions: Iterable[Prediction],
    wanted: Wanted,
    scratch: Path | None,
    printed: IO[str],
    bar: ProgressBar | None,
) -> Iterator[Prediction]:
    """Write each prediction to a file, else to `printed`, above a bar that is in the same terminal; pass it on."""
    if wanted.format == "parquet" and scratch:
        yield from _parquet(predictions, wanted, scratch)
        return
    with (
        scratch.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        if scratch
        else _flushed(printed) as file
    ):
        if wanted.format == "csv":
            yield from _csv(predictions, wanted, file)
            return
        for prediction in predictions:
            line = _json(prediction, wanted) if wanted.format == "json" else _line(prediction, wanted)
            if bar and bar.in_terminal:
                bar.print(line)
            else:
                file.write(f"{line}\n")
            yield prediction


@contextmanager
def _flushed(printed: IO[str]) -> Iterator[IO[str]]:
    """Flush standard output at the end."""
    yield printed
    printed.flush()


def _line(prediction: Prediction, wanted: Wanted) -> str:
    path = escaping.visible(str(prediction.path))
    if prediction.reason:
        text = f"{path}: ERROR: {escaping.visible(prediction.reason)}"
    else:
        ranked = prediction.ranked(wanted.top or 1)
        text = f"{path}: " + ", ".join(f"{escaping.visible(name)} {share:.4f}" for name, share in ranked)
    return escaping.lines(text)


def _json(prediction: Prediction, wanted: Wanted) -> str:
    row: dict[str, Any] = {"path": str(prediction.path)}
    if prediction.reason:
        row["error"] = prediction.reason
    else:
        row |= {"class": prediction.label, "probability": prediction.probability}
        if wanted.top:
            row["probabilities"] = dict(prediction.ranked(wanted.top))
        else:
            row["probabilities"] = dict(
                zip(prediction.classes, prediction.probabilities.tolist(), strict=True)
            )
    return escaping.json_line(row | {"model": wanted.model})


def _columns(wanted: Wanted) -> list[str]:
    """Name the columns after `path, class, probability, error, model`: one per class, or two per further rank."""
    if wanted.top:
        return [name for n in range(2, wanted.top + 1) for name in (f"class_{n}", f"probability_{n}")]
    return [f"p_{name}" for name in wanted.classes]


def _row(prediction: Prediction, wanted: Wanted) -> list[Any]:
    """Make a row of these columns; None for what it has no value for."""
    path = escaping.visible(str(prediction.path))
    if prediction.reason:
        return [path, None, None, prediction.reason, wanted.model, *[None] * len(_columns(wanted))]
    first = [path, prediction.label, prediction.probability, None, wanted.model]
    if wanted.top:
        rest = [value for pair in prediction.ranked(wanted.top)[1:] for value in pair]
        return [*first, *rest, *[None] * (len(_columns(wanted)) - len(rest))]
    return [*first, *prediction.probabilities.tolist()]


FIRST = ("path", "class", "probability", "error", "model")


def _csv(predictions: Iterable[Prediction], wanted: Wanted, file: IO[str]) -> Iterator[Prediction]:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(escaping.csv_row([*FIRST, *_columns(wanted)]))
    for prediction in predictions:
        writer.writerow(escaping.csv_row("" if cell is None else cell for cell in _row(prediction, wanted)))
        yield prediction


def _parquet(predictions: Iterable[Prediction], wanted: Wanted, path: Path) -> Iterator[Prediction]:
    import pyarrow as pa  # noqa: PLC0415 (0.1 s, needed for this format only)
    import pyarrow.parquet as pq  # noqa: PLC0415 (likewise)

    names = [*FIRST, *_columns(wanted)]
    kinds = [pa.float32() if name.startswith("p") and name != "path" else pa.string() for name in names]
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    rows: list[list[Any]] = []

    def group() -> "pa.Table":
        columns = zip(*rows, strict=True) if rows else [[] for _ in names]
        return pa.table(
            [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)], schema=schema
        )

    with pq.ParquetWriter(path, schema) as writer:
        for prediction in predictions:
            rows.append(_row(prediction, wanted))
            if len(rows) == ROWS:
                writer.write_table(group())
                rows.clear()
            yield prediction
        writer.write_table(group())


@contextmanager
def _replaced(out: Path | None) -> Iterator[Path | None]:
    """Give a file beside `out`, which takes its place once the block ends well."""
    if out is None:
        yield None
        return
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        scratch.touch()
        yield scratch
        scratch.replace(out)
    except OSError as error:
        raise RequestError(
            f"{out} cannot be written: {error.strerror or error}. Name another file: --out"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
