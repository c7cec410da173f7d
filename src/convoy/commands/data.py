"""`convoy data`: choose the images that the pipeline imports, or check images without running it."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoy.commands.options import AsJson, messages
from convoy.core.console import info, print_json
from convoy.core.errors import DataError, RequestError, listed, refuse_credentials, without_credentials
from convoy.core.escaping import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from convoy.commands.known_sets import KnownSet
    from convoy.data.settings import DataParams

DATA = "data"
IMPORT = "data.dvc"
SHOWN = 5
QUEUED = (
    f"Queued experiments (`dvc exp run --queue`, `--temp`) fail in {IMPORT} unless they take the images from DVC's cache: "
    f"`dvc freeze {IMPORT} && git commit -m Freeze {IMPORT}`, and after each change of the source"
)
"""What to type where the source is in the repository but not in git, so that the workspaces of experiments lack it."""

data = typer.Typer(
    no_args_is_help=True,
    help="Choose the images that the pipeline imports, or check images without running it.",
)


def _list_sets(is_given: bool) -> None:  # noqa: FBT001 (Typer passes the option's value)
    if is_given:
        from convoy.commands import known_sets

        info(known_sets.overview())
        raise typer.Exit


@data.command("use")
def data_use(
    source: Annotated[
        str,
        typer.Argument(
            help="Name of a published set (`--list`), folder, zip, tar, http(s)://…, s3://…, gs://…: anything that "
            "`dvc import-url` accepts."
        ),
    ],
    *,
    _list: Annotated[
        bool,
        typer.Option(
            "--list",
            callback=_list_sets,
            is_eager=True,
            help="List the published sets with size and licence, and exit.",
        ),
    ] = False,
    pack: Annotated[
        bool | None,
        typer.Option(
            "--pack/--no-pack",
            help="Import a folder as one archive, which DVC checks in a second instead of file by file.",
            show_default="above 10,000 files",
        ),
    ] = None,
) -> None:
    """Check SOURCE and import it as the pipeline's images: writes data.dvc and replaces data/; neither if `prepare` would refuse it.

    Example: convoy data use ~/flowers.zip

    Example: convoy data use cifar10
    """
    for line in use(source, Path.cwd(), pack=pack):
        info(line)


@data.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="Delivered images: folder or archive.")] = Path(DATA),
    *,
    as_json: AsJson = False,
) -> None:
    """Check the images in PATH as `prepare` does: classes, splits, unusable files. Writes nothing; exit code 1 if `prepare` would refuse.

    Example: convoy data check photos/
    """
    from convoy.core import params
    from convoy.data.settings import DataParams

    found, lines = check(path, params.section("data", DataParams))
    if as_json:
        print_json(found)
    else:
        info("\n".join(lines))
    if not found["accepted"]:
        raise typer.Exit(1)


@data.command("drift")
def data_drift(
    path: Annotated[Path, typer.Argument(help="Later images, labelled or not: folder or archive.")],
    *,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="baseline.json of a model, or its folder.", show_default="build/deploy, else build/dataset"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the images in PATH with those that the model was trained on: brightness, colours, sizes, classes … (PSI and KS).

    Exit code 1 if any statistic has drifted, moderately or strongly; 0 if none has, or the images are too few to decide.

    Example: convoy data drift ~/photos-of-this-month
    """
    from convoy.data import drift

    with messages(as_json=as_json):
        found = drift.compare(path, baseline or drift.locate(Path()))
    if as_json:
        print_json(found)
    else:
        info("\n".join(drift.lines(found)))
    if found["drift"] in drift.DRIFTED:
        raise typer.Exit(1)


