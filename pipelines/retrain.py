"""Go through one round of retraining: what `make retrain`, a crontab line and the CI workflows call.

    python pipelines/retrain.py            # everything stays on this machine
    PUSH=1 python pipelines/retrain.py     # data, models and the branch leave it

build/retrain/ then has report.md and verdict.json. Promoted, kept, refused and nothing new are exit code 0.
"""

import os
import sys
from pathlib import Path

from convoy.core import stage
from convoy.core.errors import RequestError
from convoy.retraining.round import run


def main() -> None:
    """Read the environment and go."""
    if words := sys.argv[1:]:
        raise RequestError(
            f"a round takes no words such as {words[0]!r}; params.yaml and PUSH=1 say everything"
        )
    push = os.environ.get("PUSH", "")
    if push not in ("", "0", "1"):
        raise RequestError(f"PUSH is {push!r}: it must be 1 (push) or 0 (everything stays here)")
    if code := run(Path.cwd(), push=push == "1"):
        sys.exit(code)


if __name__ == "__main__":
    stage.main(main)
