"""The process that delivers the journals of a repository to MLflow; stages start it (`outbox.py`).

It lives while somebody writes to a journal or something can be delivered (`rounds.py`), and
nobody waits for it but the last command of a pipeline and `convoy sync`.
"""

import contextlib
import os
import sys
from pathlib import Path

import filelock

from convoy.core import stage
from convoy.tracking import outbox

START_SECONDS = 2.0
"""How long the lock is waited for: whoever asks whether a courier is at work holds it for a moment."""


NICENESS = 10
"""About a tenth of a core where training wants them all; at 19, a hundredth, its start would take minutes."""


def main() -> None:
    """Deliver what is in `outbox/`, unless another process does already.

    A process that is named on the command line is waited for as if it wrote to a journal.
    """
    where = Path.cwd() / "outbox"
    lock = outbox.uploader_lock(where)
    try:
        lock.acquire(timeout=START_SECONDS)
    except filelock.Timeout:
        return
    stage.silence_dependencies()
    # It tries again itself, and says in the meantime that it had to.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _yield_cores()
    from convoy.tracking.uploader import Rounds  # noqa: PLC0415 (seconds of imports for the one that has the lock)

    Rounds(where, lock, owner=sys.argv[1] if len(sys.argv) > 1 else "").run()


def _yield_cores() -> None:
    """Take what training leaves of the cores.

    Where Linux groups processes by session, as it does on desktops and many servers, niceness counts only
    within a session, and a session of its own, such as this, has a share of its own: it needs its own niceness.
    """
    os.nice(NICENESS)
    group = Path("/proc/self/autogroup")
    with contextlib.suppress(OSError):  # not Linux, no grouping, or a container that may not
        group.write_text(str(NICENESS), encoding="ascii")


if __name__ == "__main__":
    main()
