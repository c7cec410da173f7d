"""The `evaluate` section of params.yaml."""

from typing import Annotated

from pydantic import Field

from convoy.core.params import Section


class EvaluateParams(Section):
    """Configure the evaluation on the test split; nothing here changes a metric."""

    batch_size: Annotated[int, Field(ge=1, le=65536, description="images per forward pass", examples=[256])]
    worst_images: Annotated[
        int,
        Field(
            ge=0,
            le=200,
            description="most confident mistakes, and suspected label errors, shown in the report",
            examples=[24],
        ),
    ]
    feature_classes: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="classes with an image in the page of feature maps, features.html",
            examples=[10],
        ),
    ]
