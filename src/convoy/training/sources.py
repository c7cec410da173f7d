"""What `network.weights` may say: the forms of a source of starting weights."""

import re
from pathlib import Path
from typing import Literal

from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean

NONE = "none"
IMAGENET = "imagenet"
FORMS = "none, imagenet, PATH of a checkpoint or a model's folder, URL, runs:/RUN_ID, models:/NAME@ALIAS or models:/NAME/VERSION"

RUN = re.compile(r"runs:/(?P<run>[^/@]+)")
MODEL = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")

Kind = Literal["none", "imagenet", "run", "model", "url", "path"]


def kind(asked: str) -> Kind:
    """Tell the form of a source by its spelling alone; nothing is looked up.

    Raises:
        RequestError: a word that is none of the forms, with the nearest that is.
    """
    if asked == NONE:
        return "none"
    if asked == IMAGENET:
        return "imagenet"
    if RUN.fullmatch(asked):
        return "run"
    if MODEL.fullmatch(asked):
        return "model"
    if asked.startswith(("runs:", "models:")):
        raise RequestError(f"`{asked}` names no run and no model. There are: {FORMS}")
    if "://" in asked:
        return "url"
    scheme = re.match(r"[A-Za-z]{2,}:", asked)
    if scheme:
        near = did_you_mean(scheme[0], ["runs:", "models:"])
        raise RequestError(f"`{asked}` is no source of weights{near} There are: {FORMS}")
    if not re.search(r"[/.~]", asked):
        near = did_you_mean(asked, [NONE, IMAGENET])
        raise RequestError(
            f"`{asked}` is no source of weights{near} A path needs a slash: ./{asked or 'best.ckpt'}"
        )
    return "path"


def canonical(asked: str, root: Path) -> str:
    """Spell a source in one way, so that a pin is found however its path was typed.

    Args:
        asked: as the user typed it; a path is relative to the current folder.
        root: the repository, resolved.

    Returns:
        A path inside the repository relative to it, any other absolute; everything else as it is.

    Raises:
        RequestError: as `kind` does.
    """
    if kind(asked) != "path":
        return asked
    path = Path(asked).expanduser().resolve()
    if root not in path.parents:
        return str(path)
    inside = path.relative_to(root).as_posix()
    return inside if "/" in inside else f"./{inside}"
