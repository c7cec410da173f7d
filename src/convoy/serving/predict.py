"""Classify image files with an exported model: numpy, Pillow and onnxruntime, no torch.

Each thread decodes a few files and predicts them on one core, so that a batch never waits for another thread.
"""

import os
import posixpath
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convoy.core import cpus
from convoy.core.errors import DataError
from convoy.export.onnx_model import CHUNK_IMAGES, OnnxModel, chunks
from convoy.images.archive import is_archive, kind_of, members
from convoy.images.decode import Content, decode, read
from convoy.images.formats import NotAnImageError
from convoy.images.litter import claims_to_be_image, is_litter
from convoy.serving.predictions import Prediction

TASK_BYTES = 32 * 2**20
"""Most bytes of an archive's files that wait as a task."""

TASKS_PER_THREAD = 2
"""Tasks that are listed ahead: enough that no thread waits for names, few enough that an archive is not held in memory."""


ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst")
"""Ends of names that are opened as archives inside folders; a path that is given is recognised by its content alone."""


class Listed:
    """Name a file to predict: where it is, its bytes if they come from an archive, and whether it may turn out to be no image."""

    __slots__ = ("content", "images_only", "path", "reason")

    def __init__(
        self, path: str, content: Content | None = None, reason: str = "", *, images_only: bool = False
    ) -> None:
        self.path, self.content, self.reason, self.images_only = path, content, reason, images_only


Decoded = tuple[str, npt.NDArray[np.uint8] | None, str]
"""A path with its (H, W, 3) image, or with the reason why it has none."""


