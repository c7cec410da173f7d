"""Replay golden images, which `export` stored with a model, against a model file or a server."""

import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from convoy.core import contract, files
from convoy.core.console import info, print_json, table
from convoy.core.errors import ConvoyError, DataError, RequestError, VerificationError, without_credentials
from convoy.core.escaping import visible
from convoy.export.onnx_model import OnnxModel
from convoy.images.decode import decode
from convoy.serving.settings import serve_params

Answer = Callable[[bytes], Mapping[str, float]]
"""Predict the image of a file's bytes: the probability of each class."""

LEAST_IMAGES = 3
"""Golden images that are replayed however long they take."""

URL = re.compile(r"https?://", re.IGNORECASE)

NAME = re.compile(r"\w[\w.-]*")


class ServerError(ConvoyError):
    """The server does not answer as its protocol requires."""


@dataclass(frozen=True)
class Golden:
    """Hold an image and its expected probabilities, in the order of `classes`."""

    file: str
    content: bytes
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    background: str

    @property
    def label(self) -> str:
        """Return the most probable class."""
        return self.classes[int(np.argmax(self.probabilities))]


@dataclass(frozen=True)
class Replayed:
    """Hold what an image was answered with.

    Attributes:
        expected: class that the verified graph predicts.
        answered: class that was answered; empty if `error` is not.
        gap: largest difference of any probability, 0..1; 1 if there is no answer, or one of other classes.
        limit: largest gap that passes.
    """

    file: str
    expected: str
    answered: str
    gap: float
    limit: float
    error: str = ""

    @property
    def passed(self) -> bool:
        """Check class and gap."""
        return not self.error and self.answered == self.expected and self.gap <= self.limit


def load(folder: Path) -> tuple[list[Golden], float]:
    """Read golden images, and the limit of their probability gaps.

    Raises:
        RequestError: the folder holds none.
        DataError: golden.json is damaged, or a file has other bytes than were exported.
    """
    path = folder / contract.GOLDEN_FACTS
    if not path.is_file():
        raise RequestError(
            f"{path} does not exist. `dvc repro` makes build/deploy/{contract.GOLDEN}; name the folder of the model to verify "
            "with --golden FOLDER"
        )
    try:
        facts = files.read_json(path)
        classes = tuple(map(str, facts["classes"]))
        limit, background = float(facts["max_probability_gap"]), str(facts["background"])
        stated = [
            (str(image["file"]), str(image["sha256"]), tuple(map(float, image["probabilities"])))
            for image in facts["images"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}). Restore it: dvc checkout build/deploy"
        ) from error
    if not stated:
        raise RequestError(
            f"{path} lists no images. Export with golden images: export.golden_images: 30 in params.yaml, then dvc repro"
        )
    images = []
    for name, sha256, probabilities in stated:
        if not NAME.fullmatch(name) or len(probabilities) != len(classes):
            raise DataError(
                f"{path} is damaged: `{visible(name[:40])}` is no name of a file in this folder, or does not have a probability "
                f"for each of {len(classes)} classes. Restore it: dvc checkout build/deploy"
            )
        content = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(
                f"{folder / name} {'has other bytes than were exported' if content else 'does not exist'}. "
                "Restore it: dvc checkout build/deploy"
            )
        images.append(Golden(name, content, classes, probabilities, background))
    return images, limit


def replay(answer: Answer, folder: Path, seconds: float = math.inf) -> list[Replayed]:
    """Predict golden images and compare with what the verified graph answered: all, or as many as `seconds` allow, but some.

    Raises:
        RequestError, DataError: the folder holds no golden images, or damaged ones.
    """
    images, limit = load(folder)
    end = time.monotonic() + seconds
    replayed: list[Replayed] = []
    for image in images:
        if len(replayed) >= LEAST_IMAGES and time.monotonic() > end:
            break
        replayed.append(_compare(image, answer, limit))
    return replayed


def check(replayed: Sequence[Replayed], name: str) -> None:
    """Refuse a model that answers golden images differently.

    Raises:
        VerificationError: with the first difference.
    """
    failed = [image for image in replayed if not image.passed]
    if failed:
        raise VerificationError(
            f"{name} does not answer {len(failed)} of {len(replayed)} golden images as it was measured: "
            f"{_difference(failed[0])}. Export and verify it again: dvc repro --force export"
        )


