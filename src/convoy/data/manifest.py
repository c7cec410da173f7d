"""manifest.parquet: one row per delivered file, so that nothing is left out in silence."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from convoy.data.records import Record

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # inside the folder or archive
        ("sha256", pa.string()),  # of the file's bytes
        ("width", pa.int32()),  # pixels, upright; 0 where it was not decoded
        ("height", pa.int32()),
        ("mode", pa.string()),  # Pillow's, of the file; empty where it was not decoded
        ("pixels", pa.string()),  # `pixel_hash`; empty where it was not decoded
        ("label", pa.string()),  # null outside class folders
        ("split", pa.string()),  # null for what is not used
        ("verdict", pa.string()),  # `ok`, or why it is not used
        ("row", pa.int64()),  # index into images.npy, or -1
    ]
)


def write(path: Path, records: Sequence[Record], rows: Sequence[int]) -> None:
    """Write records in order of path, with each one's row."""
    pairs = sorted(zip(records, rows, strict=True), key=lambda pair: pair[0].path)
    columns = {name: [getattr(record, name) for record, _ in pairs] for name in SCHEMA.names if name != "row"}
    columns["row"] = [row for _, row in pairs]
    pq.write_table(pa.table(columns, schema=SCHEMA), path)
