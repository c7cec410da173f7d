"""Check, split and pack what was delivered: data/ → build/dataset/."""

from pathlib import Path

from convoy import files, params, stage
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams


def main() -> None:
    """Run the stage."""
    metrics = prepare(Path("data"), params.section("data", DataParams), Path("build/dataset"))
    files.write_json(Path("build/metrics/prepare.json"), metrics)


if __name__ == "__main__":
    stage.main(main)
