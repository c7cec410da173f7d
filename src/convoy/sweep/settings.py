"""The `sweep` section of params.yaml."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from convoy.core import params
from convoy.core.errors import RequestError
from convoy.core.params import Section

Metric = Literal["val/loss", "val/accuracy"]
Number = int | float


class Range(Section):
    """Bound the values of a key; evenly spread unless `log`, continuous unless `step`."""

    low: Annotated[Number, Field(description="lowest value")]
    high: Annotated[Number, Field(description="highest value")]
    log: Annotated[bool, Field(description="spread evenly on a logarithmic scale")] = False
    step: Annotated[Number | None, Field(gt=0, description="distance between two values")] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise PydanticCustomError("range", "Low must be less than high")
        if self.log and self.low <= 0:
            raise PydanticCustomError("range", "With `log: true` low must be greater than 0")
        if self.log and self.step is not None:
            raise PydanticCustomError("range", "`log: true` and `step` exclude each other: keep one")
        if self.step is not None and self.step > self.high - self.low:
            raise PydanticCustomError("range", "Step is larger than the whole range")
        return self


class SweepParams(Section):
    """Choose what a sweep tries, how often, and by which metric it decides."""

    trials: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="trials of a sweep in all, pruned and failed ones included",
            examples=[20],
        ),
    ]
    metric: Annotated[
        Metric,
        Field(
            description="metric that compares trials, in the epoch whose weights each trial keeps",
            examples=["val/loss"],
        ),
    ]
    warmup_epochs: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="epochs before a trial may be pruned for being worse than the median",
            examples=[3],
        ),
    ]
    space: Annotated[
        dict[str, Range | list[Any]],
        Field(
            min_length=1,
            description="keys of network and train, or seed, and the values to try",
            examples=[
                {
                    "train.lr": {"low": 0.005, "high": 0.3, "log": True},
                    "train.weight_decay": {"low": 1e-05, "high": 0.01, "log": True},
                    "train.batch_size": [16, 32, 64],
                    "train.augment": [
                        [],
                        [{"shift": {"pixels": 1}}],
                        [{"shift": {"pixels": 2}}],
                        [{"shift": {"pixels": 4}}],
                    ],
                }
            ],
        ),
    ]

    @field_validator("space", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        """Check each key's range or choices by itself: errors then name it, not the alternatives of a union."""
        return (
            {key: _values(str(key), item) for key, item in value.items()}
            if isinstance(value, dict)
            else value
        )


def _values(key: str, item: object) -> Range | list[Any]:
    name = f"sweep.space.{key}"
    if isinstance(item, dict):
        return params.check(name, Range, item)
    if not isinstance(item, list):
        raise RequestError(
            f"{params.PARAMS_FILE}: {name} is {item!r}, a single value. Give choices, such as [16, 32], or a range, "
            "such as {low: 0.01, high: 0.1, log: true}."
        )
    if len(item) < 2:
        raise RequestError(
            f"{params.PARAMS_FILE}: {name} is {item!r}, which leaves nothing to choose. Give two choices or more, or "
            "remove the key from sweep.space."
        )
    for index, choice in enumerate(item):
        if choice in item[:index]:
            raise RequestError(f"{params.PARAMS_FILE}: {name} lists {choice!r} twice. List it once.")
    return item
