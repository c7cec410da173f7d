"""Operations on the pixels of a batch, each image in its own way, in few torch calls on the batch's device.

All take and give (N, 3, H, W) uint8, in channels-last memory, and change nothing in place. N images, H height, W width, P side of
the output.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate
from torchvision.transforms.v2.functional import autocontrast, equalize  # type: ignore[import-untyped] # torchvision has no types

from convoy.training.augment import auto
from convoy.training.augment.draws import Draw, Fill, Floats, Frame, Ints, Operations
from convoy.training.augment.geometry import Shift, reflect

PADDING = {"reflect": "reflection", "edge": "border", "black": "zeros"}  # as `grid_sample` calls them
GROUP = 4  # pixels per product of colours: a matrix of 12 columns is twice as fast as one of 3


def framed(pixels_u8: Tensor, frame: Frame, image_px: int) -> Tensor:
    """Show the frame of each image: a gather of pixels if no window is resized, else antialiased interpolation.

    Returns:
        (N, 3, P, P) with P = `image_px`.
    """
    if (frame.side == image_px).all() and (frame.corner == 0).all() and pixels_u8.shape[-1] == image_px:
        return gathered(pixels_u8, frame)
    pixels_u8 = resized(pixels_u8, frame.corner, frame.side, image_px)
    return gathered(pixels_u8, frame)


def gathered(pixels_u8: Tensor, frame: Frame) -> Tensor:
    """Shift and mirror each image, exactly, as one gather."""
    if not frame.shift.any() and not frame.mirrored.any():
        return pixels_u8
    count, _, height, width = pixels_u8.shape
    inside, lines = [], []
    for side, shift, mirrored in zip((height, width), frame.shift, frame.mirrored, strict=True):
        positions = np.arange(side)[None, :] + shift[:, None]
        inside.append((positions >= 0) & (positions < side))
        folded = reflect(positions, side) if frame.fill == "reflect" else np.clip(positions, 0, side - 1)
        for values in (inside[-1], folded):
            values[mirrored] = values[mirrored][:, ::-1]
        lines.append(folded)
    device = pixels_u8.device
    rows, columns = (torch.from_numpy(line).to(device) for line in lines)
    first = torch.arange(count, device=device)[:, None] * height
    # One index per pixel of the flattened batch: a gather along one axis is several times as fast as three.
    index = ((first + rows)[:, :, None] * width + columns[:, None, :]).flatten()
    taken = pixels_u8.permute(0, 2, 3, 1).reshape(-1, 3).index_select(0, index)
    shown = taken.view(count, height, width, 3).permute(0, 3, 1, 2)
    if frame.fill == "black":
        above, across = (torch.from_numpy(line).to(device) for line in inside)
        shown = shown * (above[:, None, :, None] & across[:, None, None, :])
    return shown


def shifted(pixels_u8: Tensor, most: int, random: np.random.Generator) -> Tensor:
    """Shift each image by up to `most` pixels in both directions; its reflection enters from beyond the edge."""
    count, _, side, _ = pixels_u8.shape
    frame = Frame.centered(count, side, side)
    Shift(pixels=most).place(frame, Draw(random, np.arange(count)), side)
    return gathered(pixels_u8, frame)


def resized(pixels_u8: Tensor, corner: Ints, side: Ints, image_px: int) -> Tensor:
    """Resize a window of each image to (N, 3, P, P), bilinear and antialiased, as serving resizes.

    On a CPU by torch's uint8 kernel per image, which is 20 times as fast as products of matrices at 224 px; elsewhere by those, since a
    loop over images would start thousands of kernels. The two differ by rounding.
    """
    if pixels_u8.device.type != "cpu":
        return resampled(pixels_u8, corner, side, image_px)
    shown = torch.empty((len(pixels_u8), image_px, image_px, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for image, (top, left, height, width) in enumerate(np.concatenate([corner, side]).T.tolist()):
        window = pixels_u8[image : image + 1, :, top : top + height, left : left + width]
        shown[image] = interpolate(window, size=(image_px, image_px), mode="bilinear", antialias=True)[0]
    return shown


def resampled(pixels_u8: Tensor, corner: Ints, side: Ints, image_px: int) -> Tensor:
    """Do what `resized` does as products with a matrix for the rows and another for the columns of each image."""
    count, _, height, width = pixels_u8.shape
    rows, columns = (
        _triangles(corner[axis], side[axis], image_px, stored).to(pixels_u8.device)
        for axis, stored in enumerate((height, width))
    )
    lines = torch.bmm(rows, pixels_u8.permute(0, 2, 3, 1).reshape(count, height, -1).float())
    across = lines.view(count, image_px, width, 3).transpose(1, 2).reshape(count, width, -1)
    shown = torch.bmm(columns, across).view(count, image_px, image_px, 3)
    return _to_u8(shown.transpose(1, 2).permute(0, 3, 1, 2))


def warped(pixels_u8: Tensor, matrices: Floats, fill: Fill) -> Tensor:
    """Move the content of each image by a (N, 3, 3) matrix from old to new positions, -1 to 1, bilinear."""
    count, _, height, width = pixels_u8.shape
    device = pixels_u8.device
    back = torch.from_numpy(np.linalg.inv(matrices)[:, :2].astype(np.float32)).to(device)
    x, y = ((2 * torch.arange(side, device=device) + 1) / side - 1 for side in (width, height))
    grid = torch.empty((count, height, width, 2), device=device)
    for axis in (0, 1):
        from_x, from_y, offset = (back[:, axis, column, None, None] for column in range(3))
        grid[..., axis] = from_x * x[None, None, :] + (from_y * y[None, :, None] + offset)
    return _to_u8(grid_sample(pixels_u8.float(), grid, padding_mode=PADDING[fill], align_corners=False))


def recolored(pixels_u8: Tensor, matrices: Floats, of_mean: Floats) -> Tensor:
    """Set each colour to matrix @ colour + vector · mean colour of the image; (N, 3, 3) and (N, 3), see `color_matrices`."""
    count, _, height, width = pixels_u8.shape
    group = GROUP if height * width % GROUP == 0 else 1
    blocks = np.einsum("ab,nji->naibj", np.eye(group), matrices).reshape(count, 3 * group, 3 * group)
    device = pixels_u8.device
    pixels = pixels_u8.permute(0, 2, 3, 1).float()
    gray = (pixels.mean((1, 2)) * torch.from_numpy(of_mean.astype(np.float32)).to(device)).sum(1)
    products = torch.baddbmm(
        gray[:, None, None],
        pixels.reshape(count, -1, 3 * group),
        torch.from_numpy(blocks.astype(np.float32)).to(device),
    )
    return _to_u8(products.view(count, height, width, 3).permute(0, 3, 1, 2))


def operated(pixels_u8: Tensor, operations: Operations) -> Tensor:
    """Apply an operation of `trivial_augment` or `rand_augment` to each image, all images of a kind at once."""
    images, matrices = auto.moved(operations)
    changed = _changed(pixels_u8, images, lambda few: warped(few, matrices, "reflect"))
    images, colors = auto.recolored(operations)
    changed = _changed(changed, images, lambda few: recolored(few, *colors))
    images, tables = auto.toned(operations)
    changed = _changed(changed, images, lambda few: toned(few, tables))
    images, factors = auto.sharpened(operations)
    changed = _changed(changed, images, lambda few: sharpened(few, factors))
    changed = _changed(changed, auto.stretched(operations, "autocontrast"), autocontrast)
    return _changed(changed, auto.stretched(operations, "equalize"), equalize)


def toned(pixels_u8: Tensor, tables: npt.NDArray[np.uint8]) -> Tensor:
    """Look each value up in the (N, 256) table of its image."""
    table = torch.from_numpy(tables).to(pixels_u8.device).flatten()
    first = 256 * torch.arange(len(tables), device=pixels_u8.device)[:, None, None, None]
    return table[pixels_u8.permute(0, 2, 3, 1).long() + first].permute(0, 3, 1, 2)


def sharpened(pixels_u8: Tensor, factors: Floats) -> Tensor:
    """Move each image away from its blur, or towards it: factor 0 is the blur of PIL's SMOOTH, 1 the image; edges stay."""
    pixels = pixels_u8.float()
    kernel = torch.ones((3, 1, 3, 3), device=pixels.device)
    kernel[:, :, 1, 1] = 5
    if min(pixels.shape[2:]) < 3:
        return pixels_u8
    blurred = pixels.clone()
    blurred[:, :, 1:-1, 1:-1] = conv2d(pixels, kernel / 13, groups=3)
    factor = torch.from_numpy(factors.astype(np.float32)).to(pixels.device)[:, None, None, None]
    return _to_u8(torch.lerp(blurred, pixels, factor))