def of_model(model: OnnxModel) -> Answer:
    """Answer with a model in this process."""

    def answer(content: bytes) -> Mapping[str, float]:
        image_u8 = decode(content, background=model.background, max_truncated=1.0).image_u8
        return dict(zip(model.classes, model(image_u8[np.newaxis])[0].tolist(), strict=True))

    return answer


def verify(target: str, folder: Path | None, *, as_json: bool) -> int:
    """Replay golden images against a URL or a file, print the comparison, and return the exit code.

    Args:
        target: address of a server, or a model file.
        folder: of golden images; None: beside the file, or those of build/deploy.
        as_json: print an object instead of a table.

    Raises:
        RequestError: there are no golden images, no such model, or params.yaml, which names the token of a server, is not valid.
        ServerError: no request was answered: the first error.
    """
    from convoy.serving.golden_server import of_server  # noqa: PLC0415 (HTTP, which a model that is opened does not need)

    is_url = bool(URL.match(target))
    beside = Path("build/deploy") if is_url else Path(target).parent
    folder = folder or beside / contract.GOLDEN
    if is_url:
        images, _ = load(folder)
        token = os.environ.get(serve_params().token_env, "")
        replayed = replay(of_server(target, images[0].classes, images[0].background, token), folder)
    else:
        replayed = replay(of_model(OnnxModel(Path(target))), folder)
    if is_url and all(image.error for image in replayed):
        raise ServerError(f"{without_credentials(target)}: {replayed[0].error}")
    passed = sum(image.passed for image in replayed)
    largest = max(image.gap for image in replayed)
    if as_json:
        print_json(
            {
                "target": without_credentials(target),
                "golden": str(folder),
                "images": len(replayed),
                "passed": passed,
                "largest_gap": largest,
                "limit": replayed[0].limit,
                "results": [asdict(image) | {"passed": image.passed} for image in replayed],
            }
        )
        return 0 if passed == len(replayed) else 1
    rows = [
        (
            image.file,
            image.expected,
            image.answered or "-",
            "-" if image.error else f"{image.gap:.1e}",
            "passed" if image.passed else f"FAILED: {image.error or _reason(image)}",
        )
        for image in replayed
    ]
    info(table(("Image", "Expected", "Answered", "Gap", ""), rows, right={3}))
    info(
        f"{passed} of {len(replayed)} golden images are answered as measured; largest probability gap {largest:.1e} "
        f"(limit {replayed[0].limit:g})"
    )
    return 0 if passed == len(replayed) else 1


def _compare(image: Golden, answer: Answer, limit: float) -> Replayed:
    try:
        answered = answer(image.content)
    except (DataError, ServerError) as error:
        return Replayed(image.file, image.label, "", 1.0, limit, str(error))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        cause = f"the answer is not what the protocol requires ({type(error).__name__}: {error})"
        return Replayed(image.file, image.label, "", 1.0, limit, cause)
    if set(answered) != set(image.classes):
        missing = sorted(set(image.classes) - set(answered))
        cause = f"the answer lacks {', '.join(missing[:3])}" if missing else "the answer has further classes"
        return Replayed(image.file, image.label, "", 1.0, limit, f"{cause} ({len(image.classes)} classes)")
    gaps = [
        abs(answered[name] - value) for name, value in zip(image.classes, image.probabilities, strict=True)
    ]
    gap = max(gap if math.isfinite(gap) else 1.0 for gap in gaps)
    return Replayed(image.file, image.label, max(answered, key=answered.__getitem__), gap, limit)


def _reason(image: Replayed) -> str:
    if image.answered != image.expected:
        return "another class"
    return f"gap above {image.limit:g}"


def _difference(image: Replayed) -> str:
    if image.error:
        return f"{image.file}: {image.error}"
    return (
        f"{image.file}: class {visible(image.answered)}, expected {visible(image.expected)}, largest probability gap "
        f"{image.gap:.2g} (limit {image.limit:g})"
    )
