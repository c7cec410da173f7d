"""`convoy recipe`: values of params.yaml that belong together, and which of them suit a dataset."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from convoy.commands.options import AsJson
from convoy.core.console import info, print_json
from convoy.core.errors import RequestError

recipe = typer.Typer(no_args_is_help=True, help="Choose settings that belong together.")

Name = Annotated[
    str, typer.Argument(help="A file in recipes/, without .yaml; `convoy recipe list` names them.")
]


@recipe.command("list")
def recipe_list(*, as_json: AsJson = False) -> None:
    """List the recipes in recipes/, with what each was measured to reach.

    Example: convoy recipe list
    """
    from convoy.recipes import recipe

    recipes, broken = {}, {}
    for name in recipe.names():
        try:
            recipes[name] = recipe.load(name)
        except RequestError as error:
            broken[name] = str(error)
    if as_json:
        print_json(
            {
                "recipes": [{"name": name, **found.model_dump()} for name, found in recipes.items()],
                "broken": broken,
            }
        )
    else:
        for name, found in recipes.items():
            info(f"{name}\n  {found.title}\n  {found.measurement()}")
    for reason in broken.values():
        info(f"ERROR: {reason}", stderr=True)
    raise typer.Exit(1 if broken else 0)


@recipe.command("show")
def recipe_show(name: Name, *, as_json: AsJson = False) -> None:
    """Show a recipe: what it suits, what it reached, what it would change in params.yaml, and the commands.

    Example: convoy recipe show cifar10-4min
    """
    from convoy.recipes import recipe

    found = recipe.load(name)
    changed = recipe.changes(found.values())
    if as_json:
        differences = {key: {"present": old, "recipe": new} for key, (old, new) in changed.items()}
        print_json({"name": name, **found.model_dump(), "changes": differences})
        return
    info(f"{name}: {found.title}\n\nSuits: {found.use}\nMeasured: {found.measurement()}\n")
    _print_differences(changed)
    commands = [*found.before, f"convoy recipe apply {shlex.quote(name)}", "dvc repro"]
    info("\n".join(["\nCommands:", *(f"  {line}" for line in commands)]))


@recipe.command("apply")
def recipe_apply(name: Name) -> None:
    """Write a recipe's values into params.yaml; comments and all other values stay.

    `git diff params.yaml` shows it with all other edits since the commit, which `git checkout params.yaml` takes back together.

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

    _refuse_other_data()
    found = suggest(Path("build/dataset"))
    changed, measured = recipe.changes(found.values), recipe.load(found.recipe)
    if as_json:
        print_json(
            {
                "situation": vars(found.situation),
                "recipe": found.recipe,
                "reason": found.reason,
                "measured": measured.model_dump()["measured"],
                "changes": [vars(change) for change in found.changes],
                "values": found.values,
                "images_per_s": round(found.images_per_s, 1),
                "train_min": round(found.train_min, 1),
            }
        )
    else:
        info(f"{found.situation.line()}\n\nRecipe {found.recipe}: {found.reason}")
        data = f" (on the data of: {'; '.join(measured.before)})" if measured.before else ""
        info(f"Measured: {measured.measurement()}{'' if isinstance(measured.measured, str) else data}")
        for change in found.changes:
            info(f"  with {change.key}: {yaml.inline(change.value)} ({change.reason})")
        info(
            f"\nAbout {found.train_min:.1f} min of training: {found.values['train.epochs']} epochs at "
            f"{found.images_per_s:,.0f} images/s, timed now."
        )
    if apply:
        lines = recipe.apply(found.values)
        if not as_json:
            _print_changes(lines)
    elif not as_json:
        info("")
        _print_differences(changed)
        info("To write them: convoy recipe suggest --apply" if changed else "Next: dvc repro")


def _refuse_other_data() -> None:
    """Refuse a dataset that was prepared from other data than those that data.dvc imports now.

    Raises:
        RequestError: with the command that prepares it.
    """
    from convoy.core import pipeline

    prepared = pipeline.recorded("deps", Path("data"))
    if prepared and pipeline.DATA_IMPORT.is_file() and pipeline.data_import().md5 != prepared:
        raise RequestError(
            "build/dataset was prepared from other data than data.dvc imports now. Prepare it: dvc repro prepare"
        )


def _print_differences(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Print what would change."""
    from convoy.core import yaml

    lines = [f"  {key}: {yaml.inline(old)} → {yaml.inline(new)}" for key, (old, new) in changed.items()]
    info(
        "\n".join([f"It changes {_values(len(lines))} of params.yaml:", *lines])
        if lines
        else "params.yaml has its values."
    )


def _print_changes(lines: list[str]) -> None:
    """Print what was written, and what comes next."""
    if not lines:
        info("params.yaml has these values already. Next: dvc repro")
        return
    info("\n".join([*lines, f"params.yaml: {_values(len(lines))} changed. Next: dvc repro"]))


def _values(count: int) -> str:
    return f"{count} value{'' if count == 1 else 's'}"
