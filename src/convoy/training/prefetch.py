"""Prepare the next batch in a thread while the present one is computed.

On a CUDA GPU the thread copies, augments and waits in a stream of its own, beside the computation. On a CPU it would take
the cores that compute, so there the batches are prepared in turn (docs/training.md has the measurement). A batch holds the same in
either case: it is a pure function of seed, epoch and step.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from convoy.training.batch import Batch
from convoy.training.stored import Images

T = TypeVar("T")

RESIDENT = 0.25
"""Share of the free memory of a GPU that the images of a split may fill; the rest is for the network."""

THREADED = frozenset({"cuda"})
"""Types of devices on which the thread pays."""


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Yield the first `count` items in order, each made by a thread while the one before is used.

    An error in the thread is raised, with its traceback, where the item was due. The thread has ended before the last item is
    used, and when the iterator is closed.
    """
    making = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        coming: Future[T] | None = None
        for left in reversed(range(count)):
            item = (coming or pool.submit(next, making)).result()
            if left:
                coming = pool.submit(next, making)
            else:
                pool.shutdown()
            yield item


def on_device(
    batches: Iterable[Batch], count: int, device: torch.device, prepare: Callable[[Batch], Batch]
) -> Iterator[Batch]:
    """Yield the first `count` batches, moved to a device and prepared there, ahead of their use where that pays."""
    if device.type != "cuda":
        prepared = (prepare(_moved(batch, device)) for batch in batches)
        yield from ahead(prepared, count) if device.type in THREADED else prepared
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch has no types here

    def make() -> Iterator[tuple[Batch, torch.cuda.Event]]:
        for batch in batches:
            with torch.cuda.stream(stream):  # of the thread, which has a current stream of its own
                made = prepare(_moved(batch, device)), stream.record_event()
            yield made

    for batch, ready in ahead(make(), count):
        current = torch.cuda.current_stream(device)
        current.wait_event(ready)
        for value in batch:
            if isinstance(value, Tensor):
                value.record_stream(
                    current
                )  # else its memory could be filled again while the network reads it
        yield batch


def resident(images_u8: Images, device: torch.device) -> Images | Tensor:
    """Copy (N, P, P, 3) images into the memory of a GPU, if they fit beside a network, else return them as they are."""
    if device.type != "cuda" or not isinstance(images_u8, np.ndarray):
        return images_u8
    if images_u8.nbytes > RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return images_u8
    return torch.from_numpy(images_u8.copy()).to(device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors that are not on a device yet to it; to a GPU by way of memory that it reads on its own."""

    def move(value: Any) -> Any:  # noqa: ANN401 (a field of any type)
        if not isinstance(value, Tensor) or value.device == device:
            return value
        return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)

    return Batch(*map(move, batch))
