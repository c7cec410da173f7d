"""The `gate` section of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from convoy.core.params import Section

Share = Annotated[float, Field(ge=0, le=1)]

TRIGGER = "max_champion_age_days"
"""The one value with `max_` in its name that limits no candidate: it says when to train anew."""


class GateParams(Section):
    """Set what a candidate must hold to become champion; a limit that is None is not asked for."""

    confidence: Annotated[float, Field(ge=0.5, le=0.9999)]
    on_equal: Literal["keep", "promote"]
    equal_within: Share
    min_images: Annotated[int, Field(ge=1, le=10_000_000)] | None
    min_accuracy: Share | None
    min_class_recall: Share | None
    max_class_drop: Share | None
    max_ece: Share | None
    max_latency_ms_p95: Annotated[float, Field(gt=0)] | None
    max_latency_ratio: Annotated[float, Field(ge=1)] | None
    max_size_mb: Annotated[float, Field(gt=0)] | None
    max_champion_drop: Share | None
    max_champion_age_days: Annotated[float, Field(gt=0)] | None

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        """Refuse a gate that would let anything pass."""
        limits = [name for name in type(self).model_fields if name.startswith(("min_", "max_"))]
        if all(getattr(self, name) is None for name in limits if name != TRIGGER):
            raise ValueError(
                "a gate without limits gives no verdict. Set at least one, such as gate.min_accuracy: 0.5"
            )
        return self
