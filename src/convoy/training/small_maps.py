"""Convolutions on small feature maps by matrix products, on processors with AMX: ResNet-18 trains 2.1 times as fast on 32 px.

oneDNN's gradient of the filters in bf16 takes a time there that hardly falls with the size of the map (torch 2.14, 2 cores, 500 images,
256 filters of 3 x 3 on as many channels): 39 ms at 7 x 7, 29 at 5 x 5, 19 at 2 x 2. The product of the patches and the gradient
takes 38, 17 and 3 ms.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.grad import conv2d_input

Pair = tuple[int, int]
"""Rows and columns."""

SMALL, TINY = 25, 4
"""Largest maps, in positions of the output: where the gradient of the filters is a product, and where the convolution and the gradient of
its input are, too. With 512 filters on 1 x 1, 128 images, oneDNN takes 6, 9 and 6 ms, products 1 each; at 7 x 7 both take the same time."""


def use_products(network: nn.Module) -> list[str]:
    """On a processor with AMX, let plain convolutions compute by matrix products where maps are small.

    Only training under autocast on the CPU differs, by rounding.

    Returns:
        The names of these layers.
    """
    changed: list[str] = []
    if not torch.cpu._is_amx_tile_supported():  # noqa: SLF001 (the only form that torch 2.11 has)
        return changed
    for name, layer in network.named_modules():
        plain = type(layer) is nn.Conv2d and layer.groups == 1 and max(layer.dilation) == 1
        if plain and layer.padding_mode == "zeros" and _padding(layer) is not None:
            layer.__class__ = SmallMapConv2d  # parameters, hooks and names in checkpoints stay
            changed.append(name)
    return changed


class SmallMapConv2d(nn.Conv2d):
    """Convolve; on small maps the gradient of the filters is a matrix product, on the smallest all of it."""

    def forward(self, values: Tensor) -> Tensor:
        """Convolve (N, C, H, W) values."""
        padding = _padding(self)
        if (
            padding is None
            or not (torch.is_grad_enabled() and self.weight.requires_grad)
            or not (values.device.type == "cpu" and torch.is_autocast_enabled("cpu"))
            or math.prod(_positions(values, self.kernel_size, self.stride, padding)) > SMALL
        ):
            return super().forward(values)
        number_format = torch.get_autocast_dtype("cpu")
        convolved: Tensor = Convolution.apply(
            values.to(number_format), self.weight.to(number_format), self.stride, padding
        )
        return convolved if self.bias is None else convolved + self.bias.to(number_format).view(1, -1, 1, 1)


class Convolution(torch.autograd.Function):
    """Convolve (N, C, H, W) values with (O, C, h, w) filters."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:  # noqa: ANN401 (torch's)
        """Return (N, O, H', W')."""
        ctx.save_for_backward(values, weight)
        positions = _positions(values, (weight.shape[2], weight.shape[3]), stride, padding)
        ctx.stride, ctx.padding, ctx.tiny = stride, padding, math.prod(positions) <= TINY
        if not ctx.tiny:
            return torch.conv2d(values, weight, None, stride, padding)
        filters = weight.permute(0, 2, 3, 1).flatten(1)
        product = patches(values, (weight.shape[2], weight.shape[3]), stride, padding) @ filters.T
        return product.view(len(values), *positions, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401 (torch's)
        """Return the gradients of values and filters."""
        values, weight = ctx.saved_tensors
        filters, channels, rows, columns = weight.shape
        of_values: Tensor | None = None
        of_weight: Tensor | None = None
        if ctx.needs_input_grad[0]:
            around = rows - 1 - ctx.padding[0], columns - 1 - ctx.padding[1]
            if ctx.tiny and ctx.stride == (1, 1) and min(around) >= 0:
                turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, channels)
                product = patches(gradient, (rows, columns), (1, 1), around) @ turned
                of_values = product.view(len(values), *values.shape[2:], channels).permute(0, 3, 1, 2)
            else:
                of_values = conv2d_input(values.shape, weight, gradient, ctx.stride, ctx.padding)  # type: ignore[no-untyped-call] # torch has no types here
        if ctx.needs_input_grad[1]:
            by_position = gradient.permute(0, 2, 3, 1).reshape(-1, filters)
            product = by_position.T @ patches(values, (rows, columns), ctx.stride, ctx.padding)
            of_weight = product.view(filters, rows, columns, channels).permute(0, 3, 1, 2)
        return of_values, of_weight, None, None


def patches(values: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Collect what each filter sees: (N, C, H, W) to (N · positions, h · w · C)."""
    rows, columns = padding
    padded = pad(values.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
    windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel[0] * kernel[1] * values.shape[1])


def _padding(layer: nn.Conv2d) -> Pair | None:
    """Return the rows and columns of zeros on each side; None where the sides differ."""
    if not isinstance(layer.padding, str):
        return layer.padding[0], layer.padding[1]
    if layer.padding == "valid":
        return 0, 0
    rows, columns = layer.kernel_size[0], layer.kernel_size[1]
    return (rows // 2, columns // 2) if rows % 2 and columns % 2 else None


def _positions(values: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Pair) -> Pair:
    """Return height and width of the output."""
    height, width = ((values.shape[2 + n] + 2 * padding[n] - kernel[n]) // stride[n] + 1 for n in (0, 1))
    return height, width
