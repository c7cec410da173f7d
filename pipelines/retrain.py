"""Run one round of retraining, for `make retrain`, crontab and the CI workflows.

    python pipelines/retrain.py            # everything stays on this machine
    PUSH=1 python pipelines/retrain.py     # pushes data, models and the branch

Writes report.md and verdict.json to build/retrain/. The exit code is 0 for promoted, kept, refused, nothing-new and skipped.
"""

from convoy.core import stage

stage.stop_quietly()

import os
import sys
from pathlib import Path

from convoy.core.errors import RequestError
from convoy.retraining.round import run


def main() -> None:
    """Read the environment and run a round."""
    if words := sys.argv[1:]:
        raise RequestError(
            f"retrain.py takes no arguments such as {words[0]!r}; it is configured by params.yaml and PUSH=1"
        )
    push = os.environ.get("PUSH", "")
    if push not in ("", "0", "1"):
        raise RequestError(f"PUSH is {push!r}, but must be 1 (push) or 0 (everything stays on this machine)")
    if code := run(Path.cwd(), push=push == "1"):
        sys.exit(code)


if __name__ == "__main__":
    stage.main(main)
