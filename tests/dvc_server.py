"""Run DVC's command line in processes that are forked after its import, which takes longer than most commands.

`python tests/dvc_server.py` imports DVC and forks a process for each request on its standard input.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMPORTED = (
    "dulwich.worktree", "dvc._debug", "dvc.cachemgr", "dvc.cli.parser", "dvc.daemon", "dvc.data_cloud", "dvc.lock",
    "dvc.repo.checkout", "dvc.repo.fetch", "dvc.repo.imp_url", "dvc.repo.push", "dvc.repo.reproduce", "dvc.repo.status",
    "dvc.rwlock", "dvc.scm", "dvc.stage.imports", "dvc.stage.run", "dvc_data.index.checkout", "dvc_objects.fs.local",
    "dvc_render.vega_templates", "flatten_dict", "networkx", "psutil", "rich.console", "ruamel.yaml", "scmrepo.git",
    "scmrepo.noscm", "zc.lockfile",
)  # fmt: skip
"""What DVC's commands import, most of it only when they run."""


class Server:
    """Stand for `subprocess.run`: where it runs DVC and captures its output, a forked process does."""

    def __init__(self) -> None:
        self.run = subprocess.run
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, words: Sequence[str], *others: Any, **options: Any) -> Any:
        captures = options.keys() - {"check", "errors"} == {"cwd", "env", "capture_output", "text"}
        if others or not captures or list(words[:3]) != [sys.executable, "-m", "dvc"]:
            return self.run(words, *others, **options)
        with tempfile.TemporaryDirectory() as scratch:
            streams = [Path(scratch, name) for name in ("out", "err")]
            code = self.request(
                words[3:], str(options["cwd"]), dict(options["env"] or os.environ), *map(str, streams)
            )
            done = subprocess.CompletedProcess(
                words, code, *(path.read_text(errors="replace") for path in streams)
            )
        if options.get("check"):
            done.check_returncode()
        return done

    def request(self, *request: object) -> int:
        if self.process is None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen([sys.executable, __file__], start_new_session=True, **pipes)
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def stop(self) -> None:
        if self.process:
            self.process.communicate()


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            work(*json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def work(words: list[str], folder: str, env: dict[str, str], out: str, err: str) -> None:
    from dvc.cli import main  # noqa: PLC0415 (not in the process of the tests)

    code = 255
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        for stream, path in enumerate((os.devnull, out, err)):
            os.dup2(os.open(path, os.O_CREAT | os.O_RDWR), stream)
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
