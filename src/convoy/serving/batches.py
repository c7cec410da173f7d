"""Answer the images of many requests: worker threads take all that wait, decode, and run each size as a batch.

There is no artificial delay: an image that arrives alone is answered alone, and batches grow as the load does.

Small images for a model of less than a millisecond take a lane of their own. There Python's lock is the limit, and each
thread that decodes waits for it several times per image. So they are decoded in the event loop's thread, and one other thread
runs the model without further threads: 1.4 times as many requests on 2 cores, with a fifth less processor time for each.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from convoy.core.errors import DataError
from convoy.export.onnx_model import CHUNK_IMAGES, chunks
from convoy.images.decode import BYTES_PER_PIXEL, decode, memory
from convoy.serving.answers import Refusal, refused_image
from convoy.serving.model import ServedModel

logger = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]
Content = bytes | Image
"""An encoded image, or (H, W, 3) pixels."""

SMALL_BYTES = 8 * 2**10
SMALL_PIXELS = 2**14
"""Largest file and image that is decoded in the event loop's thread, within 0.3 ms; those of 32 pixels take 0.15."""

LARGE = 2**20
"""Pixels of a batch from which its memory is reserved: the graph holds them as float32."""

NOTHING = np.empty(0, np.float32)
NO_ORDER = np.empty(0, np.int64)

FAILED = Refusal(500, "inference_failed", "The model failed on this image; the service's log has the cause.")

Observer = Callable[[Sequence[Image], npt.NDArray[np.float32], Sequence[bytes | None], ServedModel], None]
"""Is called after each batch, in its worker's thread: N images, (N, K) probabilities, the encoded images (None for one that
came as pixels), and the model."""

Predict = Callable[[Sequence[Image]], npt.NDArray[np.float32]]

_Batch = tuple[list[Image], npt.NDArray[np.float32], list[bytes | None]]


@dataclass(slots=True)
class Outcome:
    """Hold what became of an image.

    Attributes:
        probabilities: (K,) of the classes of `served`; none where `refusal` states why.
        decode_ms: time of its decoding.
        inference_ms: time of the call that it was answered in.
        order: (K,) indices of the classes, the most probable first.
    """

    served: ServedModel
    probabilities: npt.NDArray[np.float32]
    refusal: Refusal | None = None
    decode_ms: float = 0.0
    inference_ms: float = 0.0
    order: npt.NDArray[np.int64] = field(default_factory=lambda: NO_ORDER)


@dataclass(slots=True)
class _Request:
    """Collect the outcomes of a request's images; only the event loop's thread changes it."""

    future: "asyncio.Future[list[Outcome]]"
    loop: asyncio.AbstractEventLoop
    outcomes: list[Outcome | None]
    left: int


@dataclass(slots=True)
class _Item:
    """An image that waits."""

    request: _Request
    index: int
    content: Content
    image_u8: Image | None = None
    background: str = ""  # that it was decoded with
    decode_ms: float = 0.0


@dataclass
class _Lane:
    """Hold images that wait, and how many threads take them.

    Attributes:
        idle: threads that have nothing to do.
        decoded: whether the images are decoded already, and small.
    """

    threads: int
    decoded: bool = False
    idle: int = 0
    waiting: "queue.SimpleQueue[_Item | None]" = field(default_factory=queue.SimpleQueue)


