"""The `gate` section of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from convoy.core.params import Section

Share = Annotated[float, Field(ge=0, le=1)]

TRIGGER = "max_champion_age_days"
"""The only `max_` value that limits no candidate: it triggers a retraining."""


class GateParams(Section):
    """Limits that a candidate must meet to become champion; None: no such limit."""

    confidence: Annotated[
        float,
        Field(
            ge=0.5,
            le=0.9999,
            description="confidence of the significance test and of every interval",
            examples=[0.95],
        ),
    ]
    on_equal: Literal["keep", "promote"] = Field(
        description="what happens to a newer candidate that equals the champion", examples=["keep"]
    )
    equal_within: Share = Field(
        description='accuracy loss that the interval of the gain may include for "equal"', examples=[0.02]
    )
    min_images: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        description="test images that neither model was trained on", examples=[50]
    )
    min_accuracy: Share | None = Field(
        description="accuracy of the candidate on those images", examples=[0.5]
    )
    min_class_recall: Share | None = Field(
        description="recall of the candidate's worst class", examples=[0.3]
    )
    max_class_drop: Share | None = Field(
        description="largest drop of a class's recall below the champion's", examples=[0.2]
    )
    max_ece: Share | None = Field(description="expected calibration error with 15 bins", examples=[0.2])
    max_latency_ms_p95: Annotated[float, Field(gt=0)] | None = Field(
        description="95th percentile of the latency of one image on one thread, in ms", examples=[200]
    )
    max_latency_ratio: Annotated[float, Field(ge=1)] | None = Field(
        description="latency relative to the champion's, both measured by turns", examples=[2.0]
    )
    max_size_mb: Annotated[float, Field(gt=0)] | None = Field(
        description="size of model.onnx, in 10^6 bytes", examples=[600]
    )
    max_champion_drop: Share | None = Field(
        description="drop of the champion below its recorded accuracy, beyond which the data are suspect",
        examples=[0.1],
    )
    max_champion_age_days: Annotated[float, Field(gt=0)] | None = Field(
        description="age of the champion that triggers a retraining although nothing changed", examples=[90]
    )

    public_key: Annotated[
        str,
        Field(
            min_length=1,
            description="public key of the signature that a candidate must have (PEM; needs the extra sign)",
            examples=["none"],
        ),
    ]

    @model_validator(mode="after")
    def _require_a_limit(self) -> Self:
        """Refuse a gate that would let anything pass."""
        limits = [name for name in type(self).model_fields if name.startswith(("min_", "max_"))]
        if all(getattr(self, name) is None for name in limits if name != TRIGGER):
            raise ValueError(
                "a gate without limits gives no verdict. Set at least one, such as gate.min_accuracy: 0.5"
            )
        return self
