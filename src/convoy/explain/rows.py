"""What a network's table holds: a row per layer, and sums.

tests/networks/table/test_tabulate.py compares both sources of rows, formulas and a run, with torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Sides = tuple[int, int]
Margins = tuple[Sides, Sides]
Summed = Literal["parameters", "macs", "activation_bytes"]

BYTES_PER_PARAMETER = 12
"""Of training with SGD: the weight, its gradient, its momentum."""


@dataclass(frozen=True)
class Row:
    """Hold one layer, or a unit with the layers inside it.

    Attributes:
        name: as torch names the module, such as residual1.body.conv1.
        operation: the spec's word; `add` and `concat` for what residuals and branches do at their end.
        output: height, width and channels; a flat row of C numbers is (1, 1, C).
        parameters: its own; those of `parts` not included, and so for `macs` and `activation_bytes`.
        macs: multiplications with addition per image, of convolutions and dense layers alone.
        activation_bytes: its output, per image in float32; 0 where it hands on what it was given.
        receptive_field: height and width in pixels; None for the whole image, or where it is not known.
        padding: pixels (above, below), (left, right).
        auxiliary: whether it belongs to a head that only training has.
        computes: whether it does something itself; a group only holds others.
        parts: the layers inside it, in order.
    """

    name: str
    operation: str
    output: tuple[int, int, int]
    parameters: int = 0
    macs: int = 0
    activation_bytes: int = 0
    kernel: Sides | None = None
    stride: Sides | None = None
    padding: Margins | None = None
    dilation: Sides | None = None
    groups: int | None = None
    receptive_field: Sides | None = None
    auxiliary: bool = False
    computes: bool = True
    parts: tuple["Row", ...] = ()

    def walk(self) -> Iterator["Row"]:
        """Go through what computes, in the order of the computation."""
        for part in self.parts:
            yield from part.walk()
        if self.computes:
            yield self

    def total(self, what: Summed) -> int:
        """Sum its own and those of the layers inside it."""
        return sum(getattr(row, what) for row in self.walk())


@dataclass(frozen=True)
class Table:
    """Hold a network's rows and sums.

    Attributes:
        kept_bytes: what a training step keeps per image for backward, in float32.
    """

    name: str
    image_px: int
    classes: int
    rows: tuple[Row, ...]
    kept_bytes: int

    @cached_property
    def layers(self) -> tuple[Row, ...]:
        """List what computes, in the order of the computation."""
        return tuple(layer for row in self.rows for layer in row.walk())

    @property
    def parameters(self) -> int:
        """Count those of the network that is served."""
        return self._sum("parameters", auxiliary=False)

    @property
    def auxiliary_parameters(self) -> int:
        """Count those of the heads that only training has."""
        return self._sum("parameters", auxiliary=True)

    @property
    def macs(self) -> int:
        """Count those of the network that is served, per image."""
        return self._sum("macs", auxiliary=False)

    @property
    def auxiliary_macs(self) -> int:
        """Count those of the heads that only training has, per image."""
        return self._sum("macs", auxiliary=True)

    @property
    def activation_bytes(self) -> int:
        """Sum the outputs of the network that is served, per image."""
        return self._sum("activation_bytes", auxiliary=False)

    def _sum(self, what: Summed, *, auxiliary: bool) -> int:
        return sum(getattr(row, what) for row in self.layers if row.auxiliary == auxiliary)

    def training_memory_bytes(self, batch_size: int) -> int:
        """Estimate what a step of SGD with momentum holds in float32: weights thrice, and what backward needs."""
        weights = BYTES_PER_PARAMETER * (self.parameters + self.auxiliary_parameters)
        return weights + batch_size * self.kept_bytes
