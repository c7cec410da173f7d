"""The `evaluate` section of params.yaml."""

from typing import Annotated

from pydantic import Field

from convoy.core.params import Section


class EvaluateParams(Section):
    """Configure the measurement on the test split; nothing here changes what is measured."""

    batch_size: Annotated[int, Field(ge=1, le=65536)]
    worst_images: Annotated[int, Field(ge=0, le=200)]
    feature_classes: Annotated[int, Field(ge=0, le=1000)]
