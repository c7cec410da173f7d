"""Find values that exclude each other before any trial: what is frozen without weights, a block that is not there."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from convoy.core.errors import NetworkError, RequestError
from convoy.models.spec import Spec
from convoy.sweep.request import Request
from convoy.sweep.space import describe
from convoy.training import weight_pins
from convoy.training.settings import TrainParams, TransferParams

DECIDING = ("network.", "train.transfer.", "train.epochs")
"""Beginnings of the keys that decide what is frozen, and until when."""

MOST = 2000
"""Largest number of combinations that is gone through."""


def check(request: Request, classes: int, image_px: int) -> None:
    """Go through the combinations of choices and ends that a trial may get.

    Args:
        request: whose single values are valid each.
        classes: of the dataset.
        image_px: side of its images, in pixels.

    Raises:
        RequestError: naming the values that exclude each other.
    """
    for values in _combinations(request):
        chosen, train, _ = request.settings(values)
        if _is_plain(train.transfer):
            continue
        spec = Spec.model_validate(request.specs[chosen.name])
        try:
            _check_plan(spec, train, classes, image_px, weights=chosen.weights != weight_pins.NONE)
        except NetworkError:  # it does not take these images, which fails the trial alone
            continue
        except RequestError as error:
            where = f"with {describe(values)}: " if values else ""
            raise RequestError(
                f"sweep.space allows what cannot be trained: {where}{error}\n"
                "Take one of these values out of sweep.space, or change what params.yaml says beside it."
            ) from error


def _combinations(request: Request) -> Iterator[dict[str, Any]]:
    space = [one for one in request.space if one.key.startswith(DECIDING)]
    every = itertools.product(*(one.ends() for one in space))
    for point in itertools.islice(every, MOST):
        yield dict(zip((one.key for one in space), point, strict=True))


def _is_plain(transfer: TransferParams) -> bool:
    """Tell whether nothing is frozen or released, which fits every network."""
    released = isinstance(transfer.release, Mapping)
    return transfer.freeze == 0 and transfer.batch_norm == "adapt" and not released


def _check_plan(spec: Spec, train: TrainParams, classes: int, image_px: int, *, weights: bool) -> None:
    """Make the plan of a training; no weight is allocated."""
    # Seconds of imports, which sweeps that freeze nothing do without.
    import torch  # noqa: PLC0415 (torch, as said)

    from convoy.models import trained  # noqa: PLC0415 (torch, as said)
    from convoy.training.freezing import Plan, blocks, refuse_without_weights  # noqa: PLC0415 (torch, as said)

    if not weights:
        refuse_without_weights(train.transfer)
    facts = trained.ModelFacts(
        network=spec.name,
        spec=spec,
        classes=[str(number) for number in range(classes)],
        image_px=image_px,
        fit="squash",
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    with torch.device("meta"):
        model = trained.make(facts, auxiliary=True)
    Plan.of([block.name for block in blocks(model.network)], train, spec.name)
