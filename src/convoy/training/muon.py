"""Muon for the matrices of a network, and SGD or AdamW for the rest, as a single optimizer.

Jordan, Muon: An optimizer for hidden layers in neural networks, 2024. It replaces the momentum of a matrix by the nearest
orthogonal one, so that every direction of the layer learns alike. The filters of a convolution are a matrix
with a row for each filter.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from convoy.training.settings import MuonParams

LEAST_SIDE = 4
"""Rows or columns below which a matrix is left to the other optimizer: orthogonal directions are too few (as timm)."""


def is_matrix(value: nn.Parameter) -> bool:
    """Whether Muon can train a parameter: filters or a dense layer, not the filters of single channels (depthwise)."""
    if value.ndim not in (2, 4) or (value.ndim == 4 and value.shape[1] == 1):
        return False
    return min(len(value), value[0].numel()) >= LEAST_SIDE


def as_matrix(value: Tensor) -> Tensor:
    """View filters (O, I, H, W) as (O, H·W·I) or (O, I·H·W), whichever their memory allows without a copy."""
    if value.ndim == 2:
        return value
    channels_last = value.is_contiguous(memory_format=torch.channels_last)
    return (value.permute(0, 2, 3, 1) if channels_last else value).flatten(1)


class Muon(Optimizer):
    """Step `torch.optim.Muon` on matrices and another optimizer on the rest, with one list of groups.

    Its groups hold the network's own parameters, and their learning rates count; so schedules, clipping and
    checkpoints treat it as any optimizer. A parameter without a gradient stays as it is.
    """

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        rest: Sequence[dict[str, Any]],
        momentum: float,
        params: MuonParams,
    ) -> None:
        """Take groups with `params`, `lr` and `weight_decay`: of parameters that are matrices, and of all others."""
        super().__init__([{**group} for group in (*matrices, *rest)], {})
        self.normalize = params.normalize
        views = [
            {**group, "params": [as_matrix(value.detach()) for value in group["params"]]}
            for group in matrices
        ]
        self.muon = torch.optim.Muon(views, momentum=momentum, nesterov=momentum > 0, ns_steps=params.steps)
        self.rest: Optimizer
        if params.rest == "sgd":
            self.rest = SGD(rest, momentum=params.rest_momentum, nesterov=params.rest_momentum > 0)
        else:
            self.rest = AdamW(rest, betas=(params.rest_momentum, 0.999))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's has no types
        """Compute the gradients, if a closure does, and step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        inner = [*self.muon.param_groups, *self.rest.param_groups]
        for group, own in zip(self.param_groups, inner, strict=True):
            own["lr"] = group["lr"]
        pairs = [
            pair
            for group, own in zip(
                self.param_groups, self.muon.param_groups, strict=False
            )  # Muon's come first
            for pair in zip(group["params"], own["params"], strict=True)
        ]
        for value, matrix in pairs:
            matrix.data = as_matrix(value.detach())  # again: `Module.to` may have moved the parameter
            if value.grad is not None:
                if self.normalize:
                    value.mul_(math.sqrt(len(value)) / value.norm())
                matrix.grad = as_matrix(value.grad)
        self.muon.step()  # type: ignore[no-untyped-call] # torch has no types here
        self.rest.step()
        for _, matrix in pairs:
            matrix.grad = None  # a view: it would keep the memory of the gradient
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers, and the groups."""
        return {**super().state_dict(), "muon": self.muon.state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.muon.load_state_dict(state_dict["muon"])
        self.rest.load_state_dict(state_dict["rest"])
