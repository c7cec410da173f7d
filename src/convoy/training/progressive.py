"""Train the first epochs on smaller images, whose steps cost less.

Coarse features are learnt from small images as well, and the last epochs adapt them to the full size. After
Howard's DAWNBench entry (2018) and Touvron et al., Fixing the train-test resolution discrepancy, 2019.
"""

from convoy.core.errors import NetworkError, RequestError
from convoy.models import shapes
from convoy.models.layer_types import Dense
from convoy.models.shapes import Step
from convoy.models.spec import Spec
from convoy.training.settings import TrainParams

MULTIPLE_PX = 4  # of sides, so that two poolings of 2 lose no pixels


def side_px(params: TrainParams, image_px: int, epoch: int) -> int:
    """Compute the side of the training images of an epoch, 0 for the first: a multiple of 4, or `image_px`."""
    if params.progressive.start == 1:
        return image_px
    grown = min(1.0, epoch / (params.progressive.full * params.epochs))
    share = params.progressive.start + (1 - params.progressive.start) * grown
    return min(image_px, MULTIPLE_PX * max(1, round(share * image_px / MULTIPLE_PX)))


def check(spec: Spec, classes: int, image_px: int, params: TrainParams) -> None:
    """Refuse a network of layers that does not take the images of the first epoch.

    Raises:
        RequestError: naming the layer, and what to set.
    """
    side = side_px(params, image_px, 0)
    if side == image_px or spec.classifier:
        return
    where = f"train.progressive.start {params.progressive.start} trains {spec.name} on {side} px images first"
    try:
        small = _dense(shapes.infer(spec, classes, side))
    except NetworkError as error:
        raise RequestError(f"{where}, which are too small. Set it to 1.0, or higher. {error}") from error
    for name, inputs in _dense(shapes.infer(spec, classes, image_px)).items():
        if small[name] != inputs:
            raise RequestError(
                f"{where}, but layer {name} has weights for {inputs:,} values, those of {image_px} px, and would get "
                f"{small[name]:,}. Set it to 1.0, or put global_avg_pool before that layer"
            )


def _dense(steps: tuple[Step, ...], path: str = "") -> dict[str, int]:
    """Map the dense layers of a network to the number of values that they take."""
    found: dict[str, int] = {}
    for step in steps:
        name = f"{path}{step.name}"
        if isinstance(step.layer, Dense):
            found[name] = step.input[0]
        for part in step.parts:
            found |= _dense(part, f"{name}.")
    return found
