"""The command `convoy`, also `python -m convoy`: Ctrl-C ends it with a line even while it imports its libraries."""

from convoy.core import stage


def main() -> None:
    """Import the command, then run it."""
    stage.stop_quietly()
    from convoy import cli  # noqa: PLC0415 (after Ctrl-C is handled)

    cli.main()


if __name__ == "__main__":
    main()
