"""Run `dvc repro` with Convoy's own lines about each stage, for `make repro` and `mlflow run .`."""

import io
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from convoy.core import escaping, pipeline
from convoy.core.errors import without_credentials


def run(command: Sequence[str]) -> int:
    """Run `dvc repro …` or `dvc exp run …` here, with lines about each stage in place of DVC's; return its exit code.

    DVC's warnings, errors and progress bars stay as they are.
    """
    from dvc.cli import main  # type: ignore[import-untyped] # noqa: PLC0415 (half a second)

    for name in ("dvc", "dvc_objects", "dvc_data"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(lambda record: record.levelno >= logging.WARNING)
    lines = _StageLines()
    logging.getLogger("dvc").addHandler(lines)
    # What `dvc repro` prints itself is advice. Stages inherit the file descriptor, which stays as it is.
    with redirect_stdout(io.StringIO()) if command[0] == "repro" else nullcontext():
        code = int(main(list(command)))
    lines.end(failed=code != 0)
    return code


class _StageLines(logging.Handler):
    """Print what DVC does with each stage: its logger names the event, and the first argument the stage."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._out = sys.stdout
        self._running = ""
        self._started = 0.0
        self._about = {name: fields.get("desc") for name, fields in pipeline.stages(Path()).items()}

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line of an event; other messages are DVC's own."""
        match record.name, record.args:
            case "dvc.stage.run", (str(name),):
                self._begin(name, self._about.get(name) or "Run")
            case "dvc.stage.imports", (source, target):
                self._begin(str(target), f"Import {without_credentials(str(source))}")
            case "dvc.stage.cache", (str(name),):
                self._begin(name, "Ran with these inputs before: take its outputs from DVC's cache")
            case "dvc.dvcfile", _:  # has recorded the stage
                self.end()
            case "dvc.stage", (str(name),):
                self.end()
                self._print(f"[{name.removesuffix('.dvc')}] up to date")

    def end(self, *, failed: bool = False) -> None:
        """Print how long the stage took that ran last."""
        if self._running:
            seconds = time.monotonic() - self._started
            self._print(f"[{self._running}] {'failed after ' if failed else ''}{seconds:.1f} s")
        self._running = ""

    def _begin(self, name: str, about: str) -> None:
        self.end()
        self._running, self._started = name, time.monotonic()
        self._print(f"\n[{name}] {about}")

    def _print(self, line: str) -> None:
        print(escaping.lines(line), file=self._out, flush=True)
