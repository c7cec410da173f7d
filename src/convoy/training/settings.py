"""The sections `network`, `train` and `checkpoints` of params.yaml."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, LiteralString, Self, get_args

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from convoy.core.contract import Tta
from convoy.core.errors import RequestError
from convoy.core.params import Section
from convoy.training import other_names as names
from convoy.training import weight_pins
from convoy.training.augment.geometry import AlternatingFlip, Flip
from convoy.training.augment.policy import Augment, without_padding

Schedule = Literal["one_cycle", "cosine", "linear", "step", "constant"]
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


def _known_teacher(source: str) -> str:
    """Refuse a misspelt source, and one that has never seen the dataset's classes."""
    if _known_source(source) == weight_pins.IMAGENET:
        raise ValueError(
            "the networks of `imagenet` have other classes than the dataset. Train one on these images (network.weights: imagenet), "
            "then name its run: runs:/RUN_ID"
        )
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
        examples=["convnet"],
    )
    weights: Annotated[str, AfterValidator(_known_source)] = Field(
        description="weights that training starts from", examples=["none"]
    )


class TransferParams(Section):
    """Choose how starting weights are adapted."""

    freeze: Freeze = Field(
        description="blocks frozen at the start, counted from the image, or the name of the last",
        examples=[0],
    )
    release: Release = Field(
        description="epochs between releases of frozen blocks, the deepest first", examples=[0]
    )
    lr_factor: float = Field(
        gt=0,
        le=1,
        description="learning rate of a block as a share of the next deeper block's; the head learns at lr",
        examples=[1.0],
    )
    batch_norm: Literal["adapt", "frozen"] = Field(
        description="batch norms of all blocks but the head", examples=["adapt"]
    )


class MuonParams(Section):
    """Choose how `optimizer: muon` trains; without effect for others."""

    steps: int = Field(
        ge=1, le=20, description="Newton-Schulz steps that make an update orthogonal", examples=[3]
    )
    normalize: bool = Field(
        description="norm of a layer's weights set to the root of its filters before each step",
        examples=[False],
    )
    rest: Literal["sgd", "adamw"] = Field(
        description="update rule of the first layer, the head, biases and norms", examples=["sgd"]
    )
    rest_lr: float = Field(
        gt=0,
        le=100_000,
        description="highest learning rate of the rest, without the head's weights",
        examples=[0.05],
    )
    head_lr: float = Field(
        gt=0, le=100_000, description="highest learning rate of the head's weights", examples=[0.05]
    )
    rest_momentum: float = Field(ge=0, lt=1, description="momentum of the rest", examples=[0.9])
    rest_decay: float = Field(
        ge=0,
        le=0.1,
        description="share by which a step at the highest learning rate shrinks the rest",
        examples=[0.0],
    )


class ProgressiveParams(Section):
    """Choose the size of the images of the first epochs."""

    start: float = Field(
        ge=0.25,
        le=1,
        description="side of the first epoch's images as a share of data.image_px",
        examples=[1.0],
    )
    full: float = Field(
        gt=0, le=1, description="share of the epochs in which the side grows to data.image_px", examples=[0.6]
    )


