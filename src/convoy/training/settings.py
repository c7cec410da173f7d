"""The `train` section of params.yaml."""

from typing import Annotated, Any, Literal, LiteralString

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from convoy.core.params import Section

Augmentation = Literal["crop", "flip"]
Precision = Literal["auto", 32, "bf16"]


def _said(allowed: LiteralString) -> WrapValidator:
    """Say once what a union allows; pydantic would report every alternative, each under a name of its own."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 (as pydantic declares it)
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("alternatives", allowed) from error

    return WrapValidator(validate)


Freeze = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)],
    _said("Input should be a number of blocks from 0, or the name of a block"),
]
Release = Annotated[
    Annotated[int, Field(ge=0, le=10_000)]
    | Annotated[dict[str, Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1)],
    _said(
        "Input should be a number of epochs from 0 to 10000, or `block: epochs` pairs, epochs from 1 to 10000"
    ),
]


class TransferParams(Section):
    """Choose how starting weights are adapted."""

    freeze: Freeze
    release: Release
    lr_factor: Annotated[float, Field(gt=0, le=1)]
    batch_norm: Literal["adapt", "frozen"]


class TrainParams(Section):
    """Choose how a network learns."""

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    optimizer: Literal["sgd", "adamw"]
    lr: Annotated[float, Field(gt=0, le=100)]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    schedule: Literal["one_cycle", "cosine"]
    warmup: Annotated[float, Field(ge=0, le=0.9)]
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)]
    augment: list[Augmentation]
    crop_padding: Annotated[int, Field(ge=0, le=64)]
    early_stop: Annotated[int, Field(ge=0, le=10_000)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    precision: Precision
    transfer: TransferParams


class CheckpointParams(Section):
    """Choose how often a training is saved, and what is kept of others. Changes no result."""

    every_s: Annotated[float, Field(ge=0, le=86_400)]
    keep: Annotated[int, Field(ge=1, le=1000)]
    keep_days: Annotated[float, Field(gt=0, le=3650)]
    time_budget_min: Annotated[float, Field(ge=0, le=100_000)]
