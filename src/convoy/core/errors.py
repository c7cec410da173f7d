"""What Convoy raises when it knows what went wrong.

Every message says what was wrong, what exists instead and what to type next.
The exit code belongs to the class: 1, a check or a run failed; 2, the request
itself was wrong.
"""


class ConvoyError(Exception):
    """Know the cause and say the remedy; anything else is a bug and keeps its traceback."""

    exit_code = 1


class RequestError(ConvoyError):
    """Refuse what was asked: an unknown key, a value out of range, a name that does not exist."""

    exit_code = 2


class DataError(ConvoyError):
    """Refuse delivered data: unreadable, unsafe, too few classes, a split without a class."""


class NetworkError(ConvoyError):
    """Refuse a network that cannot take the images it is given."""


class ProofError(ConvoyError):
    """Refuse a deployable graph that does not do what was measured."""


class TrainingError(ConvoyError):
    """Give a training up that cannot come to anything."""


class Paused(ConvoyError):  # noqa: N818 (what it says is no mistake of anybody)
    """Stop a training that goes on later, from where it is."""


class MigrationError(ConvoyError):
    """Give a migration up, or refuse to call it done; the same command goes on where it stopped."""
