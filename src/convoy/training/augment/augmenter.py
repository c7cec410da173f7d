"""Augment the batches of a training on their device, as a function of seed, epoch and step."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import one_hot

from convoy.core.dataset import cropped_side
from convoy.training.augment import mix, pixels
from convoy.training.augment.color import ColorJitter
from convoy.training.augment.draws import Draw, Floats, Frame, Framing, Ints, Lottery, Transform, Warp
from convoy.training.augment.erase import Erase
from convoy.training.augment.geometry import identity
from convoy.training.augment.mix import Cutmix, Mixup
from convoy.training.augment.policy import in_order
from convoy.training.batch import Batch

AUGMENT = 1  # stream of random numbers; the order of images is drawn from 0


class Augmenter:
    """Apply transforms to batches, each image in its own way.

    All random numbers are drawn on the CPU, from a generator that follows from seed, epoch and the step of the batch, so a
    resumed training gets the same batches. Whatever their order in params.yaml, transforms are applied in the order of
    `policy.TRANSFORMS`: frames of images in one gather or resize, affine matrices in one interpolation, then colours, operations,
    erasing and mixing.
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        *,
        seed: int,
        image_px: int,
        classes: int,
        mean: Sequence[float],
        crop_share: float = 1.0,
    ) -> None:
        """Take a checked policy.

        Args:
            transforms: those of `train.augment`.
            seed: of params.yaml.
            image_px: side of the squares that `apply` returns.
            classes: number of classes, the width of mixed labels.
            mean: of the training images per channel, 0..1, the colour of erased rectangles.
            crop_share: centre share of a larger stored image that is shown where no `resized_crop` is listed, as serving shows it.
        """
        self.transforms = in_order(transforms)
        self.seed = seed
        self.image_px = image_px
        self.classes = classes
        self.color = np.rint(255 * np.asarray(mean)).astype(np.uint8)
        self.crop_share = crop_share

    def apply(self, batch: Batch, epoch: int, notes: list[list[str]] | None = None) -> Batch:
        """Augment a batch.

        Args:
            batch: N images of any side S from `image_px`, as (N, 3, S, S) uint8.
            epoch: from 0; the step is the batch's.
            notes: a list per image, to which what was applied is appended.

        Returns:
            A batch of (N, 3, P, P) images, P = `image_px`; with `targets` where a transform mixes labels. The label that counts
            most stays in `labels`.
        """
        random = np.random.default_rng([self.seed, epoch, batch.step, AUGMENT])
        draw = Draw(random, batch.rows, epoch, self.seed, notes)
        batch = batch._replace(pixels_u8=self._moved(batch.pixels_u8, draw))
        mixes: list[Mixup | Cutmix] = []
        for transform in self.transforms:
            match transform:
                case ColorJitter():
                    changed = pixels.recolored(batch.pixels_u8, *transform.matrices(draw))
                case Lottery():
                    changed = batch.pixels_u8
                    for operations in transform.rounds(draw, self.image_px):
                        changed = pixels.operated(changed, operations)
                case Erase():
                    changed = pixels.covered(
                        batch.pixels_u8, transform.boxes(draw, self.image_px), self.color
                    )
                case Mixup() | Cutmix():
                    mixes.append(transform)
                    continue
                case _:
                    continue
            batch = batch._replace(pixels_u8=changed)
        return self._mixed(batch, mixes, draw) if mixes else batch

    def _moved(self, pixels_u8: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Apply all transforms that move pixels: frames first, then the product of all matrices."""
        store_px = pixels_u8.shape[-1]
        share = self.crop_share if store_px != self.image_px else 1.0
        frame = Frame.centered(len(draw), store_px, cropped_side(store_px, share))
        for framing in (one for one in self.transforms if isinstance(one, Framing)):
            framing.place(frame, draw, store_px)
        pixels_u8 = pixels.framed(pixels_u8, frame, self.image_px)
        warps = [one for one in self.transforms if isinstance(one, Warp)]
        if not warps:
            return pixels_u8
        matrices = identity(len(draw))
        for warp in warps:
            matrices = warp.matrices(draw) @ matrices
        return pixels.warped(pixels_u8, matrices, warps[0].fill)

    def _mixed(self, batch: Batch, mixes: Sequence[Mixup | Cutmix], draw: Draw) -> Batch:
        """Mix each image at most once: `mixup` takes some at random, `cutmix` some of the others."""
        partner = mix.partners(draw)
        ticket = draw.uniform(0, 1)
        own: Floats = np.ones(len(draw))
        taken = 0.0
        pixels_u8 = batch.pixels_u8
        others = pixels_u8[torch.from_numpy(partner).to(pixels_u8.device)]
        for transform in mixes:
            chosen = (taken <= ticket) & (ticket < taken + transform.p)
            taken += transform.p
            share = mix.shares(draw, transform.alpha)
            if isinstance(transform, Cutmix):
                boxes, share = mix.boxes(draw, share, chosen, self.image_px)
                pixels_u8 = pixels.pasted(pixels_u8, boxes, others)
            share = np.where(chosen, share, 1)
            if isinstance(transform, Mixup):
                pixels_u8 = pixels.averaged(pixels_u8, share, others)
            own = own * share
            draw.note(share < 1, _noted(transform, share))
        return batch._replace(pixels_u8=pixels_u8, targets=self._targets(batch.labels, own, partner))

    def _targets(self, labels: torch.Tensor, own: Floats, partner: Ints) -> torch.Tensor:
        """Mix one-hot labels: (N, K) float32, rows of sum 1."""
        device = labels.device
        share = torch.from_numpy(own.astype(np.float32)).to(device)[:, None]
        sharp = one_hot(labels, self.classes).float()
        return torch.lerp(sharp[torch.from_numpy(partner).to(device)], sharp, share)


def _noted(transform: Mixup | Cutmix, share: Floats) -> Callable[[int], str]:
    return lambda image: f"{type(transform).__name__.lower()} {share[image]:.2f}"
