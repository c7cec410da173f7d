"""The `convoy` command. Each subcommand imports what it needs when it is called, so that `--help` is quick."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from convoy import __version__
from convoy.commands.data import data
from convoy.commands.explain import explain
from convoy.commands.lineage import trace, why
from convoy.commands.lr_find import lr_find
from convoy.commands.network import network
from convoy.commands.recipe import recipe
from convoy.commands.registry import promote, register, rollback
from convoy.commands.runs import migrate, sweep, sync, ui
from convoy.commands.serve import demo, predict, serve, verify
from convoy.commands.weights import weights
from convoy.core import escaping, stage
from convoy.core.errors import ConvoyError, RequestError, fault


class InOrderOfWork(TyperGroup):
    """List commands as `COMMANDS` does; Typer would list those without subcommands first."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 (Typer's signature)
        """Run a command; Ctrl-C ends it with a line and the exit code that a shell gives."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("\nStopped. Type the command again to run it.", file=sys.stderr)
            sys.exit(stage.EARLY)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 (Typer's signature)
        """Name all commands, panel by panel."""
        return [name for commands in COMMANDS.values() for name in commands]


app = typer.Typer(
    cls=InOrderOfWork,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, compare, verify and serve image classifiers (CNNs) from labelled images. "
    "`dvc repro` runs the pipeline itself.",
)


def main() -> None:
    """Run a command; a known error is one message and its exit code."""
    stage.silence_dependencies()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _use_checkout(Path.cwd())
        app()
    except Exception as error:
        known = error if isinstance(error, ConvoyError) else fault(error)
        if known is None:
            raise
        print(f"ERROR: {escaping.lines(str(known))}", file=sys.stderr)
        sys.exit(known.exit_code)


def _use_checkout(root: Path) -> None:
    """Start again with the `src` of the checkout `root`, as its stages do, if another one's environment is active.

    Raises:
        RequestError: Python takes no notice of PYTHONPATH.
    """
    source, own = root / "src", Path(__file__).parents[1]
    if not (root / ".dvc").is_dir() or not (source / "convoy/cli.py").is_file() or source.samefile(own):
        return
    before = os.environ.get("PYTHONPATH", "")
    if before.split(os.pathsep)[0] == str(source):
        raise RequestError(
            f"`convoy` is {own}, not {source} of this checkout, and PYTHONPATH has no effect. Install this checkout into an "
            "environment of its own: make environment && source .venv/bin/activate"
        )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(source), before]))}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)  # noqa: S606 (no shell)


@app.callback(invoke_without_command=True)
def root(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False
) -> None:
    """Handle the options that belong to no subcommand."""
    if version:
        print(__version__)
        raise typer.Exit


COMMANDS: dict[str, dict[str, typer.Typer | Callable[..., None]]] = {
    "Data": {"data": data, "weights": weights},
    "Network": {"network": network, "explain": explain},
    "Run": {"recipe": recipe, "lr-find": lr_find, "sweep": sweep, "sync": sync},
    "Compare": {"ui": ui, "trace": trace, "why": why},
    "Promote": {"register": register, "promote": promote, "rollback": rollback},
    "Serve": {"predict": predict, "serve": serve, "verify": verify, "demo": demo},
    "Maintain": {"migrate": migrate},
}
"""Panel of `convoy --help` to its commands, in the order of the work."""

for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(command)
