"""Check a delivery: decode every file once, assign splits, and refuse what cannot be trained on."""

import hashlib
import struct
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from convoy.core.console import track
from convoy.core.cpus import usable_cpus
from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError, listed
from convoy.data import duplicates, giveaway
from convoy.data.cache import Cache, Seen
from convoy.data.checks import (
    CERTAIN,
    EXAMPLES,
    check_dataset,
    check_images,
    check_notes,
    look_alikes,
    same_colours,
    settle_near_duplicates,
)
from convoy.data.duplicates import Compared
from convoy.data.layout import Layout, recognise
from convoy.data.rare import absent_from_delivered
from convoy.data.records import SPOOL_BYTES, Finding, Pair, Record, Rows, Status
from convoy.data.settings import DataParams
from convoy.data.split import assign, pixel_hash
from convoy.data.statistics import REDUCED_PX, STATISTICS, columns, measure_all
from convoy.images import litter
from convoy.images.decode import Content, Decoded, Note, decode
from convoy.images.delivery import EXPECTED, Delivery, Place, open_delivery
from convoy.images.formats import Fault, NotAnImageError, UnusableError, starts_as_image

BATCH_FILES = 256
BATCH_BYTES = 2**21
"""Files passed to a thread at once, until either is reached: thousands of icons together, since
passing one costs as much as decoding it, but photographs nearly one by one."""

STACK = 64
"""Images of one size that are measured at once: numpy takes a quarter of the time, and their arrays fit a processor's cache."""

SMALL_PIXELS = REDUCED_PX**2
"""Largest image, in pixels, that waits for others of its size; larger ones are measured one by one, while their memory is reserved."""

NUMBERS = struct.Struct("<IIQ32s")
"""Width, height, size and pixel hash of an image, before its arrays."""

STATISTICS_AT = NUMBERS.size
FINGERPRINT_AT = STATISTICS_AT + len(STATISTICS) * np.dtype(np.float32).itemsize
SQUARE_AT = FINGERPRINT_AT + duplicates.SIZE
"""Where the arrays of an image begin."""

Square = npt.NDArray[np.uint8]
Shrink = Callable[[npt.NDArray[np.uint8]], Square]
"""Converts an (H, W, 3) uint8 image to the square that is packed; called from several threads."""


Decoding = Callable[[Content, ExitStack | None], Decoded]
"""Decodes a file's bytes: `decode`, with the background and the limit that are used."""


Facts = tuple[Any, ...]
"""Fields of a `Record` in their order, `index` excepted."""


class Kept(NamedTuple):
    """Hold what remains of a decoded image of a class, in the form that the cache has it in.

    Attributes:
        seen: of its words the mode, the format, whether it has transparent pixels, what `decode` noted, and the shape of the
            square; of its arrays `NUMBERS`, the statistics by `statistics.measure`, `duplicates.fingerprint`, and what `Shrink` made of it.
        cached: whether it was decoded for an earlier delivery.
    """

    seen: Seen
    cached: bool = False

    @property
    def transparent(self) -> bool:
        """Return whether it has transparent pixels."""
        return bool(self.seen.words[2])

    @property
    def notes(self) -> tuple[Note, ...]:
        """Return what was unusual about the file."""
        return tuple(self.seen.words[3])

    @property
    def statistics(self) -> bytes:
        """Return the bytes of (len(STATISTICS),) float32."""
        return self.seen.arrays[STATISTICS_AT:FINGERPRINT_AT]

    @property
    def fingerprint(self) -> bytes:
        """Return the bytes of (duplicates.SIZE,) uint8."""
        return self.seen.arrays[FINGERPRINT_AT:SQUARE_AT]

    @property
    def square_u8(self) -> Square:
        """Return what `Shrink` made of it."""
        return np.frombuffer(self.seen.arrays, np.uint8, -1, SQUARE_AT).reshape(self.seen.words[4])

    def facts(self, name: str, place: Place, sha256: bytes) -> Facts:
        """Return what a record has of its file."""
        mode, format_, *_ = self.seen.words
        width, height, size, pixels = NUMBERS.unpack_from(self.seen.arrays)
        stated = (name, place.label, place.split, place.group, "ok", "", None)
        return (*stated, sha256.hex(), width, height, mode, format_, size, pixels.hex())


