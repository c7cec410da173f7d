"""The entry point of stage scripts: known errors become one message and an exit code; a stop stays a stop."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from convoy.core import escaping, yaml
from convoy.core.errors import ConvoyError

REPOSITORY = "CONVOY_REPOSITORY"
"""Variable that names the repository whose store, outbox and checkpoints are used from another working tree."""

INTERRUPTED = 1
"""Exit code of a stage that was stopped by Ctrl-C or SIGTERM: the run failed."""


def main(
    work: Callable[[], None], stage: str = "", during: AbstractContextManager[None] | None = None
) -> NoReturn:
    """Call a script's work and exit with 0 success, 1 failure or 2 invalid request.

    SIGTERM, which CI systems and `dvc queue kill` send, ends a run like Ctrl-C does.

    Args:
        work: what the script does.
        stage: the stage of dvc.yaml that the script runs, which fails if its inputs were edited meanwhile; empty for
            a script of no stage.
        during: is entered while the stage works.
    """
    from convoy.core import inputs  # noqa: PLC0415 (pydantic: `convoy --help` must be fast)

    silence_dependencies()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with during or nullcontext(), inputs.held(_name(stage)) if stage else nullcontext():
            work()
    except ConvoyError as error:
        name = _name(Path(sys.argv[0]).name)
        print(f"\nERROR in {name}: {escaping.lines(str(error))}", file=sys.stderr, flush=True)
        restorable = os.environ.get("DVC_STAGE") and Path("dvc.lock").exists()
        if restorable and not isinstance(error, inputs.InputsChanged):
            print(
                "DVC removed this stage's earlier outputs before it ran; `dvc checkout --force` brings them back.",
                file=sys.stderr,
                flush=True,
            )
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(
            f"\n{_name(Path(sys.argv[0]).name)} was stopped. `dvc repro` runs it again, a training from its last checkpoint; "
            "`dvc checkout --force` brings earlier outputs back.",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(INTERRUPTED)
    sys.exit(0)


def repository() -> Path:
    """Locate the repository that owns the tracking store and the checkpoints.

    DVC runs a queued experiment in a temporary copy and names the real repository
    in `DVC_ROOT`; a retraining runs in a worktree and names the repository that called
    it in `CONVOY_REPOSITORY`; elsewhere it is the current folder.
    """
    named = os.environ.get(REPOSITORY) or os.environ.get("DVC_ROOT")
    return Path(named or Path.cwd()).resolve()


def recorded(stage: str, path: Path, content: bytes) -> bool:
    """Check whether dvc.lock in the current folder records a file with this content among a stage's outputs."""
    lock = Path("dvc.lock")
    if not lock.exists():
        return False
    stages: dict[str, Any] = yaml.load(lock.read_text(encoding="utf-8")).get("stages", {})
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()  # DVC's own content hash
    outs = stages.get(stage, {}).get("outs", [])
    return any(entry["path"] == path.as_posix() and entry.get("md5") == found for entry in outs)


def silence_dependencies() -> None:
    """Disable usage statistics and progress noise of dependencies by their environment variables.

    Called by every entry point before it imports MLflow; importing Convoy changes nothing.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _name(outside: str) -> str:
    """Return the stage that DVC runs, else the name `outside` DVC."""
    return os.environ.get("DVC_STAGE") or outside