@dataclass
class Answerer:
    """Answer images in worker threads.

    Attributes:
        served: gives the model; is called once per batch.
        workers: threads; each decodes and runs batches of its own.
        max_queue: most images that wait.
        timeout_s: longest time that a request waits for its outcomes.
        max_pixels: largest image.
        observers: are called after each batch.
    """

    served: Callable[[], ServedModel]
    workers: int
    max_queue: int
    timeout_s: float
    max_pixels: int
    observers: Sequence[Observer] = ()
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the lanes."""
        self._usual, self._small = _Lane(self.workers), _Lane(1, decoded=True)

    async def answer(self, contents: Sequence[Content]) -> list[Outcome]:
        """Answer the images of a request, in their order, with one model.

        Raises:
            Refusal: too many images wait, or the time limit has passed.
        """
        outcomes = await self._answer(contents)
        if any(outcome.served is not outcomes[0].served for outcome in outcomes):  # swapped in between
            outcomes = await self._answer(contents)
        return outcomes

    async def _answer(self, contents: Sequence[Content]) -> list[Outcome]:
        if self.waiting + len(contents) > self.max_queue:
            raise Refusal(
                429,
                "queue_full",
                f"{self.waiting} images wait, the limit is {self.max_queue}. Send the request again after a second.",
                [(b"retry-after", b"1")],
            )
        self.start()
        loop = asyncio.get_running_loop()
        request = _Request(loop.create_future(), loop, [None] * len(contents), len(contents))
        items = [_Item(request, index, content) for index, content in enumerate(contents)]
        lane = self._small if len(items) == 1 and self._decoded_here(items[0]) else self._usual
        for item in items:
            lane.waiting.put(item)
        timer = loop.call_later(self.timeout_s, _expire, request, self.timeout_s)
        try:
            return await request.future
        finally:
            timer.cancel()

    @property
    def waiting(self) -> int:
        """Number of images that no worker has taken yet."""
        return self._usual.waiting.qsize() + self._small.waiting.qsize()

    def start(self) -> None:
        """Start the threads, unless they run."""
        if self._threads:
            return
        for lane in (self._usual, self._small):
            for _ in range(lane.threads):
                name = f"answer-{len(self._threads)}"
                thread = threading.Thread(target=self._work, args=[lane], name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        """End the threads once everything that waits is answered."""
        for lane in (self._usual, self._small):
            for _ in range(lane.threads):
                lane.waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _decoded_here(self, item: _Item) -> bool:
        """Decode a small image in this thread, if the model is as fast; what fails, a worker decodes again and refuses."""
        served, content = self.served(), item.content
        if served.single is None or not isinstance(content, bytes) or len(content) > SMALL_BYTES:
            return False
        began = time.perf_counter()
        try:
            decoded = decode(content, background=served.model.background, max_pixels=SMALL_PIXELS)
        except Exception:  # noqa: BLE001 (a worker decodes it again, and reports the cause)
            return False
        item.image_u8, item.background = decoded.image_u8, served.model.background
        item.decode_ms = (time.perf_counter() - began) * 1000
        return True

    def _work(self, lane: _Lane) -> None:
        """Take a share of what waits, until the end."""
        while True:
            lane.idle += 1
            first = lane.waiting.get()
            share = -(-(lane.waiting.qsize() + 1) // max(1, lane.idle))
            lane.idle -= 1
            if first is None:
                return
            taken = [first]
            try:
                while len(taken) < min(share, CHUNK_IMAGES):
                    item = lane.waiting.get_nowait()
                    if item is None:  # of another worker, too: both end
                        lane.waiting.put(None)
                        break
                    taken.append(item)
            except queue.Empty:
                pass
            self._process([item for item in taken if not item.request.future.done()], single=lane.decoded)

    def _process(self, items: list[_Item], *, single: bool = False) -> None:
        """Decode and classify; hand back all outcomes of a chunk at once."""
        served = self.served()
        predict = served.predict_single if single else served.predict
        refused: list[tuple[_Item, Outcome]] = []
        for chunk in chunks(self._decoded(items, served, refused), _size):
            batches: list[_Batch] = []
            done = refused + self._classified(chunk, served, predict, batches)
            refused.clear()
            hand_back(done)
            for observer in self.observers:
                for batch in batches:
                    try:
                        observer(*batch, served)
                    except Exception:
                        logger.exception("an observer of answers failed")
        hand_back(refused)

    def _classified(
        self, chunk: list[_Item], served: ServedModel, predict: Predict, batches: list[_Batch]
    ) -> list[tuple[_Item, Outcome]]:
        """Run the model, and add to `batches` what observers get.

        If it fails on several images it runs on each alone, so that one of them does not fail the others.
        """
        images_u8 = [item.image_u8 for item in chunk if item.image_u8 is not None]
        began = time.perf_counter()
        try:
            pixels = sum(image_u8.nbytes for image_u8 in images_u8) // 3
            with memory().reserved(BYTES_PER_PIXEL * pixels) if pixels > LARGE else nullcontext():
                probabilities = predict(images_u8)
        except Exception:
            if len(chunk) > 1:
                return [done for item in chunk for done in self._classified([item], served, predict, batches)]
            logger.exception("the model failed on an image")
            return [(chunk[0], Outcome(served, NOTHING, FAILED))]
        took_ms = (time.perf_counter() - began) * 1000
        # Here and not in the event loop's thread, which would wait for Python's lock after each call of numpy.
        orders = np.argsort(-probabilities, axis=1, kind="stable")
        sound = np.isfinite(probabilities.sum(axis=1)).tolist()
        contents = [item.content if isinstance(item.content, bytes) else None for item in chunk]
        batches.append((images_u8, probabilities, contents))
        return [
            (item, Outcome(served, row, None if finite else FAILED, item.decode_ms, took_ms, order))
            for item, row, order, finite in zip(chunk, probabilities, orders, sound, strict=True)
        ]

    def _decoded(
        self, items: Iterable[_Item], served: ServedModel, refused: list[tuple[_Item, Outcome]]
    ) -> Iterator[_Item]:
        """Decode items; those that cannot be decoded go to `refused`."""
        background = served.model.background
        for item in items:
            if not isinstance(item.content, bytes):
                item.image_u8 = item.content
                yield item
                continue
            if item.image_u8 is not None and item.background == background:  # else swapped in between
                yield item
                continue
            began = time.perf_counter()
            try:
                with ExitStack() as held:  # the memory that decoding takes, of all threads together
                    item.image_u8 = decode(
                        item.content, held, background=background, max_pixels=self.max_pixels
                    ).image_u8
            except DataError as error:
                refused.append((item, Outcome(served, NOTHING, refused_image(error))))
                continue
            except Exception:
                logger.exception("decoding failed")
                refused.append((item, Outcome(served, NOTHING, FAILED)))
                continue
            item.decode_ms = (time.perf_counter() - began) * 1000
            yield item


def _size(item: _Item) -> int:
    return 0 if item.image_u8 is None else item.image_u8.nbytes


def hand_back(outcomes: Sequence[tuple[_Item, Outcome]]) -> None:
    """Give outcomes to their requests in the event loop's thread, with a single call."""
    if outcomes:
        outcomes[0][0].request.loop.call_soon_threadsafe(_deliver, outcomes)


def _deliver(outcomes: Sequence[tuple[_Item, Outcome]]) -> None:
    for item, outcome in outcomes:
        request = item.request
        request.outcomes[item.index] = outcome
        request.left -= 1
        if not request.left and not request.future.done():
            request.future.set_result([outcome for outcome in request.outcomes if outcome is not None])


def _expire(request: _Request, seconds: float) -> None:
    if not request.future.done():
        request.future.set_exception(
            Refusal(
                503,
                "timed_out",
                f"The image was not classified within {seconds:g} s. Send the request again later.",
                [(b"retry-after", b"1")],
            )
        )
