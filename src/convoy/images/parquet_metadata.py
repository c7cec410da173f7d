"""Read the metadata of Parquet files in a separate process first, since some damaged metadata make pyarrow abort the process.

pyarrow checks the histograms of a column where Python cannot catch the exception, so that a single wrong byte would end `prepare`
without a message (seen with pyarrow 25; https://github.com/apache/arrow/issues/45283 has the check).
"""

import io
import os
import subprocess
import sys
from types import TracebackType
from typing import IO, Self, cast

from convoy.core.errors import DataError

LENGTH_BYTES = 8  # of the number before each footer
DONE = b"."


class MetadataReader:
    """Read metadata in another process, which starts at the first use and ends with the context.

    Example:
        with MetadataReader() as reader:
            reader.check(footer)
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def check(self, footer: bytes) -> None:
        """Read the metadata of every column of every row group.

        Args:
            footer: a file's last bytes, from its metadata on.

        Raises:
            DataError: reading it ends a process; the reason only. What raises an exception is left to the caller.
        """
        process = self._process = self._process or _started()
        given, answers = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        try:
            given.write(len(footer).to_bytes(LENGTH_BYTES, "little") + footer)
            given.flush()
            answer = answers.read(len(DONE))
        except BrokenPipeError:
            answer = b""
        if answer != DONE:
            raise DataError("has metadata that contradict each other: damaged")


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (runs this file)
        [sys.executable, "-P", "-m", __name__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    """Read one footer after another from standard input, and answer each with a byte."""
    import pyarrow.parquet as pq  # noqa: PLC0415 (for the process alone)

    while length := int.from_bytes(sys.stdin.buffer.read(LENGTH_BYTES), "little"):
        footer = sys.stdin.buffer.read(length)
        try:
            metadata = pq.ParquetFile(io.BytesIO(footer[-4:] + footer)).metadata
            for group in range(metadata.num_row_groups):
                for column in range(metadata.num_columns):
                    metadata.row_group(group).column(column)
        except Exception:  # noqa: BLE001, S110 (the caller meets it as well, and has words for it)
            pass
        sys.stdout.buffer.write(DONE)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
