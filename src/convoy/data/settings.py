"""The `data` section of params.yaml."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from convoy.core.dataset import Fit
from convoy.core.params import Section

LARGEST_CUT = 0.8
"""Largest share of validation and test together: at least a fifth is left for training."""


class SplitParams(Section):
    """Shares cut from the delivery, for each split that it lacks."""

    val: Annotated[float, Field(ge=0.01, le=0.5, description="chooses the best epoch")]
    test: Annotated[float, Field(ge=0.01, le=0.5, description="measures the result, used for nothing else")]

    @model_validator(mode="after")
    def _leave_images_to_train_on(self) -> Self:
        if self.val + self.test > LARGEST_CUT:
            raise ValueError(
                f"val + test must be at most {LARGEST_CUT}, they are {self.val} + {self.test} = "
                f"{self.val + self.test:g}"
            )
        return self


class DataParams(Section):
    """Configure how `prepare` checks, splits and packs a delivery."""

    image_px: Annotated[
        int, Field(ge=8, le=1024, description="side of the square that the network sees, in pixels")
    ]
    fit: Annotated[Fit, Field(description="how an image becomes that square")]
    splits: Annotated[
        SplitParams, Field(description="shares cut from the delivery for the splits that it lacks")
    ]
    max_quarantined: Annotated[
        float, Field(ge=0, le=1, description="largest share of files that may be unusable")
    ]