def use(
    source: str,
    root: Path,
    sets: "Mapping[str, KnownSet] | None" = None,
    params: "DataParams | None" = None,
    *,
    pack: bool | None = None,
) -> list[str]:
    """Point data.dvc to another source and fetch it, replacing data/.

    The import is left unfrozen, so that plain `dvc repro` fetches it on a fresh clone and imports it again when the source
    changes. What the source contains is checked as `prepare` does: a path before anything is touched, an address once it is
    fetched.

    Args:
        source: path, address, or the name of a published set; a path of the same name begins with `./`.
        root: of the repository.
        sets: published sets by name; `known_sets.KNOWN_SETS` by default.
        params: the `data` section; that of the current folder's params.yaml by default.
        pack: whether a folder is imported as one archive (`repo.packing`); by default if it is large and git does not track it.

    Returns:
        Lines to print.

    Raises:
        RequestError: the path does not exist or cannot be a source of this repository, or the address has a password.
        DataError: data/ has files that DVC does not have, DVC cannot fetch the source, or `prepare` would refuse it; data/
            and data.dvc are then unchanged.
    """
    from convoy.commands import known_sets
    from convoy.core.params import section
    from convoy.data.settings import DataParams
    from convoy.repo import dvc, git, packing

    root = root.resolve()
    dvc.check_repository(root)
    params = params or section("data", DataParams)
    known = (known_sets.KNOWN_SETS if sets is None else sets).get(source)
    local, address = (None, known.address) if known else _locate(source, root)
    folder = local if local and _is_packed(local, root, pack=pack) else None
    if pack and not folder:
        raise RequestError(f"--pack is for folders on this machine; {source} is none. Leave it out.")
    _check_replaceable(root)
    before = _current_source(root)
    try:
        lines = _accepted(local, params) if local else []
        with dvc.replacing(root, (DATA, IMPORT, *(packing.made_files(folder, root) if folder else ()))):
            if folder:
                address = str(packing.pack(folder, root).archive)
            _fetch(root, address, known)
            if not local:
                lines = _accepted(root / DATA, params)
            elif not folder:
                _check_complete(local, root)
    except (dvc.DvcError, DataError) as error:
        unchanged = f"{IMPORT} still imports {before}." if before else ""
        failed = "" if isinstance(error, DataError) else f"DVC cannot import {address}: "
        raise DataError(
            f"{failed}{without_credentials(str(error))}\nNothing was changed. {unchanged}"
        ) from error
    if known:
        return [*lines, "", *_known_lines(known, before, Path(source))]
    lines += ["", f"{IMPORT} now imports {address}" + (f" (before: {before})." if before else ".")]
    if packed := packing.of(root):
        lines.append(
            f"It holds the {packed.files:,} files of {packed.source}. `make repro`, `make retrain` and `convoy why` compare the two first, and pack "
            "again; plain `dvc repro`, `dvc status` and `dvc update` see the archive only. For an import file by file: --no-pack"
        )
        lines.append(
            "Warning: the archive is on this machine only; another, such as CI or a colleague's, cannot fetch it. For them use a URL or a "
            f"bucket. {QUEUED} `convoy data use --pack {shlex.quote(source)} && dvc freeze {IMPORT}`."
        )
    elif "://" not in address and Path(address).is_absolute():
        lines.append(dvc.unreachable(address))
    elif "://" not in address and git.query(root, "ls-files", "--others", "--directory", "--", address):
        lines.append(
            f"Warning: {address} is in the repository, but git does not track all of it: clones and CI cannot fetch it. {QUEUED} `dvc update {IMPORT}`. "
            f"Or move it out and import it from there (`mv {shlex.quote(address)} ../` and `convoy data use "
            f"../{shlex.quote(Path(address).name)}`), or add it to git: `git add {shlex.quote(address)}`"
        )
    return [
        *lines,
        "Next: `dvc repro` trains with it.",
        f"Commit {IMPORT} to keep it; `git checkout {IMPORT} && dvc checkout {IMPORT}` restores the committed import.",
    ]


def _locate(source: str, root: Path) -> tuple[Path | None, str]:
    """Return the path of a local source, None for others, and the address that DVC imports."""
    from convoy.commands import known_sets
    from convoy.repo import dvc

    if "://" in source:
        refuse_credentials(source)
        return None, source
    near = known_sets.nearest(source)
    if near and not Path(source).exists():
        raise RequestError(f"{source} does not exist; did you mean the published set: convoy data use {near}")
    path, address = dvc.locate(source, root)
    if root / DATA in (path, *path.parents):
        raise RequestError(
            f"{source} is in {DATA}/, which holds the fetched copy. Move it first: "
            f"`mv {DATA} my-images && convoy data use my-images`"
        )
    return path, address


def _is_packed(path: Path, root: Path, *, pack: bool | None) -> bool:
    """Decide whether a folder is imported as one archive: by default if it is large, unless git tracks it, so that clones have it."""
    from convoy.repo import git, packing

    if not path.is_dir() or pack is not None:
        return path.is_dir() and bool(pack)
    is_tracked = root in path.parents and git.query(root, "ls-files", "--", str(path))
    return not is_tracked and packing.has_many_files(path)


def _fetch(root: Path, address: str, known: "KnownSet | None") -> None:
    """Make data/ and data.dvc; both are absent."""
    from convoy.commands import known_sets
    from convoy.repo import dvc

    if known and len(known.files) > 1:
        known_sets.download(known, root / DATA)
        dvc.run(root, "add", DATA)
        return
    dvc.run(root, "import-url", address, DATA)
    dvc.run(root, "unfreeze", IMPORT)
    if known:
        known_sets.verify(known, root / DATA)


