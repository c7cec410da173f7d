"""Pins of starting weights: which bytes a source of `network.weights` or `train.teacher` stood for when it was pinned.

A pin is the `meta` of the DVC file that fetches the weights into weights/: the source, what it resolved to
and the sha256 of each file. DVC keeps `meta` when it imports a changed source again and rewrites its own
md5, so a change of the source stops a training instead of getting into it unseen.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from convoy.core import files, yaml
from convoy.core.contract import FACTS
from convoy.core.errors import NetworkError, RequestError
from convoy.core.params import did_you_mean
from convoy.models.spec import FOLDER as NETWORKS
from convoy.models.spec import ZOOS, Spec

FOLDER = Path("weights")
META = "convoy"  # key of a DVC file's `meta` that holds the pin

NONE = "none"
IMAGENET = "imagenet"
FORMS = "none, imagenet, PATH of a checkpoint or a model's folder, URL, runs:/RUN_ID, models:/NAME@ALIAS or models:/NAME/VERSION"
RUN = re.compile(r"runs:/(?P<run>[^/@]+)")
MODEL = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")

Kind = Literal["none", "imagenet", "run", "model", "url", "path"]


def kind(source: str) -> Kind:
    """Classify a source of weights by its spelling alone; nothing is looked up.

    Raises:
        RequestError: a word that is none of the forms, with the nearest that is.
    """
    if source == NONE:
        return "none"
    if source == IMAGENET:
        return "imagenet"
    if RUN.fullmatch(source):
        return "run"
    if MODEL.fullmatch(source):
        return "model"
    if source.startswith(("runs:", "models:")):
        raise RequestError(f"`{source}` is not a valid run or model. Valid sources: {FORMS}")
    if "://" in source:
        return "url"
    if scheme := re.match(r"[A-Za-z]{2,}:", source):
        near = did_you_mean(scheme[0], ["runs:", "models:"])
        raise RequestError(f"`{source}` is not a source of weights{near} Valid sources: {FORMS}")
    if not re.search(r"[/.~]", source):
        near = did_you_mean(source, [NONE, IMAGENET])
        raise RequestError(
            f"`{source}` is not a source of weights{near} A path needs a slash: ./{source or 'best.ckpt'}"
        )
    return "path"


def canonical(source: str, root: Path) -> str:
    """Spell a source in one way, so that its pin is found however a path was typed, relative to the current folder.

    Returns:
        A path inside the (resolved) root relative to it, any other absolute; everything else unchanged.

    Raises:
        RequestError: as `kind` does.
    """
    if kind(source) != "path":
        return source
    path = files.expanded(source).resolve()
    if root not in path.parents:
        return str(path)
    inside = path.relative_to(root).as_posix()
    return inside if "/" in inside else f"./{inside}"


class Pin(BaseModel):
    """Hold what a source stood for when it was pinned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str  # as `network.weights` names it
    resolved: str  # what it stood for: a version for an alias, torchvision's label for `imagenet`
    torchvision: str | None = None  # for `imagenet`, the classifier that the weights belong to
    timm: str | None = None  # likewise
    sha256: dict[str, str]  # by path relative to weights/: the file of weights first, then a model.json

    @property
    def classifier(self) -> tuple[str, str] | None:
        """Library and name of the classifier of `imagenet`."""
        return next(((zoo, name) for zoo in ZOOS if (name := getattr(self, zoo))), None)

    @property
    def file(self) -> str:
        """The file of weights, relative to weights/."""
        return next(iter(self.sha256))

    @property
    def out(self) -> str:
        """What DVC fetches, relative to weights/: the file of weights, or the folder of a model."""
        return Path(self.file).parts[0]

    @property
    def weights_sha256(self) -> str:
        """Hash of the file of weights."""
        return self.sha256[self.file]

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, content: Any) -> Any:  # noqa: ANN401 (as pydantic declares it)
        """Read `weights/NAME.json`, the form of earlier versions, with a field for each hash."""
        if not isinstance(content, dict) or not {"asked", "file", "sha256"} <= content.keys():
            return content
        hashes = {content["file"]: content["sha256"]}
        if facts := content.get("facts_sha256"):
            hashes[Path(content["file"]).with_name(FACTS).as_posix()] = facts
        kept = {key: content[key] for key in ("resolved", "torchvision") if key in content}
        return {"source": content["asked"], "sha256": hashes, **kept}

    def verify(self, folder: Path) -> Path:
        """Check that the files in `folder` are those that were pinned; return the path of the weights.

        Raises:
            NetworkError: a file is missing, or has other bytes.
        """
        for name, expected in self.sha256.items():
            file = folder / name
            if not file.exists():
                raise NetworkError(
                    f"{file}, pinned for {self.source}, is missing. Fetch it from its source with `dvc repro`, or "
                    f"from the DVC remote with `dvc pull -R {folder}`."
                )
            current = files.sha256(file)
            if current != expected:
                raise NetworkError(
                    f"{file} differs from the file pinned for {self.source}: sha256 {current[:16]}… instead of "
                    f"{expected[:16]}…. To accept the change: convoy weights use {self.source}"
                )
        return folder / self.file


