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

from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean
from convoy.models import torchvision, yaml_lines
from convoy.models.layer_types import Count, Layers
from convoy.models.parser import Reader
from convoy.models.yaml_lines import LocatedDict, brief, line_of

FOLDER = Path("networks")
KEYS = ("layers", "blocks", "init", "twin", "made_for", "torchvision")


class MadeFor(BaseModel):
    """Say which images and classes a network was published for; what `convoy network show` takes unless told."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image_px: Count
    classes: Count


class Spec(BaseModel):
    """Describe a network: either layers, or the name of a torchvision classifier.

    Attributes:
        init: how weights start. torch: as torch's layers do. kaiming: convolutions from N(0, 2 / fan out), dense
            layers from N(0, 0.01), biases 0, as torchvision's VGG, which without norms does not learn otherwise.
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
    def _read_layers(cls, value: object) -> object:
        return Reader().layers(value)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the alternative that is not in use."""
        return {key: value for key, value in handler(self).items() if value}


def load(name: str, folder: Path = FOLDER) -> Spec:
    """Read `folder/name.yaml`.

    Raises:
        RequestError: no such network; a word, an argument or a value that the grammar does not
            have, naming file and line; a torchvision name that torchvision does not have.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = names(folder)
        hint = did_you_mean(name, known) if known else "; the folder has none"
        raise RequestError(
            f"there is no network `{name}` in {folder}/{hint}{'' if hint.endswith('?') else '.'} "
            "Set network.name to one that is there, or add the file."
        )
    content = yaml_lines.read(path)
    _check_keys(content, path)
    if "torchvision" in content:
        torchvision.check(str(content["torchvision"]), f"{path}:{line_of(content, 'torchvision')}")
        return Spec(name=name, torchvision=str(content["torchvision"]))
    reader = Reader(str(path))
    if "blocks" in content:
        reader.define(content["blocks"], line_of(content, "blocks"))
    layers = reader.layers(content["layers"], line=line_of(content, "layers"))
    others = {key: content[key] for key in ("init", "twin", "made_for") if key in content}
    try:
        return Spec.model_validate({"name": name, "layers": layers, **others})
    except ValidationError as error:
        raise RequestError("\n".join(_fault(detail, content, path) for detail in error.errors())) from error


def names(folder: Path = FOLDER) -> list[str]:
    """List the networks that a folder describes."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _fault(detail: ErrorDetails, content: LocatedDict, path: Path) -> str:
    """Turn one pydantic error about a key other than `layers` into a line that names its place."""
    first, *inner = (str(part) for part in detail["loc"])
    line = line_of(content[first], inner[0]) if inner else 0
    where = f"{path}:{line or line_of(content, first)}"
    key = ".".join([first, *inner])
    if detail["type"] == "missing":
        return f"{where}: `{key}` is missing"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key `{key}`{did_you_mean(inner[0], MadeFor.model_fields)}"
    return f"{where}: `{key}` is {brief(detail['input'])}, but {detail['msg'].removeprefix('Input ')}"


def _check_keys(content: LocatedDict, path: Path) -> None:
    for key in content:
        if key not in KEYS:
            raise RequestError(
                f"{path}:{line_of(content, key)}: unknown key `{key}`{did_you_mean(key, KEYS)}"
            )
    if "torchvision" in content and len(content) > 1:
        other = next(key for key in content if key != "torchvision")
        raise RequestError(
            f"{path}:{line_of(content, other)}: `torchvision: {content['torchvision']}` is the whole network, but "
            f"`{other}` stands beside it. Keep either `layers:` or `torchvision: NAME`."
        )
    if "torchvision" not in content and "layers" not in content:
        raise RequestError(f"{path} must hold either `layers:` or `torchvision: NAME`, one of the two.")
