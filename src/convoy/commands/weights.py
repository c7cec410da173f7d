"""`convoy weights use`: fetch starting weights into weights/ and pin them.

What every workspace of the repository can reach becomes an unfrozen DVC import, which plain `dvc repro` fetches
on a fresh clone. The rest becomes a copy under DVC: the workspaces of experiments lack files that git does not
track, and a password does not belong in a .dvc file.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from convoy.core import files
from convoy.core.console import info
from convoy.core.contract import FACTS, WEIGHTS
from convoy.core.errors import ConvoyError, NetworkError, RequestError, refuse_credentials

if TYPE_CHECKING:
    from convoy.training.weight_pins import Pin

weights = typer.Typer(no_args_is_help=True, help="Choose the weights that training starts from.")


@weights.callback()
def root() -> None:
    """Keep `use` a subcommand: Typer would merge a single command into the group above it."""


@weights.command("use")
def use(
    source: Annotated[
        str,
        typer.Argument(
            help="imagenet (torchvision's or timm's), a checkpoint file, a model's folder, a URL, runs:/RUN_ID, "
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
    name: Annotated[
        str,
        typer.Option(help="Name of the file or folder in weights/.", show_default="made from SOURCE"),
    ] = "",
) -> None:
    """Pin SOURCE: fetch it into weights/ and record its sha256 in git, for `network.weights` or `train.teacher` to name.

    An alias becomes the version that it points to now. `train` never downloads; it uses what is pinned.

    Example: convoy weights use imagenet --network resnet18

    Example: convoy weights use ~/models/pets --name pets
    """
    from convoy.core import params
    from convoy.training.settings import NetworkParams

    network = network or params.section("network", NetworkParams).name
    for line in pin(source, network, Path.cwd(), name):
        info(line)


@dataclass(frozen=True)
class Source:
    """Describe where weights are and how they get into weights/."""

    name: str  # in its canonical spelling
    resolved: str  # what it stands for now
    address: str  # that DVC imports
    stem: str  # name in weights/, without suffix
    suffix: str = ""  # empty for the folder of a model
    digits: str = ""  # first digits that the sha256 must have
    classifier: tuple[str, str] | None = None  # for `imagenet`, its library and its name there
    notes: tuple[str, ...] = ()  # on `imagenet`'s weights
    copy: Callable[[Path], None] | None = None  # makes file or folder at a path, if an import is impossible
    copy_reason: str = ""  # why an import is not even tried


def pin(source: str, network: str, root: Path, name: str = "") -> list[str]:
    """Fetch weights into weights/, write the pin that identifies them, and return lines to print.

    Raises:
        RequestError: an unknown form of source, a source that does not exist, or a name that is taken.
        NetworkError: it cannot be fetched, or is not a file of tensors; weights/ is then unchanged.
    """
    from convoy.repo import dvc
    from convoy.training import weight_pins

    root = root.resolve()
    dvc.check_repository(root)
    located = _locate(source, network, root)
    pins = weight_pins.read_all(root / weight_pins.FOLDER)
    is_same = {
        path: (pin.source, pin.classifier) == (located.name, located.classifier) for path, pin in pins.items()
    }
    before = next((pin for path, pin in pins.items() if is_same[path]), None)
    name = _out(name, located, before)
    out = f"{weight_pins.FOLDER}/{name}"
    other = next((pin.source for path, pin in pins.items() if pin.out == name and not is_same[path]), "")
    if other or ((root / out).exists() and (before is None or before.out != name)):
        owner = f"is the pin of {other}" if other else "exists and belongs to no pin"
        raise RequestError(f"{out} {owner}. Choose another name: convoy weights use {source} --name NAME")
    replaced = [out, f"{out}.dvc"]
    if before and before.out != name:  # a source has one pin
        replaced += [f"{weight_pins.FOLDER}/{before.out}", f"{weight_pins.FOLDER}/{before.out}.dvc"]
    replaced += [str(path.relative_to(root)) for path in pins if is_same[path] and path.suffix == ".json"]
    (root / weight_pins.FOLDER).mkdir(exist_ok=True)
    try:
        with dvc.replacing(root, replaced):
            notes = _fetch(located, root, out)
            new, tensors = _inspect(located, root, name)
            file = next(
                path
                for path in (f"{out}.dvc", f"{weight_pins.FOLDER}/{new.file}.dvc")
                if (root / path).exists()
            )
            weight_pins.write(root / file, new)
    except (dvc.DvcError, ConvoyError, OSError) as error:
        raise NetworkError(f"{source} cannot be pinned: {error}\nNothing has changed.") from error
    resolved = f" as {new.resolved}" if new.resolved != new.source else ""
    was = f" (before: {before.resolved})" if before and before.resolved != new.resolved else ""
    return [
        f"{file} pins {new.source}{resolved}{was}: {tensors} tensors, sha256 {new.weights_sha256[:16]}…",
        *notes,
        *located.notes,
        f"Next: git add {weight_pins.FOLDER}",
        f"Then: dvc exp run -S network.weights={new.source} (or set it in params.yaml)",
        *([f"Or, as a teacher: dvc exp run -S train.teacher={new.source}"] if len(new.sha256) > 1 else []),
    ]


def _locate(source: str, network: str, root: Path) -> Source:
    """Find where a source is, and what it stands for now; nothing is fetched."""
    from convoy.models import spec
    from convoy.training import weight_pins

    kind = weight_pins.kind(source)
    if kind == "none":
        raise RequestError("`none` needs no pin: set network.weights: none in params.yaml.")
    if kind == "imagenet":
        zoo, classifier = weight_pins.imagenet_classifier(spec.load(network, root / spec.FOLDER))
        published = spec.ZOOS[zoo].pretrained(classifier)
        return Source(
            source,
            published.label,
            published.url,
            stem=f"imagenet-{classifier}" if zoo == "torchvision" else f"imagenet-{zoo}-{classifier}",
            suffix=Path(urlsplit(published.url).path).suffix,
            digits=published.sha256,
            classifier=(zoo, classifier),
            notes=published.notes,
        )
    if kind == "path":
        return _locate_path(source, root)
    if kind == "url":
        refuse_credentials(source)
        address = urlsplit(source)
        suffix = Path(address.path).suffix or ".pth"
        stem = _slug(f"{address.netloc}{address.path}".removesuffix(suffix))
        return Source(source, source, source, stem, suffix)
    from convoy.tracking import lookup

    logged = lookup.find(source, (WEIGHTS, FACTS))
    reason = ""
    if logged.folder and root in logged.folder.resolve().parents:
        reason = "git does not track the runs' artifacts"
    elif logged.secret:
        reason = "the tracking server requires a password"
    stem = _slug(source.replace(":/", "-"))
    return Source(source, logged.resolved, logged.address, stem, copy=logged.download, copy_reason=reason)


def _locate_path(source: str, root: Path) -> Source:
    """Find a checkpoint, or the folder of a model, on this machine."""
    from convoy.repo import dvc, git
    from convoy.training import weight_pins

    path, address = dvc.locate(source, root)
    if root / weight_pins.FOLDER in (path, *path.parents):
        raise RequestError(
            f"{source} is inside {weight_pins.FOLDER}/, which holds the pins. Move it elsewhere first."
        )
    if path.is_dir() and not all((path / file).is_file() for file in (WEIGHTS, FACTS)):
        content = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise RequestError(
            f"{source} is not the folder of a model: it must hold {WEIGHTS} and {FACTS}, and holds {content}. "
            "Use such a folder, or a checkpoint file."
        )
    name = weight_pins.canonical(source, root)
    suffix = "" if path.is_dir() else path.suffix or ".pt"
    # Inside the repository without its own name, which differs between clones.
    folders = path.relative_to(root).parts[:-1] if root in path.parents else path.parts[:-1]
    stem = _slug("-".join((*folders[-1:], path.name.removesuffix(suffix))))
    if root not in path.parents or git.query(root, "ls-files", "--", str(path)):
        return Source(name, name, address, stem, suffix)

    def copy(target: Path) -> None:
        if path.is_file():
            shutil.copyfile(path, target)
            return
        target.mkdir()
        for file in (WEIGHTS, FACTS):
            shutil.copyfile(path / file, target / file)

    return Source(name, name, address, stem, suffix, copy=copy, copy_reason=f"git does not track {address}")


def _out(name: str, source: Source, before: "Pin | None") -> str:
    """Choose the name in weights/: what was typed, else that of an earlier pin of the source, else the source's."""
    stem = name.removesuffix(source.suffix)
    if stem != _slug(stem):
        raise RequestError(
            f"`{name}` cannot be a name in weights/: use letters, digits, `.`, `-` and `_`, such as {_slug(name) or 'pets'}"
        )
    is_kind = before is not None and ("/" in before.file) == (not source.suffix)
    if before and is_kind and not name:
        return before.out
    return f"{stem or source.stem}{source.suffix}"


