"""Run the DAG and say what came of it: what `make repro` and `mlflow run .` call.

    python pipelines/repro.py [--until STAGE] [--force] [--pull] [--train.epochs 3 …]

Values make a DVC experiment (`dvc exp run -S`), none a plain `dvc repro`. `--force` and `--pull` are DVC's own: run
stages that have not changed too; take from the DVC remote what other machines have made.
"""

import os
import subprocess
import sys
from pathlib import Path

from convoy import preflight
from convoy.core import stage
from convoy.core.errors import ConvoyError, RequestError
from convoy.summary import summary
from convoy.tracking import outbox
from convoy.tracking.journal import state

DVC_FLAGS = ("--force", "--pull")


class PipelineError(ConvoyError):
    """Pass on that DVC failed; it and its stage have said why."""


def main() -> None:
    """Check first, run DVC, complete the tracking, print the summary."""
    words = sys.argv[1:]
    target = []
    if "--until" in words:
        at = words.index("--until")
        target = words[at + 1 : at + 2]
        del words[at : at + 2]
        if target not in (["prepare"], ["train"], ["evaluate"], ["export"]):
            raise RequestError(
                f"--until takes prepare, train, evaluate or export, not {' '.join(target) or 'nothing'}"
            )
    flags = [word for word in words if word in DVC_FLAGS]
    overrides = preflight.parse([word for word in words if word not in DVC_FLAGS])
    preflight.check(overrides)
    settings = [part for key, value in overrides.items() for part in ("-S", f"{key}={value}")]
    where = outbox.folder()
    outbox.prepare_store(where)
    command = [*(["exp", "run", *settings] if overrides else ["repro"]), *flags]
    # Stage commands say `python`: it must be the one that runs this script.
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(  # noqa: S603 (own words)
        [sys.executable, "-m", "dvc", *command, *target], env={**os.environ, "PATH": search}, check=False
    )
    if done.returncode:
        # In a CI job nobody delivers after this process has ended.
        ended = [path.name for path in outbox.journals(where) if state(path).ended]
        outbox.say_once(outbox.wait_until_uploaded(ended, where, outbox.WAIT_SECONDS), where)
        raise PipelineError(f"`dvc {' '.join([*command, *target])}` failed; the message above says where.")
    if not target:
        from convoy.tracking.sync import sync  # noqa: PLC0415 (a second saved where DVC fails first)

        outbox.say_once(sync(outbox.WAIT_SECONDS).failed, where)
        print(summary())


if __name__ == "__main__":
    stage.main(main)
