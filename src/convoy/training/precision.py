"""Number format of a training: float32, or bf16 for convolutions and dense layers where the device computes in it."""

from typing import Literal

import torch
from torch import Tensor, nn

from convoy.training.settings import Precision

FAST_KERNEL = 3  # side of the largest filter whose depthwise gradient oneDNN computes fast in bf16


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
        return False, "Apple's GPUs are no faster in bf16"
    # Every processor with AMX tiles has AVX-512 BF16 too. Without it oneDNN widens each operand to float32.
    native = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 (the only form that torch 2.11 has)
    return native, f"this processor {'has' if native else 'does not have'} AVX-512 BF16"


def keep_slow_in_float32(network: nn.Module) -> list[str]:
    """Let depthwise convolutions whose gradients are slow in bf16 on a CPU compute in float32 under autocast.

    With torch 2.14 on a processor with AVX-512 BF16, the gradient of the input of a depthwise convolution with a
    stride takes about 20 times as long in bf16 as in float32, and that of the filters of 5 x 5 and 7 x 7 three times as
    long; without a stride and with 3 x 3 filters bf16 is faster. benchmarks/TRAIN.md shows the effect on MobileNetV3.

    Returns:
        The names of these layers.
    """
    slow = []
    for name, layer in network.named_modules():
        depthwise = type(layer) is nn.Conv2d and 1 < layer.in_channels == layer.groups
        if depthwise and (max(layer.stride) > 1 or max(layer.kernel_size) > FAST_KERNEL):
            layer.__class__ = Float32Conv2d  # parameters, hooks and names in checkpoints stay
            slow.append(name)
    return slow


class Float32Conv2d(nn.Conv2d):
    """Convolve in float32, whatever autocast is set to."""

    def forward(self, values: Tensor) -> Tensor:
        """Convolve (N, C, H, W) values; the result has their type."""
        with torch.autocast(values.device.type, enabled=False):
            return super().forward(values.float()).to(values.dtype)
