"""The sections `network`, `train` and `checkpoints` of params.yaml."""

from typing import Annotated, Any, Literal, LiteralString, Self

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from convoy.core.errors import RequestError
from convoy.core.params import Section
from convoy.training import weight_pins
from convoy.training.augment.policy import Augment, without_padding

Schedule = Literal["one_cycle", "cosine"]
Best = Literal["val/loss", "val/accuracy", "last"]
Precision = Literal["auto", 32, "bf16"]
ClassWeights = Literal["none", "balanced", "effective"]


def _known_source(source: str) -> str:
    """Refuse a misspelt source of weights when params.yaml is read."""
    try:
        weight_pins.kind(source)
    except RequestError as error:
        raise PydanticCustomError("weights", "{reason}", {"reason": str(error)}) from error
    return source


def _one_message(allowed: LiteralString) -> WrapValidator:
    """Report once what a union allows; pydantic would report every alternative under a name of its own."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 (as pydantic declares it)
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("alternatives", allowed) from error

    return WrapValidator(validate)


Freeze = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)],
    _one_message("Input should be a number of blocks from 0, or the name of a block"),
]
Release = Annotated[
    Annotated[int, Field(ge=0, le=10_000)]
    | Annotated[dict[str, Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1)],
    _one_message(
        "Input should be a number of epochs from 0 to 10000, or `block: epochs` pairs, epochs from 1 to 10000"
    ),
]


class NetworkParams(Section):
    """Choose the network and its starting weights."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        description="network to train: a file in networks/, without .yaml",
    )
    weights: Annotated[str, AfterValidator(_known_source)] = Field(
        description="weights that training starts from"
    )


class TransferParams(Section):
    """Choose how starting weights are adapted."""

    freeze: Freeze = Field(
        description="blocks frozen at the start, counted from the image, or the name of the last"
    )
    release: Release = Field(description="epochs between releases of frozen blocks, the deepest first")
    lr_factor: float = Field(
        gt=0,
        le=1,
        description="learning rate of a block as a share of the next deeper block's; the head learns at lr",
    )
    batch_norm: Literal["adapt", "frozen"] = Field(description="batch norms of all blocks but the head")


class MuonParams(Section):
    """Choose how `optimizer: muon` trains; without effect for others."""

    steps: int = Field(ge=1, le=20, description="Newton-Schulz steps that make an update orthogonal")
    normalize: bool = Field(
        description="norm of a layer's weights set to the root of its filters before each step"
    )
    rest: Literal["sgd", "adamw"] = Field(
        description="update rule of the first layer, the head, biases and norms"
    )
    rest_lr: float = Field(
        gt=0, le=100_000, description="highest learning rate of the rest, without the head's weights"
    )
    head_lr: float = Field(gt=0, le=100_000, description="highest learning rate of the head's weights")
    rest_momentum: float = Field(ge=0, lt=1, description="momentum of the rest")
    rest_decay: float = Field(
        ge=0, le=0.1, description="share by which a step at the highest learning rate shrinks the rest"
    )


class TrainParams(Section):
    """Choose how a network is trained."""

    epochs: int = Field(ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(ge=1, le=65_536, description="images per step")
    optimizer: Literal["sgd", "adamw", "muon"] = Field(description="update rule of the weights")
    momentum: float = Field(ge=0, lt=1, description="share of the last step's direction that a step keeps")
    muon: MuonParams = Field(description="what `optimizer: muon` adds")
    lr: float = Field(gt=0, le=100, description="highest learning rate")
    weight_decay: float = Field(ge=0, le=1, description="weight decay; not applied to norms and biases")
    schedule: Schedule = Field(description="learning-rate schedule after the warm-up")
    warmup: float = Field(
        ge=0, le=0.9, description="share of all steps in which the learning rate rises to lr"
    )
    label_smoothing: float = Field(
        ge=0,
        le=0.5,
        description="share of the target probability spread over all classes in the training loss",
    )
    class_weights: ClassWeights = Field(description="factor on the training loss of each class's images")
    sampler: Literal["shuffle", "balanced"] = Field(
        description="how often an epoch shows each training image"
    )
    augment: Augment = Field(description="random changes of training images")
    best: Best = Field(description="epoch whose weights become the model")
    early_stop: int = Field(
        ge=0, le=10_000, description="epochs that are not better by `best` before training stops"
    )
    ema: float = Field(
        ge=0,
        lt=1,
        description="decay of the exponential moving average of the weights, which is then validated and saved",
    )
    calibrate: bool = Field(description="temperature of the probabilities fitted to validation images")
    precision: Precision = Field(description="number format of convolutions and dense layers")
    transfer: TransferParams = Field(description="how starting weights (network.weights) are adapted")

    @model_validator(mode="before")
    @classmethod
    def _former_keys(cls, content: Any) -> Any:  # noqa: ANN401 (as pydantic declares it)
        if isinstance(content, dict) and "crop_padding" in content:
            line = without_padding(content.get("augment"), content["crop_padding"])
            raise ValueError(
                "crop_padding is now an argument in augment, where `crop` is called `shift`. Replace the lines `augment` and "
                f"`crop_padding` by this one, which does the same:\n    augment: {line}"
            )
        return content

    @model_validator(mode="after")
    def _balance_once(self) -> Self:
        if self.class_weights != "none" and self.sampler == "balanced":
            raise ValueError(
                f"class_weights: {self.class_weights} and sampler: balanced would correct the same imbalance twice. "
                "Set class_weights: none or sampler: shuffle"
            )
        return self

    @model_validator(mode="after")
    def _best_before_stop(self) -> Self:
        if self.early_stop and self.best == "last":
            raise ValueError(
                f"early_stop: {self.early_stop} ends a training after epochs that were worse, and best: last would keep the "
                "weights of the last of these. Set best: val/loss or val/accuracy, or early_stop: 0"
            )
        return self


class CheckpointParams(Section):
    """Choose when checkpoints are written and how long they are kept. Changes no result."""

    every_s: float = Field(
        ge=0,
        le=86_400,
        description="seconds between checkpoints within an epoch, beside those at its end; a run's curves are published with them",
    )
    keep: int = Field(ge=1, le=1000, description="trainings whose checkpoints are kept, this one included")
    keep_days: float = Field(
        gt=0, le=3650, description="days after which the checkpoints of a training are removed"
    )
    time_budget_min: float = Field(
        ge=0,
        le=100_000,
        description="minutes after which training saves and stops (exit code 1), for the next run to resume",
    )
