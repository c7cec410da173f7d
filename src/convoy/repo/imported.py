"""Correct data.dvc where DVC has recorded a state of the source that it has not imported.

`dvc exp run` commits the hashes of all .dvc files before it runs anything (`BaseStashQueue._stash_commit_deps` in DVC 3),
so that data.dvc names the source as it is now, beside data/ as it was imported. From then on neither `dvc status` nor
`dvc repro` would see that the source has changed, and the run would name data that it was not trained on.
"""

from pathlib import Path

from convoy.core import pipeline
from convoy.core.console import info
from convoy.core.errors import RequestError, without_credentials
from convoy.core.stage import repository
from convoy.repo import dvc


def is_ahead(root: Path) -> bool:
    """Check whether data.dvc records another state of its source than data/ was imported from.

    Hashes are compared where both are md5, which a folder or file on this machine has; of a file elsewhere the sizes.
    A source may have files that DVC hashes there but not in data/, such as `.git` and `.DS_Store`: then the hash of
    all files in data/ decides, in the repository too that a queued experiment is a copy of.
    """
    try:
        recorded = pipeline.data_import(root)
    except RequestError:  # DVC, which runs next, refuses it with its reason
        return False
    source, data = recorded.source, recorded.data
    if "md5" in source and "md5" in data:
        folders = [place / str(data.get("path")) for place in dict.fromkeys((root.resolve(), repository()))]
        return source["md5"] != data["md5"] and source["md5"] not in map(dvc.content_md5, folders)
    sizes = source.get("size"), data.get("size")
    return "nfiles" not in source and None not in sizes and sizes[0] != sizes[1]


def correct(root: Path) -> None:
    """Let data.dvc name the state that data/ was imported from, so that the next `dvc repro` sees the change.

    The recorded state is taken from data/, or removed where the source is not on this machine. Prints a line, except for
    a frozen import, whose source is not followed.

    Raises:
        RequestError: DVC cannot read the pipeline.
    """
    if not is_ahead(root):
        return
    dvc.rewind_import(root, str(pipeline.DATA_IMPORT))
    now = pipeline.data_import(root)
    if not now.frozen:
        source = without_credentials(now.address)
        info(
            f"Warning: {source} has changed since data/ was imported, and `dvc exp run` imports nothing: the imported images "
            "are used. Type `dvc repro` to import the change."
        )