def covered(pixels_u8: Tensor, boxes: Ints, color: npt.NDArray[np.uint8]) -> Tensor:
    """Cover a (4, N) rectangle of each image with a (3,) colour."""
    paint = torch.from_numpy(color).to(pixels_u8.device)[None, :, None, None]
    return _like(torch.where(_within(pixels_u8, boxes), paint, pixels_u8))


def pasted(pixels_u8: Tensor, boxes: Ints, others: Tensor) -> Tensor:
    """Paste a (4, N) rectangle of the image at the same number in `others`."""
    return _like(torch.where(_within(pixels_u8, boxes), others, pixels_u8))


def averaged(pixels_u8: Tensor, own: Floats, others: Tensor) -> Tensor:
    """Average each image, by its (N,) own share, with that at the same number in `others`."""
    share = torch.from_numpy(own.astype(np.float32)).to(pixels_u8.device)[:, None, None, None]
    return _to_u8(torch.lerp(others.float(), pixels_u8.float(), share))


def _changed(pixels_u8: Tensor, images: Ints, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to the images of these numbers only."""
    if not len(images):
        return pixels_u8
    index = torch.from_numpy(images).to(pixels_u8.device)
    changed = pixels_u8.clone()
    changed[index] = change(pixels_u8[index])
    return changed


def _within(pixels_u8: Tensor, boxes: Ints) -> Tensor:
    """Mark the pixels inside (4, N) rectangles: (N, 1, H, W)."""
    device = pixels_u8.device
    top, bottom, left, right = torch.from_numpy(boxes).to(device)[:, :, None].unbind()
    rows, columns = (torch.arange(side, device=device)[None, :] for side in pixels_u8.shape[2:])
    above: Tensor = (rows >= top) & (rows < bottom)
    across: Tensor = (columns >= left) & (columns < right)
    return above[:, None, :, None] & across[:, None, None, :]


def _triangles(corner: Ints, side: Ints, image_px: int, stored: int) -> Tensor:
    """Weigh the stored positions of each output position, as torch's antialiased bilinear: (N, P, stored), rows of sum 1."""
    start, length = (torch.from_numpy(values).float()[:, None, None] for values in (corner, side))
    scale = length / image_px
    center = start + (torch.arange(image_px)[None, :, None] + 0.5) * scale
    position = torch.arange(stored)[None, None, :] + 0.5
    weights = (1 - (position - center).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((position > start) & (position < start + length))
    return weights / weights.sum(2, keepdim=True)


def _to_u8(pixels: Tensor) -> Tensor:
    """Round and clamp, in channels-last memory."""
    return _like((pixels + 0.5).clamp_(0, 255).to(torch.uint8))


def _like(pixels_u8: Tensor) -> Tensor:
    return pixels_u8.contiguous(memory_format=torch.channels_last)


def shrunk(pixels_u8: Tensor, side: int) -> Tensor:
    """Resize (N, 3, P, P) uint8 images to a smaller side, bilinear and antialiased; images of this side stay as they are."""
    if side == pixels_u8.shape[-1]:
        return pixels_u8
    # torch resizes uint8 on a CPU, five times as fast as floats, but not on a GPU
    given = pixels_u8.float() if pixels_u8.is_cuda else pixels_u8
    small = interpolate(given, size=(side, side), mode="bilinear", antialias=True)
    return _to_u8(small) if pixels_u8.is_cuda else small