def _known_lines(known: "KnownSet", before: str, path: Path) -> list[str]:
    """Describe what was fetched by name."""
    verified = (
        f"{known.content}; licence: {known.licence}; checksum{'s' * (len(known.files) > 1)} as published"
    )
    was = f" (before: {before})." if before else "."
    if len(known.files) == 1:
        lines = [f"{IMPORT} now imports {known.name}, {known.address}{was}", f"{verified}."]
    else:
        lines = [
            f"{IMPORT} now has {known.name}, {len(known.files)} files of {known.address}{was}",
            f"{verified}.",
            "It is a copy without a source, since DVC imports only single files over HTTP.",
            f"On other machines: `dvc pull` after a `dvc push` here, or `convoy data use {known.name}` again.",
        ]
    if path.exists():
        lines.append(
            f"`{known.name}` is the published set. For the local path: convoy data use ./{known.name}"
        )
    return [
        *lines,
        "Next: `dvc repro` trains with it.",
        f"Commit {IMPORT} to keep it; `git checkout {IMPORT} && dvc checkout {IMPORT}` restores the committed import.",
    ]


def check(path: Path, params: "DataParams") -> tuple[dict[str, Any], list[str]]:
    """Check a delivery as `prepare` does, and write nothing; raise as `scan`, except for findings.

    Returns:
        `summary.facts`, with `accepted` (False if a finding refuses the delivery); and lines to print.
    """
    import numpy as np

    from convoy.data import class_changes, summary
    from convoy.data.scan import scan
    from convoy.repo import recorded

    empty = np.empty((0, 0, 3), np.uint8)
    result = scan(path, params, shrink=lambda _: empty, keep=lambda _: None, refuse=False)
    before = recorded.dataset() if path == Path(DATA) else {}
    result = replace(result, findings=[*result.findings, *class_changes.check(result, before, params)])
    found = summary.facts(result)
    refused = [finding.check for finding in result.findings if finding.action == "fail"]
    found["accepted"] = not refused
    lines = summary.lines(result, params)
    if refused:
        lines.append(
            f"\n`dvc repro` would refuse this delivery. See above: {listed(list(dict.fromkeys(refused)), SHOWN)}."
        )
    return found, lines


def _accepted(delivered: Path, params: "DataParams") -> list[str]:
    """Check a delivery and return the lines that describe it.

    Raises:
        DataError: `prepare` would refuse it; the lines are then printed.
    """
    found, lines = check(delivered, params)
    if found["accepted"]:
        return lines
    info("\n".join(lines))
    raise DataError("`prepare` would refuse this delivery; what follows is in the lines above.")


def _check_complete(source: Path, root: Path) -> None:
    """Refuse an import of which DVC holds less than the source has: it leaves out what a .dvcignore names."""
    from convoy.core import pipeline
    from convoy.images.delivery import folder_names
    from convoy.images.litter import is_litter
    from convoy.repo import dvc

    if not source.is_dir():
        return
    held = dvc.Cache.of(root).members(pipeline.data_import(root).md5)
    files = (name for name in folder_names(source) if not name.endswith("/") and not is_litter(name))
    if lacks := [name for name in files if name not in held]:
        raise DataError(
            f"DVC leaves out {len(lacks):,} file{'s' * (len(lacks) != 1)} of {source}: {visible(listed(lacks, SHOWN))}. A .dvcignore in the repository "
            "names them; change it, or remove the files."
        )


def _check_replaceable(root: Path) -> None:
    """Refuse to replace files that may exist nowhere else."""
    from convoy.repo import dvc

    if not (root / DATA).exists():
        return
    reason = f"was not imported: {IMPORT} does not exist"
    if (root / IMPORT).exists():
        try:
            status = json.loads(dvc.run(root, "data", "status", "--json"))
        except dvc.DvcError as error:
            raise DataError(f"`dvc data status --json` failed in {root}: {error}") from error
        changed = {path.rstrip("/") for paths in status.get("uncommitted", {}).values() for path in paths}
        if DATA not in changed:
            return
        if not dvc.Cache.of(root).lacks(dvc.content_md5(root / DATA)):
            raise DataError(
                f"{DATA}/ is not what {IMPORT} names, though DVC's cache has its files, as after a `git checkout` alone. Type "
                f"`dvc checkout {IMPORT}`, and try again."
            )
        reason = "has changed since DVC fetched it"
    raise DataError(
        f"{DATA}/ {reason}, so its files may exist nowhere else. Move it away and try again: `mv {DATA} my-images`"
    )


def _current_source(root: Path) -> str:
    """Read the source in data.dvc; empty if there is none."""
    from convoy.core import pipeline

    try:
        return without_credentials(pipeline.data_import(root).address)
    except RequestError:
        return ""
