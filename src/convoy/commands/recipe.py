"""`convoy recipe`: values of params.yaml that were measured together, and which of them suit a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from convoy.commands.options import AsJson
from convoy.core.console import info, print_json

recipe = typer.Typer(no_args_is_help=True, help="Choose settings that were measured together.")

Name = Annotated[
    str, typer.Argument(help="A file in recipes/, without .yaml; `convoy recipe list` names them.")
]


@recipe.command("list")
def recipe_list(*, as_json: AsJson = False) -> None:
    """List the recipes in recipes/, with what each was measured to reach.

    Example: convoy recipe list
    """
    from convoy.recipes import recipe

    recipes = {name: recipe.load(name) for name in recipe.names()}
    if as_json:
        print_json({"recipes": [{"name": name, **found.model_dump()} for name, found in recipes.items()]})
        return
    for name, found in recipes.items():
        info(f"{name}\n  {found.title}\n  {found.measurement()}")


@recipe.command("show")
def recipe_show(name: Name, *, as_json: AsJson = False) -> None:
    """Show a recipe: what it suits, what it reached, what it would change in params.yaml, and the commands.

    Example: convoy recipe show cifar10-4min
    """
    from convoy.core import yaml
    from convoy.recipes import recipe

    found = recipe.load(name)
    changed = recipe.changes(found.values())
    if as_json:
        differences = {key: {"present": old, "recipe": new} for key, (old, new) in changed.items()}
        print_json({"name": name, **found.model_dump(), "changes": differences})
        return
    info(f"{name}: {found.title}\n\nSuits: {found.use}\nMeasured: {found.measurement()}\n")
    lines = [f"  {key}: {yaml.inline(old)} → {yaml.inline(new)}" for key, (old, new) in changed.items()]
    info(
        "\n".join([f"It changes {len(lines)} values of params.yaml:", *lines])
        if lines
        else "params.yaml has its values."
    )
    info(
        "\n".join(
            [
                "\nCommands:",
                *(f"  {line}" for line in [*found.before, f"convoy recipe apply {name}", "dvc repro"]),
            ]
        )
    )


@recipe.command("apply")
def recipe_apply(name: Name) -> None:
    """Write a recipe's values into params.yaml; comments and all other values stay.

    `git diff params.yaml` shows what changed, and `git checkout params.yaml` takes it back.

    Example: convoy recipe apply cifar10-4min
    """
    from convoy.recipes import recipe

    _print_changes(recipe.apply(recipe.load(name).values()))


@recipe.command("suggest")
def recipe_suggest(
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Write the values into params.yaml.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at the prepared dataset and this machine; propose a recipe, what to change of it, and the minutes.

    Run `dvc repro prepare` first. A few steps are timed on random pixels; nothing is trained.

    Example: convoy recipe suggest --apply
    """
    from convoy.core import yaml
    from convoy.recipes import recipe
    from convoy.recipes.suggest import suggest

    found = suggest(Path("build/dataset"))
    changed = recipe.changes(found.values)
    if as_json:
        print_json(
            {
                "situation": vars(found.situation),
                "recipe": found.recipe,
                "reason": found.reason,
                "changes": [vars(change) for change in found.changes],
                "values": found.values,
                "images_per_s": round(found.images_per_s, 1),
                "train_min": round(found.train_min, 1),
            }
        )
    else:
        info(f"{found.situation.line()}\n\nRecipe {found.recipe}: {found.reason}")
        info(
            "\n".join(
                f"  with {change.key}: {yaml.inline(change.value)}: {change.reason}"
                for change in found.changes
            )
        )
        info(
            f"\nAbout {found.train_min:.1f} min of training: {found.values['train.epochs']} epochs at "
            f"{found.images_per_s:,.0f} images/s, timed now."
        )
    if apply:
        lines = recipe.apply(found.values)
        if not as_json:
            _print_changes(lines)
    elif changed and not as_json:
        info(f"It changes {len(changed)} values of params.yaml: convoy recipe suggest --apply")


def _print_changes(lines: list[str]) -> None:
    """Print what was written, and what comes next."""
    if not lines:
        info("params.yaml has these values already. Next: dvc repro")
        return
    info("\n".join([*lines, f"params.yaml: {len(lines)} values changed. Next: dvc repro"]))
