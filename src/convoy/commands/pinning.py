"""Fetch starting weights and pin them: what `convoy weights use` does.

What any workspace of the repository can reach becomes an unfrozen DVC import, which plain
`dvc repro` fetches on a fresh clone and takes anew when its source changes. The rest becomes
a copy under DVC: files that git does not carry are missing in the workspaces of experiments,
and a server may ask for a password, which does not belong in a .dvc file.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from convoy.core import files
from convoy.core.console import info
from convoy.core.errors import ConvoyError, NetworkError, RequestError
from convoy.models import spec, torchvision
from convoy.models.trained import FACTS, WEIGHTS
from convoy.repo import dvc, git
from convoy.training import sources, weight_files, weight_pins
from convoy.training.weight_pins import FOLDER, Pin

MODEL = (WEIGHTS, FACTS)
"""The files of a model's folder that weights are taken from."""


@dataclass(frozen=True)
class Source:
    """Say where weights are and how they get into weights/.

    Attributes:
        asked: the source, in its one spelling.
        resolved: what it stands for now.
        slug: what is made in weights/ is called.
        suffix: of the file; empty for a model's folder.
        address: that DVC imports.
        sha256: first digits that the hash must have.
        torchvision: for `imagenet`, the classifier.
        copy: makes the file or folder at a path, where an import does not do; None: an import must.
        why_copy: why an import is not even tried.
    """

    asked: str
    resolved: str
    slug: str
    suffix: str
    address: str
    sha256: str = ""
    torchvision: str | None = None
    copy: Callable[[Path], None] | None = None
    why_copy: str = ""


def use(asked: str, network: str, root: Path) -> list[str]:
    """Fetch weights into weights/ and write the pin that says what they are.

    Args:
        asked: imagenet, a path relative to the current folder, a URL, a run or a registered model.
        network: name of the network that they are for; matters for imagenet alone.
        root: the repository.

    Returns:
        Lines for people: what was done, what to heed, what to type next.

    Raises:
        RequestError: an unknown form of source, or one that does not exist.
        NetworkError: it cannot be fetched, or is no file of tensors; weights/ is then as it was.
    """
    root = root.resolve()
    dvc.check_repository(root)
    source = _find(asked, network, root)
    out, pin_file = f"{FOLDER}/{source.slug}{source.suffix}", f"{FOLDER}/{source.slug}.json"
    before = {path.stem: pin for path, pin in weight_pins.everything(root / FOLDER).items()}.get(source.slug)
    if before is None and (root / out).exists():
        raise RequestError(f"{out} exists and is no pin's. Move it away, then try again.")
    (root / FOLDER).mkdir(exist_ok=True)
    try:
        with dvc.replacing(root, (out, f"{out}.dvc", pin_file)):
            notes = _fetch(source, root, out)
            pin, tensors = _inspect(source, root)
            files.write_json(root / pin_file, pin.model_dump(exclude_none=True))
    except (dvc.DvcError, ConvoyError, OSError) as error:
        raise NetworkError(f"{asked} cannot be pinned: {error}\nNothing has changed.") from error
    was = f" (before: {before.resolved})" if before and before.resolved != pin.resolved else ""
    return [
        f"{pin_file} pins {pin.asked}{_as(pin)}{was}: {tensors} tensors, sha256 {pin.sha256[:16]}…",
        *notes,
        f"Next: git add {FOLDER}",
        f"Then: dvc exp run -S network.weights={pin.asked} (or set it in params.yaml)",
    ]


def _as(pin: Pin) -> str:
    return f" as {pin.resolved}" if pin.resolved != pin.asked else ""


def _find(asked: str, network: str, root: Path) -> Source:
    """Find out where a source is, and what it stands for now; nothing is fetched."""
    kind = sources.kind(asked)
    if kind == "none":
        raise RequestError("`none` needs no pin: set network.weights: none in params.yaml.")
    if kind == "imagenet":
        classifier = weight_pins.structure(spec.load(network, root / spec.FOLDER))
        weights = torchvision.pretrained(classifier)
        slug = f"imagenet-{classifier}"
        return Source(asked, weights.label, slug, ".pth", weights.url, weights.sha256, classifier)
    if kind == "path":
        return _local(asked, root)
    if kind == "url":
        if urlsplit(asked).password:
            raise RequestError("this URL carries a password, which git would keep. Give one without.")
        suffix = Path(urlsplit(asked).path).suffix or ".pth"
        words = asked.partition("://")[2].removesuffix(suffix)
        return Source(asked, asked, _slug(words, asked, root), suffix, asked)
    return _logged(asked, root)


