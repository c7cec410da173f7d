"""Pins of starting weights: `weights/NAME.json`, in git, says which bytes a source stood for.

The bytes lie beside it, fetched by DVC. A pin names them by their sha256, so that no
later change of the source gets into a training unseen.
"""

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from convoy.core import files
from convoy.core.errors import NetworkError, RequestError
from convoy.models.spec import FOLDER as NETWORKS
from convoy.models.spec import Spec
from convoy.models.trained import FACTS
from convoy.training import sources

FOLDER = Path("weights")


class Pin(BaseModel):
    """Hold what a source stood for when it was pinned.

    Attributes:
        asked: the source, as `network.weights` names it.
        resolved: what that was at the time: a version for an alias, torchvision's label for `imagenet`.
        fetched: the address that the bytes came from.
        file: the weights, a path relative to the pin's folder.
        sha256: of that file.
        facts_sha256: of the model.json beside that file, where there is one.
        torchvision: for `imagenet`, the classifier whose weights these are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: str
    resolved: str
    fetched: str
    file: str
    sha256: str
    facts_sha256: str | None = None
    torchvision: str | None = None


def structure(spec: Spec) -> str:
    """Name the classifier of torchvision whose ImageNet weights fit a network.

    Raises:
        RequestError: there is none.
    """
    name = spec.torchvision or spec.twin
    if name is None:
        says = re.compile(r"^(twin|torchvision):", re.MULTILINE)
        fit = [path.stem for path in sorted(NETWORKS.glob("*.yaml")) if says.search(path.read_text("utf-8"))]
        raise RequestError(
            f"torchvision has no network of {spec.name}'s structure, so there are no ImageNet weights for it. "
            f"There are for: {', '.join(fit)}, and for any file in {NETWORKS}/ with the one line `torchvision: NAME`. "
            "Set network.name to one of them, or network.weights to none."
        )
    return name


def find(asked: str, spec: Spec, folder: Path) -> Pin:
    """Find the pin of a source; one of `imagenet` must be for the network's structure.

    Raises:
        RequestError: an unknown form of source; `imagenet` for a network that torchvision does not have.
        NetworkError: there is no such pin, or one that cannot be read.
    """
    name = sources.canonical(asked, folder.resolve().parent)
    wanted = structure(spec) if name == sources.IMAGENET else None
    pinned = everything(folder).values()
    for pin in pinned:
        if pin.asked == name and pin.torchvision == wanted:
            return pin
    there = ", ".join(f"{pin.asked}{f' ({pin.torchvision})' if pin.torchvision else ''}" for pin in pinned)
    network = f" --network {spec.name}" if wanted else ""
    raise NetworkError(
        f"network.weights is `{asked}`, but {folder}/ has no pin of it{f' for {wanted}' if wanted else ''} "
        f"(pinned: {there or 'nothing'}). Type: convoy weights use {asked}{network}"
    )


def everything(folder: Path) -> dict[Path, Pin]:
    """Read all pins by their files, in order of names.

    Raises:
        NetworkError: a file that is no pin.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path] = Pin.model_validate(files.read_json(path))
        except (ValueError, ValidationError) as error:
            raise NetworkError(
                f"{path} is no pin that this version reads: {error}\n"
                f"Restore it with `git checkout {path}`, or pin anew: convoy weights use SOURCE"
            ) from error
    return found


def verified(pin: Pin, folder: Path) -> Path:
    """Give the path of the pinned weights, whose bytes are the pinned ones.

    Raises:
        NetworkError: the file is missing, or is another than the one that was pinned.
    """
    path = folder / pin.file
    expected = {path: pin.sha256}
    if pin.facts_sha256:
        expected[path.parent / FACTS] = pin.facts_sha256
    for file, wanted in expected.items():
        if not file.exists():
            raise NetworkError(
                f"{file}, pinned as {pin.asked}, is not here. `dvc repro` fetches it from its source, "
                f"`dvc pull -R {folder}` from the DVC remote."
            )
        found = files.sha256(file)
        if found != wanted:
            raise NetworkError(
                f"{file} is not what was pinned as {pin.asked}: its sha256 was {wanted[:16]}…, now it is "
                f"{found[:16]}…. If the change is wanted: convoy weights use {pin.asked}"
            )
    return path
