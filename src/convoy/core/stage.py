"""The entry point of stage scripts: known errors become one message and an exit code; a stop stays a stop."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

from convoy.core import escaping
from convoy.core.errors import ConvoyError, fault

REPOSITORY = "CONVOY_REPOSITORY"
"""Variable that names the repository whose store, outbox and checkpoints are used from another working tree."""

INTERRUPTED = 1
"""Exit code of a stage that was stopped by Ctrl-C or SIGTERM: the run failed."""

EARLY = 130
"""Exit code of a command that was stopped before it began, as of programs that Ctrl-C ends: 128 + SIGINT."""

_stopped = False  # Ctrl-C or SIGTERM came while a stage worked


def main(
    work: Callable[[], None],
    stage: str = "",
    during: AbstractContextManager[None] | None = None,
    handed: Path | None = None,
) -> NoReturn:
    """Call a script's work and exit with 0 success, 1 failure or 2 invalid request.

    SIGTERM, which CI systems and `dvc queue kill` send, ends a run like Ctrl-C does.

    Args:
        work: what the script does.
        stage: the stage of dvc.yaml that the script runs, which fails if its inputs were edited meanwhile; empty for
            a script of no stage.
        during: is entered while the stage works.
        handed: where an earlier command of the stage left the inputs that it read.
    """
    from convoy.core import inputs  # noqa: PLC0415 (pydantic: `convoy --help` must be fast)

    global _stopped  # noqa: PLW0603 (a process is one stage)
    silence_dependencies()
    _stopped = False
    signal.signal(signal.SIGTERM, _interrupt)
    _handle_ctrl_c(_interrupt)
    try:
        with (
            during or nullcontext(),
            inputs.watch.held(os.environ.get("DVC_STAGE") or stage, handed) if stage else nullcontext(),
        ):
            work()
    except Exception as error:
        if is_stopped():
            _report_stop()
        known = error if isinstance(error, ConvoyError) else fault(error)
        if known is None:
            raise
        print(f"\nERROR in {name()}: {escaping.lines(str(known))}", file=sys.stderr, flush=True)
        restorable = os.environ.get("DVC_STAGE") and Path("dvc.lock").exists()
        if restorable and not isinstance(error, inputs.InputsChanged):
            print(
                "DVC removed this stage's earlier outputs before it ran; `dvc checkout --force` brings them back.",
                file=sys.stderr,
                flush=True,
            )
        sys.exit(known.exit_code)
    except KeyboardInterrupt:
        _report_stop()
    sys.exit(0)


def stop_quietly() -> None:
    """End the process with a line if Ctrl-C comes while it imports its libraries: every entry point calls this first.

    Their statistics are disabled here too: MLflow and onnxruntime write an id into the home folder while they are imported.
    """
    silence_dependencies()
    _handle_ctrl_c(_end)


def is_stopped() -> bool:
    """Check whether Ctrl-C or SIGTERM came while the stage worked: libraries turn it into errors of their own."""
    return _stopped


def repository() -> Path:
    """Locate the repository that owns the tracking store and the checkpoints.

    DVC runs a queued experiment in a temporary copy and names the real repository
    in `DVC_ROOT`; a retraining runs in a worktree and names the repository that called
    it in `CONVOY_REPOSITORY`; elsewhere it is the current folder.
    """
    named = os.environ.get(REPOSITORY) or os.environ.get("DVC_ROOT")
    return Path(named or Path.cwd()).resolve()


def silence_dependencies() -> None:
    """Disable usage statistics and progress noise of dependencies by their environment variables.

    Called by every entry point before it imports them; importing Convoy changes nothing.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    global _stopped  # noqa: PLW0603 (as above)
    _stopped = True
    raise KeyboardInterrupt


def _handle_ctrl_c(handler: Callable[[int, FrameType | None], object]) -> None:
    """Set the handler of SIGINT, unless it is ignored: a terminal's Ctrl-C is not for jobs in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _end(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, f"\n{name()} was stopped before it began. Type the command again to run it.\n".encode())
    os._exit(EARLY)  # an exception may be caught by the library that is being imported


def _report_stop() -> NoReturn:
    print(
        f"\n{name()} was stopped. `dvc repro` runs it again, a training from its last checkpoint; "
        "`dvc checkout --force` brings earlier outputs back.",
        file=sys.stderr,
        flush=True,
    )
    sys.exit(INTERRUPTED)


def name() -> str:
    """Return the stage that DVC runs, else the name of the script."""
    return os.environ.get("DVC_STAGE") or Path(sys.argv[0]).name