def read_all(folder: Path) -> dict[Path, Pin]:
    """Read all pins by their files, those of earlier versions (NAME.json) last.

    Raises:
        NetworkError: a file that is not a valid pin.
    """
    pins = {}
    for path in [*sorted(folder.rglob("*.dvc")), *sorted(folder.glob("*.json"))]:
        try:
            is_json = path.suffix == ".json"
            content = files.read_json(path) if is_json else (yaml.read(path).get("meta") or {}).get(META)
            if content is not None:
                pins[path] = Pin.model_validate(content)
        except (ValueError, AttributeError, RequestError) as error:  # pydantic's error is a ValueError
            raise NetworkError(
                f"{path} is not a valid pin: {error}\n"
                f"Restore it with `git checkout {path}`, or pin again: convoy weights use SOURCE"
            ) from error
    return pins


def write(path: Path, pin: Pin) -> None:
    """Write a pin into the `meta` of a DVC file."""
    content = yaml.read(path) | {"meta": {META: pin.model_dump(exclude_none=True)}}
    files.write_text(path, yaml.dump(content))


def find(source: str, spec: Spec | None, folder: Path = FOLDER, *, key: str = "network.weights") -> Pin:
    """Find the pin of a source that `key` of params.yaml names; a pin of `imagenet` must be for the structure of `spec`.

    Raises:
        RequestError: an unknown form of source; `imagenet` for a network that torchvision does not have.
        NetworkError: no pin of this source, or an invalid pin file.
    """
    name = canonical(source, folder.resolve().parent)
    classifier = imagenet_classifier(spec) if spec and name == IMAGENET else None
    pins = read_all(folder).values()
    for pin in pins:
        if (pin.source, pin.classifier) == (name, classifier):
            return pin
    pinned = ", ".join(f"{pin.source}{f' ({pin.classifier[1]})' if pin.classifier else ''}" for pin in pins)
    network = f" --network {spec.name}" if spec and classifier else ""
    raise NetworkError(
        f"{key} is `{source}`, but {folder}/ has no pin of it{f' for {classifier[1]}' if classifier else ''} "
        f"(pinned: {pinned or 'nothing'}). Pin it: convoy weights use {source}{network}"
    )


def imagenet_classifier(spec: Spec) -> tuple[str, str]:
    """Name the library, a key of `ZOOS`, and its classifier whose ImageNet weights fit a network.

    Raises:
        RequestError: there is none.
    """
    if spec.classifier:
        return spec.classifier
    if spec.twin:
        return "torchvision", spec.twin
    key = re.compile(r"^(twin|torchvision|timm):", re.MULTILINE)
    fitting = [path.stem for path in sorted(NETWORKS.glob("*.yaml")) if key.search(path.read_text("utf-8"))]
    raise RequestError(
        f"torchvision has no ImageNet weights for the structure of {spec.name}. It has weights for: "
        f"{', '.join(fitting)}, and for any file in {NETWORKS}/ with the single line `torchvision: NAME` or `timm: NAME`. "
        "Set network.name to one of these, or network.weights to none."
    )
