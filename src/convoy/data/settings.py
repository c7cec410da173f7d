"""The `data` section of params.yaml."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from convoy.core.dataset import Fit
from convoy.core.params import Section

LARGEST_CUT = 0.8
"""Largest share that validation and test may take together: a fifth at least is left to learn from."""

Share = Annotated[float, Field(ge=0.01, le=0.5)]


class SplitParams(Section):
    """Shares cut from what is delivered, for each part that the delivery lacks."""

    val: Share
    test: Share

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.val + self.test > LARGEST_CUT:
            raise ValueError(
                f"val + test must be at most {LARGEST_CUT}, they are {self.val} + {self.test} = "
                f"{self.val + self.test:g}"
            )
        return self


class DataParams(Section):
    """What `prepare` makes of a delivery."""

    image_px: Annotated[int, Field(ge=8, le=1024)]
    fit: Fit
    splits: SplitParams
    max_quarantined: Annotated[float, Field(ge=0, le=1)]
