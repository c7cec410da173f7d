"""Recipes: files in recipes/ that hold values of params.yaml for a kind of images, and what they were measured to reach."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from convoy import preflight
from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.models import spec as specs
from convoy.training import weight_pins

FOLDER = Path("recipes")


class Measured(params.Section):
    """What trainings with a recipe reached on test images that they had not seen."""

    accuracy: Annotated[float, Field(ge=0, le=1, description="mean test accuracy of the seeds")]
    spread: Annotated[
        float, Field(ge=0, le=1, description="standard deviation of the test accuracy over the seeds")
    ]
    seeds: Annotated[int, Field(ge=1, description="trainings, each with a seed of its own")]
    train_min: Annotated[
        float,
        Field(
            gt=0,
            description="minutes of the fastest training, from the start of its process to the saved model",
        ),
    ]
    hardware: Annotated[str, Field(description="what it was trained on")]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$", description="day of the measurement")]
    torch: Annotated[str, Field(description="version of torch")]

    def line(self) -> str:
        """Write it for people."""
        spread = f" ± {100 * self.spread:.1f}" if self.seeds > 1 else ""
        seeds = f"{self.seeds} seeds" if self.seeds > 1 else "1 seed"
        return (
            f"{100 * self.accuracy:.1f}{spread} % of test images ({seeds}), {self.train_min:.1f} min of training on "
            f"{self.hardware}; torch {self.torch}, {self.date}"
        )


class Recipe(params.Section):
    """A file of recipes/."""

    title: Annotated[str, Field(description="what it is, in a few words")]
    use: Annotated[str, Field(description="the images and the machine that it suits")]
    before: Annotated[list[str], Field(description="commands to type before it is applied")]
    measured: Annotated[
        Measured | Literal["not measured"], Field(description="what it reached, on the data of `before`")
    ]
    params: Annotated[dict[str, Any], Field(description="values of params.yaml")]

    def values(self) -> dict[str, Any]:
        """Return the values by flat keys, such as `train.lr`."""
        return params.flatten(self.params)

    def measurement(self) -> str:
        """Write what was measured, for people."""
        return self.measured if isinstance(self.measured, str) else self.measured.line()


def load(name: str, folder: Path = FOLDER) -> Recipe:
    """Read `folder/name.yaml`.

    Raises:
        RequestError: the recipe does not exist (the message has the nearest name), or a key is unknown, missing or invalid.
    """
    known = names(folder)
    if name not in known:
        raise RequestError(f"there is no recipe `{name}` in {folder}/{params.did_you_mean(name, known)}")
    path = folder / f"{name}.yaml"
    return params.check("", Recipe, yaml.read(path), path)


def names(folder: Path = FOLDER) -> list[str]:
    """List the recipes of a folder.

    Raises:
        RequestError: there are none.
    """
    if not (found := sorted(path.stem for path in folder.glob("*.yaml"))):
        raise RequestError(
            f"{Path.cwd() / folder} has no recipes. Change to the repository's root, or restore them: git checkout {folder}"
        )
    return found


def changes(values: Mapping[str, Any], path: Path = params.PARAMS_FILE) -> dict[str, tuple[Any, Any]]:
    """List the flat keys whose values in params.yaml differ from `values`: key to present and new value.

    Raises:
        RequestError: params.yaml lacks a key.
    """
    content = yaml.read(path)
    present = params.flatten(content)
    if missing := [key for key in values if key not in present]:
        key = missing[0]
        raise RequestError(
            f"the recipe sets {key}, which {path} does not have{params.did_you_mean(key, present)} If it was removed there, restore "
            f"it (git diff {path}); else correct the recipe."
        )
    return {key: (present[key], value) for key, value in values.items() if present[key] != value}


def apply(values: Mapping[str, Any], path: Path = params.PARAMS_FILE) -> list[str]:
    """Write values into params.yaml, in which comments and layout stay; all or none.

    Returns:
        A line `key: old → new` for each value that changed.

    Raises:
        RequestError: the values together are invalid (`preflight.check`), or the file cannot be edited in place.
        NetworkError: the network does not accept images of this size, or its starting weights are not pinned.
    """
    changes(values, path)
    try:
        preflight.check({key: yaml.inline(value) for key, value in values.items()}, path)
    except RequestError as error:
        raise RequestError(
            f"these values do not go together with the others of {path}; nothing was changed. {error}"
        ) from error
    source = values.get("network.weights", weight_pins.NONE)
    if source != weight_pins.NONE:
        weight_pins.find(source, specs.load(values["network.name"]))
    return yaml.update(path, values)
