"""The exceptions of Convoy. Each message names the cause, what exists instead and what to type next.

The exit code belongs to the class: 1, a check or a run failed; 2, the request was invalid.
"""

import errno
import re
import shlex
from collections.abc import Sequence
from pathlib import Path


class ConvoyError(Exception):
    """Report a known cause with its remedy; any other exception is a bug and keeps its traceback."""

    exit_code = 1


class RequestError(ConvoyError):
    """Invalid request: an unknown key, a value out of range, a name that does not exist."""

    exit_code = 2


class DataError(ConvoyError):
    """Unusable delivery: unreadable, unsafe, too few classes, a split without a class."""


class NetworkError(ConvoyError):
    """The network does not accept the images."""


class VerificationError(ConvoyError):
    """The exported model does not do what was measured."""


class TrainingError(ConvoyError):
    """Training cannot continue, for example after a NaN loss."""


class TrainingPaused(ConvoyError):  # noqa: N818 (not an error: the time budget is spent)
    """Training stopped at its time budget and resumes from its checkpoint."""


class MigrationError(ConvoyError):
    """The migration is incomplete; the same command continues where it stopped."""


class SystemFault(ConvoyError):  # noqa: N818 (of the disk, not of the request)
    """The system refused to read or write a file."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|only \d+ of \d+ bytes|disk is full")
"""How numpy and SQLite report a full disk, without the system's number."""


CODE = Path(__file__)
"""This file: gone if the repository was moved."""


def fault(error: BaseException) -> SystemFault | None:
    """Describe a fault of the system (full disk, missing permission …) behind an error; None for any other error.

    Libraries raise errors of their own while they handle a full disk, as torch does; that of the system is their context.
    """
    if not CODE.exists():
        return SystemFault(
            f"{CODE.parents[3]} was moved, renamed or removed while this ran, so its files were missing "
            f"({type(error).__name__}). Type the command again in the folder's new place."
        )
    seen: BaseException | None = error
    while seen is not None:
        is_first = seen is error
        if isinstance(seen, OSError) and (is_first or seen.errno in FULL) and (text := _fault(seen)):
            return SystemFault(text)
        if SHORT_WRITE.search(str(seen)):
            return SystemFault(_full(Path.cwd(), str(seen)))
        seen = seen.__cause__ or seen.__context__
    return None


def _fault(error: OSError) -> str:
    """Format cause and remedy of a fault of the system; empty for other errors."""
    path = Path(str(error.filename)) if error.filename is not None else Path()
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return _full(path, reason)
    if error.errno in DENIED:
        return (
            f"{path} cannot be read or written by this user: {reason}. Who may, shows: ls -ld {_typed(path)} "
            f"{_typed(path.parent)}"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"too many files are open: {reason}. Raise the limit, then type the command again: ulimit -n 4096"
        )
    if error.errno in (errno.EIO, errno.ESTALE):
        return (
            f"the disk of {path} failed: {reason}. Check disk or network share: df -h {_typed(path.parent)}"
        )
    return ""


def _full(path: Path, reason: str) -> str:
    folder = path if path.is_dir() else path.parent
    what = f"{path} cannot be written" if path.name else "the disk takes no more"
    return f"{what}: {reason}. Free space, then type the command again: df -h {_typed(folder)}"


def _typed(path: Path) -> str:
    return shlex.quote(str(path))


def listed(names: Sequence[str], most: int) -> str:
    """Join names with commas, and count those beyond the first `most`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://((?:(?![A-Za-z][A-Za-z0-9+.-]*://)\S)+)")

SECRET = re.compile(
    r"([?&;#])(\w*(?:token|secret|signature|accesskeyid|credential)|(?:[\w.-]*[-_.])?(?:token|secret|signature|credential|sig"
    r"|passw(?:or)?d|pwd|auth|(?:api)?[-_]?key))=([^&;#\s'\"`,)>]+)",
    re.IGNORECASE,
)
"""Parameters of an address that let whoever has them in, such as `X-Amz-Signature`, `sig` and `private_token`."""


def without_credentials(text: str) -> str:
    """Replace passwords, tokens and signatures in every address of a text that people will see by `***`."""
    return ADDRESS.sub(_masked, text)


def refuse_credentials(address: str) -> None:
    """Refuse an address with a password, token or signature, before a .dvc file brings it into git.

    Raises:
        RequestError: with the address without them.
    """
    masked = without_credentials(address)
    if masked != address:
        raise RequestError(
            f"{masked} contains credentials (***), which git would keep, and a .dvc file would show to everybody. Give the "
            "address without them; docs/data.md shows how DVC gets them from a file outside of git."
        )


def _masked(match: re.Match[str]) -> str:
    scheme, rest = match[1], match[2]
    end = re.search(r"[/?#]", rest)
    authority = rest[: end.start()] if end else rest
    if "@" not in authority and re.search(r":(?!\d*$)", authority) and not authority.startswith("["):
        authority = rest[: rest.rfind("@") + 1] or authority  # the password holds a `/`, `?` or `#`
    user, at, host = authority.rpartition("@")
    name, colon, _ = user.partition(":")
    if at and colon:
        user = f"{name}:***"
    elif at and scheme.lower() in {"http", "https"}:
        user = "***"  # forges accept a token as the user's name
    tail = SECRET.sub(r"\1\2=***", rest[len(authority) :])
    return f"{scheme}://{user}{at}{host}{tail}"