class TrainParams(Section):
    """Choose how a network is trained."""

    other_names: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("lr0", "max_lr", "lr_max", "learning_rate", "base_lr"), "lr"),
        **dict.fromkeys(("lrf", "min_lr", "eta_min", "end_lr"), "lr_end"),
        **dict.fromkeys(("cos_lr", "sched", "lr_scheduler", "scheduler"), "schedule"),
        **dict.fromkeys(("milestones", "decay_epochs", "step_size"), "step_epochs"),
        **dict.fromkeys(("gamma", "decay_rate"), "step_factor"),
        **dict.fromkeys(("warmup_epochs", "pct_start", "warmup_steps"), "warmup"),
        **dict.fromkeys(("opt", "opt_func"), "optimizer"),
        **dict.fromkeys(("gradient_clip_val", "clip_grad", "max_norm", "grad_clip"), "clip_norm"),
        **dict.fromkeys(
            ("accumulate_grad_batches", "grad_accum_steps", "nbs", "gradient_accumulation_steps"),
            "accumulate",
        ),
        **dict.fromkeys(("batch", "bs"), "batch_size"),
        **dict.fromkeys(("patience", "early_stopping"), "early_stop"),
        **dict.fromkeys(("model_ema", "model_ema_decay", "ema_decay"), "ema"),
        **dict.fromkeys(("smoothing", "label_smoothing_eps"), "label_smoothing"),
        **dict.fromkeys(("monitor", "save_best", "eval_metric"), "best"),
        **dict.fromkeys(("amp", "dtype"), "precision"),
        **dict.fromkeys(("wd", "decay"), "weight_decay"),
        **dict.fromkeys(("teacher_model", "teacher_path", "kd_model"), "teacher"),
        **dict.fromkeys(("distillation_alpha", "kd_alpha", "kd_weight"), "teacher_weight"),
        **dict.fromkeys(("temperature", "distillation_tau", "kd_temperature"), "teacher_temperature"),
    }

    epochs: int = Field(ge=1, le=10_000, description="passes over the training images", examples=[10])
    batch_size: int = Field(ge=1, le=65_536, description="images per batch", examples=[32])
    accumulate: int = Field(
        ge=1, le=1024, description="batches whose gradients are averaged for a step", examples=[1]
    )
    optimizer: Annotated[
        Literal["sgd", "adamw", "muon"],
        names.hinted(names.OPTIMIZERS, "sgd", "adamw", "muon", none=names.NO_OPTIMIZER),
    ] = Field(description="update rule of the weights", examples=["sgd"])
    momentum: float = Field(
        ge=0, lt=1, description="share of the last step's direction that a step keeps", examples=[0.9]
    )
    muon: MuonParams = Field(description="what `optimizer: muon` adds")
    lr: float = Field(gt=0, le=100, description="highest learning rate", examples=[0.03])
    weight_decay: float = Field(
        ge=0, le=1, description="weight decay; not applied to norms and biases", examples=[0.0005]
    )
    schedule: Annotated[
        Schedule, names.hinted(names.SCHEDULES, *get_args(Schedule), none=names.NO_SCHEDULE)
    ] = Field(description="learning-rate schedule after the warm-up", examples=["one_cycle"])
    warmup: float = Field(
        ge=0, le=0.9, description="share of all steps in which the learning rate rises to lr", examples=[0.2]
    )
    lr_end: float = Field(
        ge=0,
        le=1,
        description="learning rate at the end of `linear` and `cosine`, as a share of lr",
        examples=[0.0],
    )
    step_epochs: Annotated[
        Annotated[int, Field(ge=1, le=10_000)]
        | Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1)],
        _one_message("Input should be a number of epochs from 1 to 10000, or a list of them"),
    ] = Field(description="epochs between two falls of `step`", examples=[30])
    step_factor: float = Field(
        gt=0, lt=1, description="factor on the learning rate at each fall of `step`", examples=[0.1]
    )
    clip_norm: float = Field(
        ge=0,
        le=10_000,
        description="largest norm of a step's gradients; longer ones are shortened to it",
        examples=[0.0],
    )
    loss: Annotated[
        Literal["cross_entropy", "focal"],
        names.hinted(names.LOSSES, "cross_entropy", "focal", none=names.NO_LOSS),
    ] = Field(description="training loss", examples=["cross_entropy"])
    focal_gamma: float = Field(
        ge=0,
        le=10,
        description="how little images count in `focal` that are already classified surely",
        examples=[2.0],
    )
    label_smoothing: float = Field(
        ge=0,
        le=0.5,
        description="share of the target probability spread over all classes in the training loss",
        examples=[0.1],
    )
    teacher: Annotated[str, AfterValidator(_known_teacher)] = Field(
        description="trained model whose answers are learnt too", examples=["none"]
    )
    teacher_weight: float = Field(
        gt=0, le=1, description="share of the teacher's answers in the training loss", examples=[0.5]
    )
    teacher_temperature: float = Field(
        ge=1,
        le=100,
        description="divisor of the logits of both, which softens the teacher's answers",
        examples=[4.0],
    )
    class_weights: Annotated[ClassWeights, names.hinted(names.CLASS_WEIGHTS, *get_args(ClassWeights))] = (
        Field(description="factor on the training loss of each class's images", examples=["none"])
    )
    sampler: Annotated[
        Literal["shuffle", "balanced"], names.hinted(names.SAMPLERS, "shuffle", "balanced")
    ] = Field(description="how often an epoch shows each training image", examples=["shuffle"])
    augment: Augment = Field(
        description="random changes of training images", examples=[[{"shift": {"pixels": 2}}]]
    )
    best: Annotated[Best, names.hinted(names.BEST, *get_args(Best))] = Field(
        description="epoch whose weights become the model", examples=["val/loss"]
    )
    early_stop: int = Field(
        ge=0,
        le=10_000,
        description="epochs that are not better by `best` before training stops",
        examples=[0],
    )
    ema: float = Field(
        ge=0,
        lt=1,
        description="decay of the exponential moving average of the weights, which is then validated and saved",
        examples=[0.0],
    )
    tta: Annotated[Tta, names.hinted(names.VIEWS, *get_args(Tta))] = Field(
        description="views of an image whose mean answers, in evaluation and in the exported graph",
        examples=["none"],
    )
    calibrate: bool = Field(
        description="temperature of the probabilities fitted to validation images", examples=[True]
    )
    precision: Annotated[Precision, names.hinted(names.PRECISIONS, "auto", "32", "bf16")] = Field(
        description="number format of convolutions and dense layers", examples=["auto"]
    )
    progressive: ProgressiveParams = Field(
        description="smaller images in the first epochs, whose steps cost less"
    )
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
    def _schedule_arguments(self) -> Self:
        if self.lr_end and self.schedule not in {"linear", "cosine"}:
            raise ValueError(
                f"lr_end: {self.lr_end:g} has no effect with schedule: {self.schedule}. Set lr_end: 0.0, or schedule: linear or cosine"
            )
        first = self.step_epochs if isinstance(self.step_epochs, int) else min(self.step_epochs)
        if self.schedule == "step" and first >= self.epochs:
            raise ValueError(
                f"schedule: step would first fall after {first} epochs (step_epochs), but epochs is {self.epochs}. Set step_epochs "
                f"to {max(self.epochs - 1, 1)} or less, or schedule: constant"
            )
        return self

    @model_validator(mode="after")
    def _mirrored_views(self) -> Self:
        flips = (
            isinstance(each, AlternatingFlip) or (isinstance(each, Flip) and each.axis != "vertical")
            for each in self.augment
        )
        if self.tta != "none" and not any(flips):
            raise ValueError(
                f"tta: {self.tta} averages an image with its mirror image, which training never shows (augment has no flip). Add "
                "flip to augment if mirrored images keep their class, or set tta: none"
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
        examples=[60],
    )
    keep: int = Field(
        ge=1, le=1000, description="trainings whose checkpoints are kept, this one included", examples=[5]
    )
    keep_days: float = Field(
        gt=0, le=3650, description="days after which the checkpoints of a training are removed", examples=[30]
    )
    time_budget_min: float = Field(
        ge=0,
        le=100_000,
        description="minutes after which training saves and stops (exit code 1), for the next run to resume",
        examples=[0],
    )
