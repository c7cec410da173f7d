"""Learning-rate schedule and optimizer of a training."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from convoy.core.errors import RequestError
from convoy.training.muon import Muon, is_matrix
from convoy.training.settings import Schedule, TrainParams

WARMUP_START = 0.1  # share of the highest learning rate that a warm-up starts from


def lr_schedule(
    schedule: Schedule,
    warmup: float,
    steps: int,
    *,
    end: float = 0.0,
    falls: Sequence[int] = (),
    fall_factor: float = 1.0,
) -> Callable[[int], float]:
    """Make the function from step (0 for the first) to the factor on the highest learning rate, 0 to 1.

    A pure function of the step, so that a resumed run continues the curve. It rises linearly over the
    share `warmup` of all steps. Then `one_cycle` falls linearly to zero after the last step; `linear` in the same way, and
    `cosine` along half a wave, to the share `end`; `constant` stays. `step` is multiplied by `fall_factor` from each
    of the steps `falls` on.
    """
    rising = warmup * steps

    def factor(step: int) -> float:
        warm = WARMUP_START + (1 - WARMUP_START) * step / rising if step < rising else 1.0
        if schedule == "step":
            return warm * fall_factor ** sum(step >= fall for fall in falls)
        if step < rising or schedule == "constant":
            return warm
        left = max(0.0, (steps - step) / (steps - rising))
        if schedule == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return end + (1 - end) * left

    return factor


def schedule_of(params: TrainParams, steps_per_epoch: int) -> Callable[[int], float]:
    """Make the schedule that params describe."""
    each = params.step_epochs
    epochs = range(each, params.epochs, each) if isinstance(each, int) else each
    return lr_schedule(
        params.schedule,
        params.warmup,
        steps_per_epoch * params.epochs,
        end=params.lr_end,
        falls=[steps_per_epoch * epoch for epoch in epochs],
        fall_factor=params.step_factor,
    )


def make_optimizer(
    blocks: Sequence[Mapping[str, nn.Parameter]],
    block_factors: Sequence[float],
    params: TrainParams,
    schedule: Callable[[int], float],
) -> tuple[Optimizer, LambdaLR]:
    """Make the optimizer and its schedule, with groups per block: with and without weight decay.

    The weights of convolutions and dense layers decay; scales of norms and biases do not. `blocks` are parameters
    by name, from image to head, then those in no block (auxiliary heads); frozen ones too, so that a checkpoint fits in
    every phase. `block_factors` are their learning rates as shares of the head's.

    With `muon`, Muon trains the matrices between first block and head, and the rest shrinks at every step by the same share,
    whatever its learning rate.

    Raises:
        RequestError: there are no such matrices.
    """
    muon = params.muon
    first: list[_Group] = []  # that Muon trains
    others: list[_Group] = []
    for index, (parameters, factor) in enumerate(zip(blocks, block_factors, strict=True)):
        weights = [value for value in parameters.values() if value.ndim > 1]
        rest = [value for value in parameters.values() if value.ndim <= 1]
        if params.optimizer != "muon":
            others.append(_Group(factor, weights, params.lr, params.weight_decay))
            others.append(_Group(factor, rest, params.lr, 0.0))
            continue
        is_inner, is_head = 0 < index < len(blocks) - 2, index == len(blocks) - 2
        inner = [value for value in weights if is_inner and is_matrix(value)]
        outer = [value for value in weights if not (is_inner and is_matrix(value))]
        outer_lr = muon.head_lr if is_head else muon.rest_lr
        first.append(_Group(factor, inner, params.lr, params.weight_decay))
        others.append(_Group(factor, outer, outer_lr, muon.rest_decay / outer_lr))
        others.append(_Group(factor, rest, muon.rest_lr, muon.rest_decay / muon.rest_lr))
    first, others = ([group for group in groups if group.params] for groups in (first, others))
    matrices, groups = ([group.options() for group in part] for part in (first, others))
    momentum = params.momentum
    fused = in_one_kernel([value for parameters in blocks for value in parameters.values()], params)
    optimizer: Optimizer
    if params.optimizer == "muon":
        if not matrices:
            raise RequestError(
                "train.optimizer: muon trains the filters and dense layers between first block and head, of which this network has "
                "none. Set train.optimizer: sgd or adamw, or choose a deeper network"
            )
        optimizer = Muon(matrices, groups, momentum, muon)
    elif params.optimizer == "sgd":
        optimizer = SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=fused)
    else:
        optimizer = AdamW(groups, betas=(momentum, 0.999), fused=fused)
    return optimizer, LambdaLR(optimizer, [group.scaled(schedule) for group in (*first, *others)])


def in_one_kernel(values: Sequence[Tensor], params: TrainParams) -> bool | None:
    """Whether torch should step all parameters in one kernel; None leaves the choice to torch.

    On 2 cores the loop over parameters takes 20 ms for ResNet-18 with SGD, the kernel 11 (AdamW: 32 and 15). Lightning refuses
    to clip beside it.
    """
    known = all(value.device.type in ("cpu", "cuda") for value in values)
    return True if known and not params.clip_norm else None


class _Group(NamedTuple):
    """Hold parameters that learn alike."""

    factor: float  # learning rate of the block as a share of the head's
    params: list[nn.Parameter]
    lr: float
    weight_decay: float

    def options(self) -> dict[str, Any]:
        """Write it as torch's optimizers take it."""
        return {"params": self.params, "lr": self.lr, "weight_decay": self.weight_decay}

    def scaled(self, schedule: Callable[[int], float]) -> Callable[[int], float]:
        """Make the function from step to the factor on the group's learning rate."""
        return lambda step: self.factor * schedule(step)