def _slug(words: str) -> str:
    """Turn words into a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-.")


def _fetch(source: Source, root: Path, out: str) -> list[str]:
    """Import the source, or copy it if an import is impossible; return notes for the user."""
    from convoy.repo import dvc

    info(f"fetch {source.address} into {out} …")
    reason = source.copy_reason
    if not reason:
        try:
            return _import(source, root, out)
        except dvc.DvcError as error:
            if source.copy is None:
                raise
            reason = f"DVC cannot import it ({str(error).splitlines()[-1]})"
            dvc.remove(root / out)
            dvc.remove(root / f"{out}.dvc")
    if source.copy is None:
        raise AssertionError(f"{source.name} has neither an import nor a copy")
    source.copy(root / out)
    dvc.run(root, "add", out)
    return [
        f"{out} is a copy under DVC, not an import, because {reason}. It changes only when you pin again.",
        "For other machines: `dvc push` here, `dvc pull` there.",
    ]


def _import(source: Source, root: Path, out: str) -> list[str]:
    from convoy.repo import dvc

    addresses = {out: source.address}
    if not source.suffix and source.address.startswith("http"):  # HTTP has no folders
        (root / out).mkdir()
        addresses = {f"{out}/{file}": f"{source.address}/{file}" for file in (WEIGHTS, FACTS)}
    for target, address in addresses.items():
        dvc.run(root, "import-url", address, target)
    imports = [f"{target}.dvc" for target in addresses]
    dvc.run(root, "unfreeze", *imports)
    if source.copy and dvc.run(root, "status", "--json", *imports).strip() != "{}":
        raise dvc.DvcError("its server sends another ETag for the same file at every request")
    notes = [f"{out} is an unfrozen import: `dvc repro` fetches it if it is missing, and detects a change."]
    if "://" not in source.address and Path(source.address).is_absolute():
        notes.append(dvc.unreachable(source.address))
    elif urlsplit(source.address).hostname in ("localhost", "127.0.0.1", "::1"):
        notes.append(
            f"Warning: {source.address} is an address of this machine; no other machine can fetch it."
        )
    return notes


def _inspect(source: Source, root: Path, name: str) -> "tuple[Pin, int]":
    """Check that the fetched file holds the expected weights; make its pin, and count its tensors."""
    from convoy.training import pretrained
    from convoy.training.weight_pins import FOLDER, Pin

    names = [name] if source.suffix else [f"{name}/{file}" for file in (WEIGHTS, FACTS)]
    hashes = {file: files.sha256(root / FOLDER / file) for file in names}
    path = root / FOLDER / names[0]
    if not hashes[names[0]].startswith(source.digits):
        raise NetworkError(
            f"{source.address} is not the file that its name states: sha256 {hashes[names[0]][:16]}… instead of "
            f"{source.digits}…"
        )
    if not source.suffix:
        facts = path.with_name(FACTS)
        pretrained.parse_facts(facts.read_text(encoding="utf-8"), facts)
    names_of_library = dict([source.classifier]) if source.classifier else {}
    new = Pin(source=source.name, resolved=source.resolved, sha256=hashes, **names_of_library)
    return new, len(pretrained.read_file(path)[0])
