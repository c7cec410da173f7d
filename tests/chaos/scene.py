"""One combination: a clone, a command that is halted at a moment, and what happened, for the message of a failure."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
from mlflow.tracking import MlflowClient

from chaos.moments import Moment, Point
from chaos.states import control
from clones import Clone, drain
from proxy import Proxy

LIMIT_S = 240  # longest wait for a command, on a busy machine
POLL_S = 0.01
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
OUTPUT = 6000  # characters of a command's output in a message


@dataclass
class Scene:
    """A clone in which a moment is reached; `random` decides all that is left to chance."""

    clone: Clone
    moment: Moment
    random: Random
    uri: str = ""  # of the store; the clone's own if empty
    experiment: str = "convoy"
    proxy: Proxy | None = None  # before a tracking server, where a combination needs that
    story: list[str] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None
    ended: int | None = None  # exit code of the command that was halted
    halted: int = 0  # pid of the process that came to the moment

    @property
    def folder(self) -> Path:
        """Return the clone's folder, which an action may move."""
        return self.clone.folder

    @property
    def control(self) -> Path:
        """Return the folder that steers the clone's processes."""
        return control(self.clone)

    @property
    def store(self) -> MlflowClient:
        """Return a client of the store."""
        return MlflowClient(self.uri or f"sqlite:///{self.folder}/mlflow.db")

    def note(self, text: str) -> None:
        """Add to the story."""
        self.story.append(text)

    def start(self, *command: str) -> tuple["subprocess.Popen[bytes]", Path]:
        """Start a command in a process group of its own, as permissions bind other users than root; its output is a file."""
        log = self.folder.parent / f"log-{len(list(self.folder.parent.glob('log-*')))}.txt"
        env = {**self.clone.env, "CONVOY_CHAOS": str(self.control)}
        with log.open("wb") as file:
            started = subprocess.Popen(
                command,
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_obey_permissions if os.geteuid() == 0 else None,  # noqa: PLW1509 (no threads hold locks here)
            )
        return started, log

    def wait(self, process: "subprocess.Popen[bytes]", what: str) -> int:
        """Wait for a command."""
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"{what} did not end within {LIMIT_S} s\n{self.tell()}") from None

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and output."""
        process, log = self.start(*command)
        code = self.wait(process, " ".join(command))
        output = log.read_text(encoding="utf-8", errors="replace")
        self.note(f"$ {' '.join(command)}  → {code}\n{output[-OUTPUT:]}")
        return code, output

    def git(self, *words: str) -> str:
        """Run git, which must succeed."""
        done = subprocess.run(["git", *words], cwd=self.folder, capture_output=True, text=True, check=False)
        self.note(f"$ git {' '.join(words)}  → {done.returncode}\n{done.stdout[-500:]}{done.stderr[-500:]}")
        return done.stdout

    def halt(self) -> None:
        """Start the moment's command, and return when it has come to a point that chance chooses."""
        points = self.moment.points
        if self.uri:  # a server's statements and files are not seen from here, calls of it are
            unseen = [point for point in points if re.match(r"sql|open .*artifact", point.event)]
            calls = [Point(point.program, r"socket\.connect") for point in unseen[:1]]
            points = (*(point for point in points if point not in unseen), *calls)
        point = self.random.choice(points)
        nth = self.random.randint(1, point.most)
        settings = {"program": point.program, "event": point.event, "nth": nth, "test": os.getpid()}
        (self.control / "moment.json").write_text(json.dumps(settings), encoding="utf-8")
        self.process, self._log = self.start(*self.moment.command)
        until = time.monotonic() + LIMIT_S
        while not (self.control / "reached").exists():
            assert time.monotonic() < until, f"never reached: {settings}\n{self.output()}"
            if self.process.poll() is not None and not self._uploads():
                raise AssertionError(f"the command ended before: {settings}\n{self.output()}")
            time.sleep(POLL_S)
        pid, program, line = (self.control / "reached").read_text(encoding="utf-8").split("\n")[:3]
        self.halted = int(pid)
        self.note(
            f"$ {' '.join(self.moment.command)}  … halted at `{line:.200}` (number {nth}) of `{program}`"
        )

    def release(self) -> None:
        """Let the halted process go on."""
        (self.control / "moment.json").unlink(missing_ok=True)
        (self.control / "go").touch()

    def finish(self) -> None:
        """Wait for the halted command and for the uploader."""
        assert self.process
        self.ended = self.wait(self.process, " ".join(self.moment.command))
        self.note(f"it ended with {self.ended}\n{self.output()[-OUTPUT:]}")
        self.settle()

    def settle(self) -> None:
        """Wait until the uploader has delivered what it can and left."""
        drain(self.clone)

    def output(self) -> str:
        """Return what the halted command has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def pause(self) -> None:
        """Wait as long as chance decides, after the moment."""
        time.sleep(self.random.choice((0.0, self.random.uniform(0, 0.3))))

    def signal(self, how: signal.Signals, *, group: bool) -> None:
        """Send a signal to all of the command, as a terminal does, or to the halted process only."""
        assert self.process
        self.note(f"{how.name} to {'the process group' if group else f'process {self.halted}'}")
        with suppress(ProcessLookupError):
            if group:
                os.killpg(self.process.pid, how)
                if os.getpgid(self.halted) != self.process.pid:  # the uploader, in a session of its own
                    os.kill(self.halted, how)
            else:
                os.kill(self.halted, how)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text that occurs once in a file."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        self.note(f"edit {name}: {old.strip()!r} → {new.strip()!r}")

    def tell(self) -> str:
        """Return the story."""
        return "\n".join(self.story)

    def _uploads(self) -> bool:
        """Whether an uploader of the clone still runs, which may come to the moment."""
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.Error):
                if "convoy.tracking.uploader" in (process.info["cmdline"] or ()) and process.cwd() == str(
                    self.folder
                ):
                    return True
        return False


def _obey_permissions() -> None:
    """Take root's right to ignore permissions from the process that is about to be started (Linux)."""
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError("root ignores permissions here: run the tests as another user")
