"""Read a network from networks/NAME.yaml and check it, without importing torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)
from pydantic_core import ErrorDetails

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean
from convoy.core.yaml import LocatedDict, line_of
from convoy.models import torchvision
from convoy.models.layer_types import Count, Layers, abbreviate
from convoy.models.parser import SpecParser

FOLDER = Path("networks")
KEYS = ("layers", "blocks", "init", "twin", "made_for", "torchvision")


class MadeFor(BaseModel):
    """The images and classes that a network was published for: the defaults of `convoy network show`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image_px: Count
    classes: Count


class Spec(BaseModel):
    """A network: either layers, or the name of a torchvision classifier.

    Attributes:
        init: initial weights. torch: the defaults of torch's layers. kaiming: convolutions from N(0, 2 / fan out),
            dense layers from N(0, 0.01), biases 0, as in torchvision's VGG: deep networks without norms need it.
        twin: torchvision's classifier of exactly this structure, whose weights fit tensor by tensor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    torchvision: str | None = None
    layers: Layers = ()
    init: Literal["torch", "kaiming"] = "torch"
    twin: str | None = None
    made_for: Annotated[MadeFor | None, Field(exclude=True)] = None

    @field_validator("layers", mode="before")
    @classmethod
    def _parse_layers(cls, value: object) -> object:
        return SpecParser().layers(value)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the alternative that is not in use."""
        return {key: value for key, value in handler(self).items() if value}


def load(name: str, folder: Path = FOLDER) -> Spec:
    """Read `folder/name.yaml`.

    Raises:
        RequestError: the file does not exist; an unknown word or argument, or an invalid value, naming
            file and line; an unknown classifier of torchvision's.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = names(folder)
        hint = did_you_mean(name, known) if known else "; the folder has none"
        raise RequestError(
            f"there is no network `{name}` in {folder}/{hint}{'' if hint.endswith('?') else '.'} "
            f"Set network.name to an existing network, or add {path}."
        )
    content = yaml.read_located(path)
    _check_keys(content, path)
    if "torchvision" in content:
        torchvision.check(str(content["torchvision"]), f"{path}:{line_of(content, 'torchvision')}")
        return Spec(name=name, torchvision=str(content["torchvision"]))
    parser = SpecParser(str(path))
    if "blocks" in content:
        parser.define_blocks(content["blocks"], line_of(content, "blocks"))
    layers = parser.layers(content["layers"], line=line_of(content, "layers"))
    others = {key: content[key] for key in ("init", "twin", "made_for") if key in content}
    try:
        return Spec.model_validate({"name": name, "layers": layers, **others})
    except ValidationError as error:
        raise RequestError("\n".join(_explain(detail, content, path) for detail in error.errors())) from error


def names(folder: Path = FOLDER) -> list[str]:
    """List the networks of a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _explain(detail: ErrorDetails, content: LocatedDict, path: Path) -> str:
    """Turn one pydantic error about a key other than `layers` into a line with file and line."""
    first, *inner = (str(part) for part in detail["loc"])
    line = line_of(content[first], inner[0]) if inner else 0
    location = f"{path}:{line or line_of(content, first)}"
    key = ".".join([first, *inner])
    if detail["type"] == "missing":
        return f"{location}: `{key}` is missing"
    if detail["type"] == "extra_forbidden":
        return f"{location}: unknown key `{key}`{did_you_mean(inner[0], MadeFor.model_fields)}"
    return f"{location}: `{key}` is {abbreviate(detail['input'])}, but {detail['msg'].removeprefix('Input ')}"


def _check_keys(content: LocatedDict, path: Path) -> None:
    for key in content:
        if key not in KEYS:
            raise RequestError(
                f"{path}:{line_of(content, key)}: unknown key `{key}`{did_you_mean(key, KEYS)}"
            )
    if "torchvision" in content and len(content) > 1:
        other = next(key for key in content if key != "torchvision")
        raise RequestError(
            f"{path}:{line_of(content, other)}: `{other}` cannot be combined with `torchvision:`, which names "
            "a whole network. Keep either `layers:` or `torchvision: NAME`."
        )
    if "torchvision" not in content and "layers" not in content:
        raise RequestError(f"{path} must have either `layers:` or `torchvision: NAME`.")