def predict(model: OnnxModel, paths: Sequence[Path], *, threads: int = 0) -> Iterator[Prediction]:
    """Classify every image, in the order given; folders and archives are searched, folders in order of name.

    A file that cannot be classified gets a reason and does not stop the rest. Inside folders and archives, files
    that neither hold an image nor have an image's suffix are skipped; links that stay inside a folder are
    followed; every other link, and what cannot be read, gets a reason.

    Args:
        model: on one thread per operation, since each of `threads` runs it.
        paths: images, folders, or archives (zip, tar and compressed tars).
        threads: 0: one per usable CPU.
    """
    count = threads or cpus.usable_cpus()
    running: deque[tuple[str, Future[list[Prediction]]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="predict") as pool, ExitStack() as stack:
        stack.callback(lambda: [future.cancel() for _, future in running])  # where the caller stops early
        for path in paths:
            found = False
            for task in _tasks(_listed(path)):
                running.append((str(path), pool.submit(_predicted, model, task)))
                if len(running) > TASKS_PER_THREAD * count:
                    for prediction in running.popleft()[1].result():
                        found = True
                        yield prediction
            while running:
                for prediction in running.popleft()[1].result():
                    found = True
                    yield prediction
            if not found:
                yield Prediction(path, "contains no images")


def _tasks(listed: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Split files into lists that a thread predicts at once; the first are short, so that a few files use every thread."""
    task: list[Listed] = []
    held, most = 0, 1
    for file in listed:
        task.append(file)
        held += len(file.content) if isinstance(file.content, bytes) else 0
        if len(task) == most or held > TASK_BYTES:
            yield task
            task, held, most = [], 0, min(2 * most, CHUNK_IMAGES)
    if task:
        yield task


def _predicted(model: OnnxModel, task: Sequence[Listed]) -> list[Prediction]:
    """Decode files and predict them, images of equal size in a batch."""
    predictions = []
    decoded = (item for file in task for item in _decoded(file, model.background))
    for chunk in chunks(decoded, lambda item: 0 if item[1] is None else item[1].nbytes):
        rows = iter(model.predict_mixed([image_u8 for _, image_u8, _ in chunk if image_u8 is not None]))
        for path, image_u8, reason in chunk:
            if image_u8 is None:
                predictions.append(Prediction(Path(path), reason))
            elif np.isfinite(row := next(rows)).all():
                predictions.append(Prediction(Path(path), classes=model.classes, probabilities=row))
            else:
                predictions.append(Prediction(Path(path), "the model outputs NaN"))
    return predictions


def _decoded(file: Listed, background: str) -> Iterator[Decoded]:
    """Decode a file; yield nothing for one of a folder or an archive that is neither an image nor called like an image."""
    if file.reason:
        yield file.path, None, file.reason
        return
    try:
        with ExitStack() as held:
            content = file.content if file.content is not None else read(Path(file.path))
            yield file.path, decode(content, held, background=background).image_u8, ""
    except NotAnImageError as error:
        if not file.images_only or claims_to_be_image(os.path.basename(file.path)):  # noqa: PTH119 (a text)
            yield file.path, None, str(error)
    except DataError as error:
        yield file.path, None, str(error)
    except OSError as error:
        yield file.path, None, f"cannot be read: {error.strerror}"


def _listed(path: Path) -> Iterator[Listed]:
    """List a file, or what a folder or an archive holds; archives in a folder are searched, too."""
    if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where a folder above may not be entered)
        yield from _unpacked(Listed(str(path)))
        return
    for file in _walk(str(path)):
        yield from _unpacked(file) if file.path.lower().endswith(ARCHIVES) else [file]


def _unpacked(file: Listed) -> Iterator[Listed]:
    """List what an archive holds; any other file as it is."""
    path = Path(file.path)
    try:
        is_packed = not file.reason and stat.S_ISREG(path.stat().st_mode) and is_archive(path)
    except OSError:
        is_packed = False  # reading it again gives the reason
    if not is_packed:
        yield file
        return
    try:
        kind = kind_of(path)
        for raw, content in members(path, kind) if kind else ():
            inside = posixpath.normpath(raw)  # `tar -c .` begins every name with `./`
            if not is_litter(inside):
                yield Listed(f"{file.path}/{inside}", content, images_only=True)
    except DataError as error:
        yield Listed(file.path, reason=str(error))


def _walk(top: str) -> Iterator[Listed]:
    """List the files below a folder in order of name; what cannot be listed with the reason.

    Each link to a folder is followed once, and not at all if it leads to a folder that it is in: that is listed already.
    """
    root = Path(os.path.realpath(top))
    followed: set[Path] = set()
    todo: list[tuple[str, os.DirEntry[str] | None]] = [(top, None)]
    while todo:
        path, entry = todo.pop()
        try:
            if entry is None or entry.is_dir(follow_symlinks=False):
                with os.scandir(path) as entries:
                    inside = [each for each in entries if not is_litter(each.name)]
                inside.sort(key=lambda each: each.name, reverse=True)
                todo += [(each.path, each) for each in inside]
            elif entry.is_file(follow_symlinks=False):
                yield Listed(path, images_only=True)
            elif not entry.is_symlink():
                yield Listed(path, reason="is a pipe, a socket or a device")
            elif reason := _unusable(Path(path), top, root):
                yield Listed(path, reason=reason)
            elif (target := Path(os.path.realpath(path))).is_dir():
                link = Path(os.path.realpath(os.path.dirname(path)), entry.name)  # noqa: PTH120 (a text)
                if link not in followed and not link.is_relative_to(target):
                    followed.add(link)
                    todo.append((path, None))
            elif target.is_file():
                yield Listed(path, images_only=True)
            else:
                yield Listed(path, reason="is a pipe, a socket or a device")
        except OSError as error:
            yield Listed(path, reason=f"cannot be read: {error.strerror}")


def _unusable(link: Path, top: str, root: Path) -> str:
    """State why a link is not followed; empty if it is."""
    target = Path(os.path.realpath(link))
    if not target.is_relative_to(root):
        return f"is a link to {target}, outside of {top}: give that path as well"
    if target.is_symlink() or not target.exists():
        return f"is a link to {link.readlink()}, which leads nowhere"
    return ""
