"""Weights that a training starts from: find what was pinned, and graft it onto a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from convoy.core.errors import NetworkError
from convoy.models import torchvision
from convoy.models.spec import Spec
from convoy.models.trained import FACTS
from convoy.training import grafting, sources, weight_files, weight_pins


@dataclass(frozen=True)
class Starting:
    """Hold weights to start from, and what must come along with them.

    Attributes:
        source: as `network.weights` names it.
        resolved: what that stood for when it was pinned.
        file: where the tensors were read from.
        network: name of the network that they are meant for.
        tensors: by name, in the file's order.
        mean: that the input is normalised with, per channel, in 0..1 units; None where the file does not say.
        std: likewise.
        classes: what the head tells apart, in its order; None where the file does not say.
        sha256: of the file; empty for tensors that come from none.
    """

    source: str
    resolved: str
    file: Path
    network: str
    tensors: dict[str, Tensor]
    mean: list[float] | None
    std: list[float] | None
    classes: list[str] | None
    sha256: str = ""


@dataclass(frozen=True)
class Grafted:
    """Say what became of each tensor.

    Attributes:
        source: of the weights, as `network.weights` names it.
        taken: the network's names of what it has from the file now.
        reinitialised: the network's names of what it starts fresh.
        ignored: the file's names of what the network has no place for.
        head: what became of the head, and why.
    """

    source: str
    taken: tuple[str, ...]
    reinitialised: tuple[str, ...]
    ignored: tuple[str, ...]
    head: str

    def lines(self) -> list[str]:
        """Say it to people: names where they are few, else counts."""
        lines = [f"taken from {self.source}: {len(self.taken)} tensors; the head is {self.head}"]
        if self.reinitialised:
            lines.append(f"reinitialised: {grafting.listed(self.reinitialised)}")
        if self.ignored:
            lines.append(f"ignored: {grafting.listed(self.ignored)}")
        return lines


def read(asked: str, spec: Spec, folder: Path = weight_pins.FOLDER) -> Starting | None:
    """Load the weights that were pinned for a source; nothing is downloaded.

    Args:
        asked: what `network.weights` says.
        spec: the network that they are meant for.
        folder: where pins are.

    Returns:
        The weights, or None where the network starts from fresh ones.

    Raises:
        RequestError: an unknown form of source; `imagenet` for a network that torchvision does not have.
        NetworkError: no pin, no file, another file than was pinned, or one that holds more than tensors.
    """
    if asked == sources.NONE:
        return None
    pin = weight_pins.find(asked, spec, folder)
    path = weight_pins.verified(pin, folder)
    tensors, facts = weight_files.read(path)
    if pin.facts_sha256:
        file = path.parent / FACTS
        facts = weight_files.parse_facts(file.read_text(encoding="utf-8"), file)
    if pin.torchvision:
        published = torchvision.pretrained(pin.torchvision, pin.resolved)
        facts = weight_files.Facts(classes=published.classes, mean=published.mean, std=published.std)
    return Starting(
        source=asked,
        resolved=pin.resolved,
        file=path,
        network=spec.name,
        tensors=tensors,
        mean=facts.mean if facts else None,
        std=facts.std if facts else None,
        classes=facts.classes if facts else None,
        sha256=pin.sha256,
    )


def graft(network: nn.Module, starting: Starting, classes: Sequence[str]) -> Grafted:
    """Copy starting weights into a network; a head made for other classes stays as it was initialised.

    Auxiliary heads go along where they fit; those of the file alone are ignored, the network's start fresh.

    Args:
        network: changed in place, unless the weights do not fit.
        starting: the weights.
        classes: what the network shall tell apart, in the order of its logits.

    Raises:
        NetworkError: the weights are of another architecture, naming the first tensor that does not fit.
    """
    own = grafting.own_parts(network)
    given = grafting.given_parts(starting.tensors, own.main)
    try:
        main = grafting.pair(own.main, given.main, grafting.last_layer(own.main))
    except grafting.MisfitError as misfit:
        raise NetworkError(
            f"{starting.file} holds another architecture: {misfit.found}, {starting.network} wants {misfit.wanted}. "
            "Set network.name to the network whose weights these are, or network.weights to others. (A network "
            "that takes one image side alone also wants the data.image_px that they were trained with.)"
        ) from misfit
    width = len(starting.tensors[next(iter(main.head.values()))])
    keep, head = _judge(width, starting.classes, list(classes))
    pairs = main.body | (main.head if keep else {})
    replaced = set() if keep else set(main.head.values())
    try:
        aside = grafting.pair(own.auxiliary, given.auxiliary, grafting.auxiliary_layers(network))
    except grafting.MisfitError:  # they serve training alone, and can start fresh
        pass
    else:
        pairs |= aside.body | (aside.head if keep else {})
        replaced |= set() if keep else set(aside.head.values())
    tensors = own.main | own.auxiliary
    for name, source in pairs.items():
        tensors[name].copy_(starting.tensors[source])
    used = {*pairs.values(), *replaced}
    fresh = (name for name in tensors if name not in pairs and not name.endswith(grafting.COUNTER))
    return Grafted(
        source=starting.source,
        taken=tuple(name for name in tensors if name in pairs),
        reinitialised=tuple(fresh),
        ignored=tuple(name for name in starting.tensors if name not in used),
        head=head,
    )


def _judge(width: int, known: list[str] | None, classes: list[str]) -> tuple[bool, str]:
    """Decide whether a head of `width` classes, perhaps of known names, serves for `classes`; say why."""
    if width != len(classes):
        return False, f"new: {len(classes)} classes instead of {width}"
    if known is None:
        return True, f"kept: it has {width} classes too, whose names are not known"
    if known != classes:
        was, now = next(pair for pair in zip(known, classes, strict=True) if pair[0] != pair[1])
        return False, f"new: other classes, such as {now} instead of {was}"
    return True, f"kept: the same {width} classes"
