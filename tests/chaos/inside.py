"""Lies in each clone as src/sitecustomize.py, so that every Python process of the clone runs it at its start.

The folder that the variable CONVOY_CHAOS names decides what happens; without the variable only codecarbon is hidden and the
uploader keeps its priority.

- `moment.json` names a program, an event and how often it occurs before. The first process that comes there writes its pid to
  `reached`, and waits until `go` exists. Events are Python's audit events (files that are opened, renamed or removed,
  programs that are started, databases and sockets that are connected to) and the statements that sqlite is given.
  Nothing of Convoy is replaced.
- `full` has a number: files may not grow beyond so many bytes (RLIMIT_FSIZE, which needs no rights, on Linux and macOS).
- `clock` has a number: the clock has been set by so many seconds, as Convoy and its libraries read it (`time.time`, and
  psutil's times of boot and of processes, which move with it; the kernel's times of files do not).
- `offline`: uploaders end at their start.
- `trace`, a folder, gets the events of each process.
"""

import contextlib
import importlib.util
import json
import os
import re
import resource
import sys
import threading
import time
import types
from pathlib import Path

POLL_S = 0.005
RECHECK_S = 0.02
EVENTS = (
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"),
    *("subprocess.Popen", "sqlite3.connect", "socket.connect"),
)
PRIORITY = "/proc/self/autogroup"


def hide_codecarbon() -> None:
    """Let imports of codecarbon find an empty package, whose tables can still be located: its start takes 1.5 s."""
    hidden = types.ModuleType("codecarbon")
    hidden.__spec__ = importlib.util.find_spec("codecarbon")
    hidden.__path__ = []
    sys.modules["codecarbon"] = hidden


def keep_priority() -> None:
    """Let the uploader have its share of busy cores: the tests wait for it."""
    os.nice = lambda _: 0

    def refuse(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and str(args[0]) == PRIORITY:
            raise PermissionError(PRIORITY)

    sys.addaudithook(refuse)


def is_alive(pid: int) -> bool:
    """Check whether a process exists; `kill` with signal 0 only looks."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Inside:
    """Watch this process's audit events."""

    def __init__(self, control: Path) -> None:
        self.control = control
        file = control / "moment.json"
        moment = json.loads(file.read_text()) if file.exists() else {}
        self.program = " ".join(sys.orig_argv)
        self.watches = bool(moment) and bool(re.search(moment["program"], self.program))
        self.event = re.compile(moment["event"] if self.watches else "")
        self.left = moment["nth"] if self.watches else 0
        self.test = moment.get("test", 0)
        self.trace = control / "trace" / f"{os.getpid()}.txt" if (control / "trace").is_dir() else None
        self.busy = threading.local()
        self.checked = 0.0
        self.full = False
        self.offset = 0.0
        if self.trace:
            self.trace.write_text(f"{self.program}\n")

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        """Look at an audit event."""
        if event in EVENTS and not getattr(self.busy, "now", False):
            if event == "open" and not writes(args):
                event = "read"
            self.see(f"{event} {' '.join(map(str, args[:2]))}")

    def see(self, line: str) -> None:
        """Let the disk be as full as it is said to be, and wait if this is the moment."""
        if getattr(self.busy, "now", False):
            return
        self.busy.now = True
        try:
            self.limit()
            if self.trace:
                with self.trace.open("a") as file:
                    file.write(f"{line}\n")
            if self.watches and self.left and self.event.search(line):
                self.left -= 1
                if not self.left:
                    self.wait(line)
        finally:
            self.busy.now = False

    def wait(self, line: str) -> None:
        """Stay here until the test lets this process go on."""
        new = self.control / f"reached.{os.getpid()}"
        new.write_text(f"{os.getpid()}\n{self.program}\n{line}\n")
        try:
            os.link(new, self.control / "reached")
        except FileExistsError:  # another process came here first
            return
        while not (self.control / "go").exists():
            if not is_alive(self.test):
                os._exit(1)  # nobody lets this process go on: the test was killed
            time.sleep(POLL_S)
        self.checked = 0.0
        self.limit()

    def limit(self) -> None:
        """Let the limit of file sizes follow the file `full`."""
        now = time.monotonic()
        if now - self.checked < RECHECK_S:
            return
        self.checked = now
        path = self.control / "full"
        if path.exists() != self.full:
            self.full = not self.full
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(path.read_text()) if self.full else hard, hard))

    def follow_clock(self) -> None:
        """Let the clock follow the file `clock`."""
        real, real_ns, path, checked = time.time, time.time_ns, self.control / "clock", 0.0

        def offset() -> float:
            nonlocal checked
            if time.monotonic() - checked > RECHECK_S:
                checked = time.monotonic()
                with contextlib.suppress(OSError, ValueError):
                    self.offset = float(path.read_text())
            return self.offset

        time.time = lambda: real() + offset()
        time.time_ns = lambda: real_ns() + int(offset() * 1e9)

        def move_psutil(module) -> None:
            """psutil adds the time of boot, which moves with the clock."""
            started, boot = module.Process.create_time, module.boot_time
            module.Process.create_time = lambda process: started(process) + offset()
            module.boot_time = lambda: boot() + offset()

        sys.meta_path.insert(0, AfterImport("psutil", move_psutil))

    def follow_statements(self) -> None:
        """See the statements that sqlite is given."""

        def wrap(module) -> None:
            connect = module.dbapi2.connect

            def connected(*args, **named):
                connection = connect(*args, **named)
                connection.set_trace_callback(lambda statement: self.see(f"sql {statement}"))
                return connection

            module.connect = module.dbapi2.connect = connected

        if self.watches or self.trace:
            sys.meta_path.insert(0, AfterImport("sqlite3", wrap))


class AfterImport:
    """Call a function with a module once it is imported."""

    def __init__(self, name: str, call) -> None:
        self.name, self.call = name, call

    def find_spec(self, name, _path=None, _target=None):
        """Find the module as others do, and add the call to its loading."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            self.call(module)

        spec.loader.exec_module = exec_module
        return spec


def writes(args: tuple[object, ...]) -> bool:
    """Whether the audit event `open` opens a file to write."""
    flags = args[2]
    return bool(set(str(args[1] or "")) & set("wax+")) or (
        isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
    )


hide_codecarbon()
keep_priority()
if "CONVOY_CHAOS" in os.environ:
    folder = Path(os.environ["CONVOY_CHAOS"])
    if (folder / "offline").exists() and "convoy.tracking.uploader" in sys.orig_argv:
        os._exit(0)
    inside = Inside(folder)
    inside.follow_clock()
    inside.follow_statements()
    sys.addaudithook(inside.hook)
