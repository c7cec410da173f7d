"""A process that runs one trial after the other: `python -m convoy.sweep.worker FOLDER TARGET THREADS PARENT`.

It ends with the process that started it, however that ended: then nothing comes from its
standard input any more.
"""

import errno
import json
import os
import signal
import sys
import threading
from pathlib import Path

from convoy.core import stage
from convoy.core.errors import ConvoyError, TrainingError
from convoy.sweep.request import Request, code
from convoy.sweep.study import REQUEST, Study

FULL = 3
"""Exit code where the disk has no room; a message might find none either."""

STOPPED = 4
"""Exit code after SIGTERM."""


def main(folder: Path, target: int, threads: int, parent: dict[str, str]) -> None:
    """Run trials until the study has `target` of them, each with so many threads.

    Raises:
        ConvoyError: what no other trial would fare better with.
    """
    import torch  # noqa: PLC0415 (after the signals are set: it takes seconds)

    from convoy.sweep import trial  # noqa: PLC0415 (torch: after the cores are shared out)
    from convoy.tracking.run import Reference  # noqa: PLC0415 (torch: after the cores are shared out)

    torch.set_num_threads(threads)
    request = Request.load(folder / REQUEST)
    if request.inputs["code"] != code():
        raise TrainingError(
            "convoy's code changed while it was swept. Type `convoy sweep` again: another study begins."
        )
    study = Study(folder, request)
    while (asked := study.ask(target)) is not None:
        trial.run(study, asked, Reference(**parent))


def _end_with_the_leader() -> None:
    """Wait for the end of the standard input, and leave at once: a trial is lost, the study is whole."""
    os.read(sys.stdin.fileno(), 1)  # not through sys.stdin, whose lock would be held when Python ends
    os._exit(STOPPED)


def _run() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to the leader, who says SIGTERM
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    stage.silence_dependencies()
    folder, target, threads, parent = sys.argv[1:]
    try:
        main(Path(folder), int(target), int(threads), json.loads(parent))
    except KeyboardInterrupt:
        return STOPPED
    except ConvoyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT} or "PytorchStreamWriter" in str(error):
            return FULL
        raise
    return 0


if __name__ == "__main__":
    sys.exit(_run())