def _logged(asked: str, root: Path) -> Source:
    """Take the weights that a training logged to MLflow."""
    from convoy.tracking import lookup

    found = lookup.find(asked, MODEL)
    why = ""
    if found.folder and root in found.folder.resolve().parents:
        why = "git does not carry the runs' artifacts"
    elif found.secret:
        why = "the tracking server asks for a password"
    slug = _slug(asked.replace(":/", "-"), asked, root)
    return Source(asked, found.resolved, slug, "", found.address, copy=found.download, why_copy=why)


def _local(asked: str, root: Path) -> Source:
    """Take a checkpoint, or the folder of a model."""
    path, address = dvc.locate(asked, root)
    folder = path.is_dir()
    if root / FOLDER in (path, *path.parents):
        raise RequestError(f"{asked} lies in {FOLDER}/, where pins are kept. Move it elsewhere first.")
    if folder and not all((path / one).is_file() for one in MODEL):
        held = ", ".join(sorted(one.name for one in path.iterdir())[:5]) or "nothing"
        raise RequestError(
            f"{asked} is no model's folder: it must hold {' and '.join(MODEL)}, it holds {held}. "
            "Give such a folder, or a checkpoint file."
        )
    name = sources.canonical(asked, root)
    words = f"{path.parent.name}-{path.stem}"
    suffix = "" if folder else path.suffix or ".pt"
    if root not in path.parents or git.ask(root, "ls-files", "--", str(path)):
        return Source(name, name, _slug(words, name, root), suffix, address)
    return Source(
        name,
        name,
        _slug(words, name, root),
        suffix,
        address,
        copy=lambda target: _copy(path, target),
        why_copy=f"git does not carry {address}",
    )


def _slug(words: str, asked: str, root: Path) -> str:
    """Make a name for files, one that no other source's pin has."""
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-.")
    owner = weight_pins.everything(root / FOLDER).get(root / FOLDER / f"{slug}.json")
    if owner is None or owner.asked == asked:
        return slug
    return f"{slug}-{hashlib.sha256(asked.encode()).hexdigest()[:6]}"


def _fetch(source: Source, root: Path, out: str) -> list[str]:
    """Import the source, or copy it where that does not do; say which, and why."""
    info(f"fetch {source.address} into {out} …")
    why = source.why_copy
    if not why:
        try:
            return _import(source, root, out)
        except dvc.DvcError as error:
            if source.copy is None:
                raise
            why = f"DVC cannot import it ({str(error).splitlines()[-1]})"
            dvc.remove(root / out)
            dvc.remove(root / f"{out}.dvc")
    if source.copy is None:
        raise AssertionError(f"{source.asked} has neither an import nor a copy")
    source.copy(root / out)
    dvc.run(root, "add", out)
    return [
        f"{out} is a copy under DVC, no import, since {why}: it changes only when you pin anew.",
        "Other machines get it by `dvc push` here and `dvc pull` there.",
    ]


def _import(source: Source, root: Path, out: str) -> list[str]:
    addresses = {out: source.address}
    if not source.suffix and source.address.startswith("http"):  # HTTP knows no folders
        (root / out).mkdir()
        addresses = {f"{out}/{one}": f"{source.address}/{one}" for one in MODEL}
    for target, address in addresses.items():
        dvc.run(root, "import-url", address, target)
    imports = [f"{target}.dvc" for target in addresses]
    dvc.run(root, "unfreeze", *imports)
    if source.copy and dvc.run(root, "status", "--json", *imports).strip() != "{}":
        raise dvc.DvcError("its server gives a file another ETag at every request")
    notes = [f"{out} is an unfrozen import: `dvc repro` fetches it where it is missing, and sees a change."]
    if "://" not in source.address and Path(source.address).is_absolute():
        notes.append(dvc.unreachable(source.address))
    elif urlsplit(source.address).hostname in ("localhost", "127.0.0.1", "::1"):
        notes.append(f"Warning: {source.address} is an address of this machine; no other can fetch it.")
    return notes


def _inspect(source: Source, root: Path) -> tuple[Pin, int]:
    """Refuse what is no file of weights or not the right one; else describe it, and count its tensors."""
    file = f"{source.slug}{source.suffix}" if source.suffix else f"{source.slug}/{WEIGHTS}"
    path = root / FOLDER / file
    digest = files.sha256(path)
    if not digest.startswith(source.sha256):
        raise NetworkError(
            f"{source.address} gave another file than its name says: sha256 {digest[:16]}…, not {source.sha256}…"
        )
    facts = None if source.suffix else path.with_name(FACTS)
    if facts:
        weight_files.parse_facts(facts.read_text(encoding="utf-8"), facts)
    pin = Pin(
        asked=source.asked,
        resolved=source.resolved,
        fetched=source.address,
        file=file,
        sha256=digest,
        facts_sha256=files.sha256(facts) if facts else None,
        torchvision=source.torchvision,
    )
    return pin, len(weight_files.read(path).tensors)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        target.mkdir()
        for name in MODEL:
            shutil.copyfile(path / name, target / name)
    else:
        shutil.copyfile(path, target)
