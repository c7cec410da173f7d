"""A home folder that starts empty, and a Python that reports and refuses every address but this machine's."""

import os
from pathlib import Path

from clones import Clone

CACHES = (".cache/convoy", ".cache/matplotlib", ".config/matplotlib", ".matplotlib")
"""What docs/security.md declares: folders in the home folder that may be written."""

HOOK = '''"""Written by tests/watched.py: every Python that has this src on its path calls the hook before it uses a socket."""
import os, sys
def refuse(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else ""  # else a Unix socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", "", None):
        with open(LOG, "a") as log:
            log.write(f"{event} {host!r} by {sys.orig_argv}\\n")
        raise OSError(f"refused by the test: {event} {host!r}")
with open(LOG, "a") as log:
    log.write(f"watched {' '.join(sys.orig_argv[1:4])}\\n")
sys.addaudithook(refuse)
'''


class Watched:
    """Runs the commands of a clone in a home folder of their own."""

    def __init__(self, clone: Clone, home: Path) -> None:
        self.home, self.log = home, home.with_name("sockets.txt")
        home.mkdir(exist_ok=True)
        self.before = self._entries()
        # Stages and make put the clone's own src on the path, whatever PYTHONPATH was.
        (clone.folder / "src/sitecustomize.py").write_text(f"LOG = {str(self.log)!r}\n{HOOK}")
        with (clone.folder / ".git/info/exclude").open("a") as exclude:
            exclude.write("/src/sitecustomize.py\n")
        for name in [name for name in clone.env if name.startswith("XDG_") or name in QUIET]:
            del clone.env[name]
        clone.env |= {"HOME": str(home), "PYTHONPATH": str(clone.folder / "src")}

    def check(self, *commands: str) -> None:
        """Nothing but declared caches was written and no other machine was called; all these commands were watched."""
        new = {path for path in self._entries() - self.before if not path.startswith(CACHES)}
        assert not new, f"written into the home folder: {sorted(new)}"
        lines = self.log.read_text().splitlines()
        assert not [line for line in lines if not line.startswith("watched ")]
        for command in commands:
            assert [line for line in lines if command in line], f"{command} ran without the hook"

    def _entries(self) -> set[str]:
        files = [Path(folder, name) for folder, _, names in os.walk(self.home) for name in names]
        return {path.relative_to(self.home).as_posix() for path in files}


QUIET = ("DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK")
"""Variables of the tests that would hide what entry points forget."""
