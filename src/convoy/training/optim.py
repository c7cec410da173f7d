"""Learning-rate schedule, optimizer and number format of a training."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from convoy.training.settings import Precision, Schedule, TrainParams

WARMUP_START = 0.1  # share of the highest learning rate that a warm-up starts from


def lr_schedule(schedule: Schedule, warmup: float, steps: int) -> Callable[[int], float]:
    """Make the function from step (0 for the first) to the factor on the highest learning rate, 0 to 1.

    A pure function of the step, so that a resumed run continues the curve. It rises linearly over the
    share `warmup` of all steps; then `one_cycle` falls linearly and `cosine` along half a wave, both to
    zero after the last step.
    """
    rising = warmup * steps

    def factor(step: int) -> float:
        if step < rising:
            return WARMUP_START + (1 - WARMUP_START) * step / rising
        left = max(0.0, (steps - step) / (steps - rising))
        return left if schedule == "one_cycle" else (1 - math.cos(math.pi * left)) / 2

    return factor


def make_optimizer(
    blocks: Iterable[Mapping[str, nn.Parameter]],
    block_factors: Sequence[float],
    params: TrainParams,
    schedule: Callable[[int], float],
) -> tuple[Optimizer, LambdaLR]:
    """Make the optimizer and its schedule, with up to two groups per block: with and without weight decay.

    The weights of convolutions and dense layers decay; scales of norms and biases do not. `blocks` are parameters
    by name, frozen ones too, so that a checkpoint fits in every phase; `block_factors` their learning rates as
    shares of the head's.
    """
    groups: list[dict[str, Any]] = []
    schedules: list[Callable[[int], float]] = []
    for parameters, block_factor in zip(blocks, block_factors, strict=True):

        def scaled(step: int, factor: float = block_factor) -> float:
            return factor * schedule(step)

        decaying = [value for value in parameters.values() if value.ndim > 1]
        others = [value for value in parameters.values() if value.ndim <= 1]
        for values, decay in ((decaying, params.weight_decay), (others, 0.0)):
            if values:
                groups.append({"params": values, "weight_decay": decay})
                schedules.append(scaled)
    optimizer: Optimizer
    if params.optimizer == "sgd":
        optimizer = SGD(groups, lr=params.lr, momentum=0.9, nesterov=True)
    else:
        optimizer = AdamW(groups, lr=params.lr)
    return optimizer, LambdaLR(optimizer, schedules)


def choose_precision(setting: Precision) -> tuple[Literal["32-true", "bf16-mixed"], str]:
    """Return Lightning's name of the number format for `train.precision`, and the reason for it.

    `auto` is bf16 on devices that compute in it, where it halves the time. With bf16, convolutions and dense
    layers compute in it, while weights, normalisation and loss stay in float32.
    """
    if setting == 32:
        return "32-true", "float32, as train.precision is set"
    native, device = _native_bf16()
    if setting == "bf16":
        slow = "" if native else f"; {device}, so this is slow"
        return "bf16-mixed", f"bf16, as train.precision is set{slow}"
    return ("bf16-mixed", f"bf16: {device}") if native else ("32-true", f"float32: {device}")


def _native_bf16() -> tuple[bool, str]:
    """Detect whether the device that Lightning will use computes in bf16, and describe it."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"{torch.cuda.get_device_name()} {'has' if native else 'does not have'} it"
    if torch.backends.mps.is_available():
        return False, "bf16 is no faster on Apple's GPU"
    # Every processor with AMX tiles has AVX-512 BF16 too. Without it oneDNN widens each operand to float32.
    native = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 (the only form that torch 2.11 has)
    return native, f"this processor {'has' if native else 'does not have'} AVX-512 BF16"
