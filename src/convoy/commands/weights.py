"""`convoy weights`: choose what a training starts from."""

from pathlib import Path
from typing import Annotated

import typer

weights = typer.Typer(no_args_is_help=True, help="Choose the weights that a training starts from.")


@weights.callback()
def root() -> None:
    """Keep `use` a subcommand: Typer would merge an only one into the command above it."""


@weights.command("use")
def use(
    source: Annotated[
        str,
        typer.Argument(
            help="imagenet (torchvision's), a checkpoint file, a model's folder, a URL, runs:/RUN_ID, "
            "models:/NAME@ALIAS or models:/NAME/VERSION."
        ),
    ],
    *,
    network: Annotated[
        str,
        typer.Option(
            help="For imagenet: a network in networks/.", show_default="network.name of params.yaml"
        ),
    ] = "",
) -> None:
    """Pin SOURCE: fetch it into weights/ and keep its sha256 in git, for `network.weights` to name.

    An alias becomes the version that it stands for now. `train` never downloads: it takes what is pinned.

    Example: convoy weights use imagenet --network resnet18
    """
    from convoy.commands.pinning import use as pin
    from convoy.core import params
    from convoy.training.network_settings import NetworkParams

    name = network or params.section("network", NetworkParams).name
    for line in pin(source, name, Path.cwd()):
        print(line)
