"""When each block of a network trains, and how fast: a pure function of the epoch.

Epochs count from 0 here, as the trainer counts them, and from 1 in what people read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean
from convoy.training.settings import TrainParams, TransferParams

COLUMNS = 10
"""Most epochs that a table shows: with the names of blocks they fit a line of a log."""


@dataclass(frozen=True)
class Plan:
    """Hold what happens to each block, from image to head; what belongs to no block always trains."""

    blocks: tuple[str, ...]
    frozen_for: tuple[int | None, ...]  # epochs at the start in which the block is frozen; None: every epoch
    factors: tuple[float, ...]  # learning rate as a share of the head's
    norms_frozen: bool

    @classmethod
    def of(cls, blocks: Sequence[str], params: TrainParams, network: str) -> "Plan":
        """Read the plan that `train.transfer` states.

        Args:
            blocks: names, the head last. Where they have dots, what stands before one names
                several blocks at once: `layer4` is `layer4.0` and `layer4.1`.
            params: `transfer`, and `epochs`, within which releases must fall.
            network: its name, for messages.

        Raises:
            RequestError: a block that the network does not have; a head that would be frozen; the
                release of a block that is not frozen, or later than the last epoch.
        """
        transfer = params.transfer
        held = _held(blocks, transfer.freeze, network)
        frozen_for: list[int | None] = [None] * held + [0] * (len(blocks) - held)
        for index, epochs in _releases(blocks[:held], blocks, params, network).items():
            frozen_for[index] = epochs
        deepest_first = [transfer.lr_factor**depth for depth in range(len(blocks))]
        return cls(
            tuple(blocks), tuple(frozen_for), tuple(reversed(deepest_first)), transfer.batch_norm == "frozen"
        )

    def frozen(self, epoch: int) -> tuple[bool, ...]:
        """Say of each block whether it is frozen in an epoch, 0 for the first."""
        return tuple(epochs is None or epoch < epochs for epochs in self.frozen_for)

    def table(self, rates: Sequence[float]) -> str:
        """Lay the plan out as text, a row per block and a column per epoch, or in one line if it changes nothing.

        Args:
            rates: the head's learning rate at the first step of each epoch.
        """
        if not (any(self.frozen(0)) or self.norms_frozen or min(self.factors) < 1):
            ends = f"{self.blocks[0]} to {self.blocks[-1]}"
            return f"plan: nothing is frozen, all {len(self.blocks)} blocks ({ends}) train at the same learning rate"
        columns = _columns(len(rates), [epochs for epochs in self.frozen_for if epochs])
        rows = [["block", "trains from", *(str(epoch + 1) for epoch in columns)]]
        for block, (name, epochs) in enumerate(zip(self.blocks, self.frozen_for, strict=True)):
            role = " (head)" if block == len(self.blocks) - 1 else ""
            start = "never" if epochs is None or epochs >= len(rates) else f"epoch {epochs + 1}"
            cells = [
                "frozen" if self.frozen(epoch)[block] else f"{rates[epoch] * self.factors[block]:.3g}"
                for epoch in columns
            ]
            rows.append([f"{name}{role}", start, *cells])
        lines = ["plan: learning rate of each block at the first step of an epoch", *_aligned(rows)]
        if self.norms_frozen:
            lines.append("batch norms: frozen except in the head, statistics, scale and shift")
        return "\n".join(lines)


def refuse_to_freeze(transfer: TransferParams) -> None:
    """Refuse to hold random weights, or statistics of no image, where there are no weights to start from.

    Raises:
        RequestError: `freeze` or `batch_norm` would hold something.
    """
    for key, value, harmless in (
        ("freeze", transfer.freeze, "0"),
        ("batch_norm", transfer.batch_norm, "adapt"),
    ):
        if str(value) != harmless:
            raise RequestError(
                f"train.transfer.{key} is {value}, but network.weights is none: what it freezes would stay as random "
                f"as it starts. Set network.weights (such as imagenet), or train.transfer.{key} to {harmless}."
            )


def _held(blocks: Sequence[str], freeze: int | str, network: str) -> int:
    """Count the blocks that are frozen at the start."""
    count = freeze if isinstance(freeze, int) else _named(freeze, blocks, "freeze", network)[-1] + 1
    if count >= len(blocks):
        most = len(blocks) - 1
        raise RequestError(
            f"train.transfer.freeze: {freeze} holds all {len(blocks)} blocks of {network}, its head `{blocks[-1]}` "
            f"included, which must learn. At most {most}{f', or `{blocks[-2]}`' if most else ''}."
        )
    return count


def _releases(
    held: Sequence[str], blocks: Sequence[str], params: TrainParams, network: str
) -> dict[int, int]:
    """Map the index of each block that is released to the epochs before that."""
    release = params.transfer.release
    if isinstance(release, Mapping):
        return _stated_releases(release, held, blocks, params, network)
    if held and release >= params.epochs:
        raise RequestError(
            f"train.transfer.release is {release}, but train.epochs is {params.epochs}: no block would ever be "
            f"released. At most {params.epochs - 1}; 0: never."
        )
    deepest_first = reversed(range(len(held)))
    return {index: release * turn for turn, index in enumerate(deepest_first, start=1)} if release else {}


def _stated_releases(
    release: Mapping[str, int], held: Sequence[str], blocks: Sequence[str], params: TrainParams, network: str
) -> dict[int, int]:
    """Read `block: epochs` pairs."""
    released: dict[int, int] = {}
    for name, epochs in release.items():
        for index in _named(name, blocks, "release", network):
            if index >= len(held):
                raise RequestError(
                    f"train.transfer.release: `{blocks[index]}` is not frozen, so it cannot be released. "
                    f"train.transfer.freeze: {params.transfer.freeze} freezes {', '.join(held) or 'nothing'}."
                )
            if index in released:
                raise RequestError(f"train.transfer.release names `{blocks[index]}` twice. Name it once.")
            released[index] = epochs
        if epochs >= params.epochs:
            raise RequestError(
                f"train.transfer.release: `{name}` after {epochs} epochs, but train.epochs is {params.epochs}: it "
                f"would never train. At most {params.epochs - 1}, or leave it out."
            )
    return released


def _named(name: str, blocks: Sequence[str], key: str, network: str) -> list[int]:
    """Find the blocks that a name stands for."""
    found = [index for index, block in enumerate(blocks) if f"{block}.".startswith(f"{name}.")]
    if not found:
        raise RequestError(
            f"train.transfer.{key}: {network} has no block `{name}`{did_you_mean(name, blocks)}\n"
            f"Its blocks, from image to head: {', '.join(blocks)}"
        )
    return found


def _columns(epochs: int, changes: Sequence[int]) -> list[int]:
    """Choose the epochs that a table shows: all, or the ends, the changes, and some between."""
    ends = {0, epochs - 1}
    wanted = ends | {epoch for epoch in changes if epoch < epochs}
    if len(wanted) > COLUMNS:
        return _spread(sorted(wanted), COLUMNS)
    between = [epoch for epoch in range(epochs) if epoch not in wanted]
    return sorted(wanted | set(_spread(between, COLUMNS - len(wanted))))


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Take at most `count` items, evenly, the ends among them where there are two or more."""
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / max(count - 1, 1)
    return [items[round(place * step)] for place in range(count)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad cells into columns, words to the left and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