@dataclass(frozen=True)
class Scan:
    """Hold the outcome of a check.

    Attributes:
        records: one per delivered file, in the delivery's order.
        classes: sorted; each has a usable image in train, and those that are not rare in every split.
        cut: the splits that the delivery lacks.
        findings: what the checks found.
        pairs: images that show nearly the same, whether they are used or not.
        statistics: name in `STATISTICS` to (n,) float32, by `Record.kept`.
    """

    delivery: Delivery
    records: list[Record]
    classes: list[str]
    cut: tuple[Split, ...]
    findings: Sequence[Finding] = ()
    pairs: Sequence[Pair] = ()
    statistics: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Count usable images per split and class, zeros included."""
        counts = Counter((record.split, record.label) for record in self.records)
        return {split: {label: counts[split, label] for label in self.classes} for split in SPLITS}


def scan(
    data: Path | Delivery,
    params: DataParams,
    shrink: Shrink,
    keep: Callable[[Square], object],
    *,
    refuse: bool = True,
    cache: Cache | None = None,
) -> Scan:
    """Decode every delivered file once and decide how it is used; write nothing.

    What the names alone reveal is checked before the first image is decoded.

    Args:
        data: folder or archive, or an open one.
        params: the `data` section.
        shrink: converts each usable image to the square that is packed; called from several threads.
        keep: called with each square, in the order of the records, so that no image is decoded twice.
        refuse: raise for findings whose action is `fail`; else the caller looks for them.
        cache: images that it has are not decoded again; others are added.

    Raises:
        DataError: no images, a single class, a class missing in a split, an unsafe or damaged archive; more unusable
            files than `data.max_quarantined` allows, or what `data.checks` refuses.
    """
    delivery = data if isinstance(data, Delivery) else open_delivery(data)
    names = delivery.names()
    layout = recognise(delivery, params.layout, params.label, params.group, params.columns)
    _check_names(delivery, layout, names, params, refuse=refuse)
    records: list[Record] = []
    decoding = partial(decode, background=params.background, max_truncated=params.max_truncated)
    measured, transparent = array("f"), bytearray()
    noted: defaultdict[Note, list[str]] = defaultdict(list)
    with TemporaryFile(buffering=SPOOL_BYTES) as fingerprints:
        for record, image in track(
            read(delivery.files(), layout, shrink, decoding, cache), "decode images", len(names)
        ):
            if image is None:
                records.append(record)
            else:
                if cache:
                    cache.use(bytes.fromhex(record.sha256), None if image.cached else image.seen)
                keep(image.square_u8)
                measured.frombytes(image.statistics)
                transparent.append(image.transparent)
                fingerprints.write(image.fingerprint)
                for note in image.notes:
                    noted[note].append(record.path)
                records.append(record)
        statistics = columns(measured)
        checked = check_images(records, statistics, transparent, params.checks, layout.delivered)
        pairs, alike = _near_duplicates(
            checked.records, statistics, fingerprints, params.checks.near_duplicates.limit, cache
        )
    settle_near_duplicates(checked, pairs, alike, params.checks.near_duplicates)
    records, of_splits = assign(checked.records, params, layout.delivered, pairs)
    findings = [*layout.notes, *checked.findings, *check_notes(noted), *_quarantine(records, params)]
    if refuse:
        refuse_findings(delivery, findings)
    classes = sorted({record.label for record in records if record.label})
    result = Scan(
        delivery, records, classes, params.cut(layout.delivered), pairs=pairs, statistics=statistics
    )
    try:
        _check_classes(result)
    except DataError:  # the findings are its causes
        refuse_findings(delivery, findings)
        raise
    findings += [*of_splits, *check_dataset(records, params.checks), *_empty_folders(delivery)]
    findings += giveaway.check(records, statistics, transparent, params.checks.giveaway)
    if refuse:
        refuse_findings(delivery, findings)
    return replace(result, findings=findings)


def _near_duplicates(
    records: Sequence[Record],
    statistics: Mapping[str, npt.NDArray[np.float32]],
    fingerprints: IO[bytes],
    limit: float,
    cache: Cache | None,
) -> tuple[list[Pair], list[str]]:
    """Compare the usable images that are large enough, the first of those with the same pixels.

    Returns:
        Pairs by index in `records`, and the classes of look-alikes, of which only copies count.
    """
    images = np.array([n for n, record in enumerate(records) if record.kept >= 0], np.int32)
    if not len(images):
        return [], []
    rows = cast("npt.NDArray[np.uint8]", Rows(fingerprints, (duplicates.SIZE,)))
    eligible = _eligible(record for record in records if record.kept >= 0)
    kept = cache.earlier("near_duplicates") if cache else None
    compared = Compared.restored(kept) if kept else None

    def above(least: float) -> list[Pair]:
        nonlocal compared
        found, compared = duplicates.search(rows, eligible, least, compared)
        return [
            replace(pair, first=int(images[pair.first]), second=int(images[pair.second])) for pair in found
        ]

    found = above(limit)
    if cache and compared:
        cache.keep("near_duplicates", compared.arrays())
    alike = look_alikes(records, found)
    if not alike or limit >= CERTAIN:
        return found, []
    distinct = [pair for pair in found if not {records[pair.first].label, records[pair.second].label} & alike]
    copies = same_colours(above(CERTAIN), records, statistics)
    both = {(pair.first, pair.second): pair for pair in (*copies, *distinct)}
    return [both[key] for key in sorted(both)], sorted(alike)


def _eligible(records: Iterable[Record]) -> npt.NDArray[np.bool_]:
    """Choose images in use that are large enough, the first of those with the same pixels."""
    seen: set[str] = set()
    found = bytearray()
    for record in records:
        large = min(record.width, record.height) >= duplicates.MIN_SIDE
        found.append(record.status == "ok" and large and record.pixels not in seen)
        if found[-1]:
            seen.add(record.pixels)
    return np.frombuffer(found, np.bool_)


def read(
    files: Iterable[tuple[str, Content]],
    layout: Layout,
    shrink: Shrink,
    decoding: Decoding = decode,
    cache: Cache | None = None,
) -> Iterator[tuple[Record, Kept | None]]:
    """Decode files on every usable core, in order; None for a file without a usable image.

    Pillow and onnxruntime release Python's lock while they compute. Only what `Kept` describes
    remains, so memory holds one full image per thread; fewer, where large ones would take too much (`decode.memory`).
    """
    threads, index = usable_cpus(), 0
    look = partial(_look_at, layout=layout, shrink=shrink, decoding=decoding, cache=cache)
    pending: deque[Future[list[tuple[Facts, Kept | None]]]] = deque()

    def numbered() -> Iterator[tuple[Record, Kept | None]]:
        nonlocal index
        for facts, image in pending.popleft().result():
            if image is None:
                yield Record(*facts), None
            else:
                yield Record(*(*facts, index)), image
                index += 1

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for batch in _batches(files):
            pending.append(pool.submit(look, batch))
            if len(pending) > 2 * threads:
                yield from numbered()
        while pending:
            yield from numbered()


def _batches(files: Iterable[tuple[str, Content]]) -> Iterator[list[tuple[str, Content]]]:
    batch: list[tuple[str, Content]] = []
    size = 0
    for name, content in files:
        batch.append((name, content))
        size += 0 if isinstance(content, DataError) else len(content)
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _look_at(
    files: Sequence[tuple[str, Content]],
    layout: Layout,
    shrink: Shrink,
    decoding: Decoding,
    cache: Cache | None,
) -> list[tuple[Facts, Kept | None]]:
    """Decode and measure images, unless the cache has them; an image of no class is only decoded."""
    digests = [
        hashlib.sha256(b"" if isinstance(content, DataError) else content).digest() for _, content in files
    ]
    seen = cache.find(digests) if cache else {}
    looks = _Looks(shrink)
    for (name, content), sha256 in zip(files, digests, strict=True):
        place = layout.place(name)
        if place.passed_over:
            looks.unused(name, place, "passed_over", place.passed_over)
        elif litter.is_preview(name):
            looks.unused(name, Place(), "passed_over", litter.kind(name))
        elif place.label and sha256 in seen:
            kept = Kept(seen[sha256], cached=True)
            looks.add(kept.facts(name, place, sha256), kept)
        else:
            try:
                looks.decode(name, content, place, sha256, decoding)
            except DataError as error:
                if not layout.by_image and (word := _no_image(name, content, error)):
                    looks.unused(name, Place(), "passed_over", word)
                else:
                    looks.unusable(name, place, error)
    return looks.finished()


class _Looks:
    """Collect what is found out about the files of a batch; small images of one size are measured together."""

    def __init__(self, shrink: Shrink) -> None:
        self._shrink = shrink
        self._found: list[tuple[Facts, Kept | None]] = []
        self._waiting: defaultdict[tuple[int, ...], list[_Waiting]] = defaultdict(list)

    def add(self, facts: Facts, image: Kept | None) -> None:
        """Add a file."""
        self._found.append((facts, image))

    def unused(
        self,
        name: str,
        place: Place,
        status: Status,
        reason: str,
        *,
        fault: Fault | None = None,
        decoded: tuple[object, ...] = (),
    ) -> None:
        """Add a file that is not used."""
        self.add((name, place.label, None, place.group, status, reason, fault, *decoded), None)

    def unusable(self, name: str, place: Place, error: DataError) -> None:
        """Add a file that cannot be decoded."""
        if place.label:
            fault = error.fault if isinstance(error, UnusableError) else UnusableError.fault
            self.unused(name, place, "quarantined", str(error), fault=fault)
        else:
            self.unused(name, place, "passed_over", str(error))

    def decode(self, name: str, content: Content, place: Place, sha256: bytes, decoding: Decoding) -> None:
        """Decode a file.

        Raises:
            DataError: it cannot be decoded.
        """
        with ExitStack() as held:
            image = decoding(content, held)
            height, width, _ = image.image_u8.shape
            size = len(cast("bytes", content))
            if place.label is None:
                decoded = (sha256.hex(), width, height, image.mode, image.format, size)
                reason = place.reason or "is not in a class folder"
                self.unused(name, place, "quarantined", reason, fault=place.fault, decoded=decoded)
                return
            waiting = self._waiting[image.image_u8.shape]
            waiting.append(_Waiting(len(self._found), (name, place, sha256), image, size))
            self.add((), None)
            if height * width > SMALL_PIXELS or len(waiting) == STACK:
                self._measure(waiting)

    def finished(self) -> list[tuple[Facts, Kept | None]]:
        """Return all files in order."""
        for waiting in self._waiting.values():
            if waiting:
                self._measure(waiting)
        return self._found

    def _measure(self, waiting: list["_Waiting"]) -> None:
        if len(waiting) == 1:
            stack_u8 = waiting[0].image.image_u8[np.newaxis]
        else:
            stack_u8 = np.stack([each.image.image_u8 for each in waiting])
        statistics = measure_all(stack_u8, [each.size for each in waiting])
        fingerprints = duplicates.fingerprints_of(stack_u8)
        for (number, file, image, size), *measured in zip(waiting, statistics, fingerprints, strict=True):
            height, width, _ = image.image_u8.shape
            numbers = NUMBERS.pack(width, height, size, bytes.fromhex(pixel_hash(image.image_u8)))
            square_u8 = self._shrink(image.image_u8)
            words = (image.mode, image.format, image.transparent, image.notes, square_u8.shape)
            arrays = (each.tobytes() for each in (*measured, square_u8))
            kept = Kept(Seen(words, b"".join([numbers, *arrays])))
            self._found[number] = kept.facts(*file), kept
        waiting.clear()


class _Waiting(NamedTuple):
    """Hold an image until others of its size are measured with it.

    Attributes:
        number: of its file in the batch.
        file: its name, what is stated about it, and its SHA-256.
        size: of its file, in bytes.
    """

    number: int
    file: tuple[str, Place, bytes]
    image: Decoded
    size: int


def _no_image(name: str, content: Content, error: DataError) -> str:
    """Return the word for a file that does not claim to be an image, neither by its name nor by its first bytes; else empty."""
    claims = litter.claims_to_be_image(name) or isinstance(content, DataError) or starts_as_image(content)
    if not claims and (not content or isinstance(error, NotAnImageError)):
        return litter.kind(name) or litter.OTHER_FILE
    return litter.kind(name)


def _check_names(
    delivery: Delivery, layout: Layout, names: list[str], params: DataParams, *, refuse: bool
) -> None:
    """Refuse what the paths alone show to be unusable, before anything is decoded."""
    places = [layout.place(name) for name in names if not litter.kind(name)]
    delivered = {(place.split, place.label) for place in places}
    classes = sorted({place.label for place in places if place.label})
    if not classes:
        raise DataError(f"{delivery.path} contains no images in class folders. {delivery.holds()} {EXPECTED}")
    if len(classes) == 1:
        raise DataError(
            f"{delivery.path} has a single class, `{classes[0]}`. "
            f"Add a folder for at least one other class. {delivery.holds()} {EXPECTED}"
        )
    trained = Counter(place.label for place in places if place.split == "train" and place.label)
    for split in layout.delivered if refuse else ():  # else `assign` finds it, and the table shows it
        if absent := [label for label in classes if (split, label) not in delivered]:
            refuse_findings(
                delivery, [absent_from_delivered(split, absent, params, layout.delivered, trained)]
            )


def _quarantine(records: list[Record], params: DataParams) -> list[Finding]:
    """Find that more files are unusable than `data.max_quarantined` allows."""
    unusable = [record for record in records if record.status == "quarantined"]
    checked = sum(record.status != "passed_over" for record in records)
    if len(unusable) <= params.max_quarantined * checked:
        return []
    lines = [f"  {record.path}: {record.reason}" for record in unusable[:EXAMPLES]]
    if len(unusable) > EXAMPLES:
        lines.append(f"  and {len(unusable) - EXAMPLES:,} more")
    text = (
        f"{len(unusable):,} of {checked:,} files are unusable ({len(unusable) / checked:.1%}; "
        f"data.max_quarantined allows {params.max_quarantined:.1%}):\n" + "\n".join(lines) + "\n"
        "Repair or remove them, or raise data.max_quarantined in params.yaml."
    )
    paths = tuple(record.path for record in unusable)
    return [Finding("quarantined", len(unusable) / checked, params.max_quarantined, "fail", text, paths)]


def refuse_findings(delivery: Delivery, findings: Sequence[Finding]) -> None:
    """Raise for findings whose action is `fail`."""
    if texts := [finding.text for finding in findings if finding.action == "fail"]:
        raise DataError(f"{delivery.path}: " + "\n".join([*texts, "Nothing was written."]))


def _check_classes(scan: Scan) -> None:
    """Refuse a class without a usable image."""
    usable = Counter(record.label for record in scan.records if record.status == "ok")
    if not usable:
        cause = next((f" ({record.path}: {record.reason})" for record in scan.records if record.label), "")
        raise DataError(
            f"{scan.delivery.path} contains no usable image{cause}. {scan.delivery.holds()} {EXPECTED}"
        )
    for label in scan.classes:
        if not usable[label]:
            example = next(record for record in scan.records if record.label == label)
            raise DataError(
                f"{scan.delivery.path}: class `{label}` has no usable image ({example.path}: {example.reason}). "
                "Repair its images, or remove its folder."
            )


def _empty_folders(delivery: Delivery) -> list[Finding]:
    """Name the folders without images, which may have been meant as classes."""
    folders = delivery.empty_folders
    if not folders:
        return []
    text = (
        f"{len(folders):,} folder{'s' * (len(folders) != 1)} without images, so not classes: "
        f"{listed([f'`{folder}`' for folder in folders], EXAMPLES)}. Add images to them, or remove them."
    )
    return [Finding("empty_folders", len(folders), None, "report", text, tuple(folders))]
