"""The `train` section of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from convoy.params import Section

Augmentation = Literal["crop", "flip"]
Precision = Literal["auto", 32, "bf16"]


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
    precision: Precision
