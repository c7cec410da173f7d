"""Write the service's log: a JSON object per line on standard output, by a thread, so that a slow reader delays no answer."""

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

MOST_WAITING = 10_000
"""Most lines that wait for a reader of the log; further ones are dropped and counted."""

TOGETHER_S = 0.05
"""Time over which lines are collected into one write, in seconds."""

Log = Callable[[Mapping[str, Any]], None]


class JsonLines:
    """Write log entries as JSON lines; also takes those of Python's `logging`, with tracebacks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._waiting: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)

    def start(self) -> None:
        """Start the thread, and take over warnings and errors of all libraries."""
        self._thread.start()
        root = logging.getLogger()
        root.handlers = [_Handler(self)]
        root.setLevel(logging.WARNING)
        logging.getLogger("convoy").setLevel(logging.INFO)

    def stop(self) -> None:
        """Write what waits, and end the thread."""
        self._waiting.put(None)
        self._thread.join(timeout=5)

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Write an entry; `time`, in seconds since 1970, is added unless it is there."""
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put({"time": time.time()} | dict(entry))
        else:
            self._dropped += 1

    def _write(self) -> None:
        ended = False
        while not ended:
            entries = [self._waiting.get()]
            if entries[0] is not None:
                time.sleep(TOGETHER_S)
            with suppress(queue.Empty):
                while True:
                    entries.append(self._waiting.get_nowait())
            ended = None in entries
            if self._dropped:
                entries.append(
                    {
                        "time": time.time(),
                        "level": "warning",
                        "event": "log lines dropped",
                        "count": self._dropped,
                    }
                )
                self._dropped = 0
            text = "".join(map(_line, [entry for entry in entries if entry is not None]))
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any longer
                return


def _line(entry: Mapping[str, Any]) -> str:
    seconds = datetime.fromtimestamp(entry["time"], UTC).isoformat(timespec="milliseconds")
    return json.dumps({**entry, "time": seconds}, ensure_ascii=True) + "\n"


class _Handler(logging.Handler):
    """Turn records of `logging` into entries."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        entry = {
            "time": record.created,
            "level": record.levelname.lower(),
            "event": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._lines(entry)
