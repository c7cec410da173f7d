"""The exceptions of Convoy. Each message names the cause, what exists instead and what to type next.

The exit code belongs to the class: 1, a check or a run failed; 2, the request was invalid.
"""

import re
from collections.abc import Sequence


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


def listed(names: Sequence[str], most: int) -> str:
    """Join names with commas, and count those beyond the first `most`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def without_credentials(text: str) -> str:
    """Replace the password or token of every address in a text that people will see by `***`."""
    hidden = re.sub(r"(://[^/\s:@]*):[^/\s@]+@", r"\1:***@", text)
    return re.sub(r"(https?://)[^/\s:@]+@", r"\1***@", hidden)  # forges accept a token as the user's name
