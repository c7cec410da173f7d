"""The `export` section of params.yaml."""

from typing import Annotated

from pydantic import Field

from convoy.core.params import Section


class ExportParams(Section):
    """Limit the differences between exported and measured predictions, set the timed runs, and what is made beside the model."""

    max_label_flips: Annotated[
        int,
        Field(
            ge=0,
            description="test images whose class may differ between evaluation and the exported graph",
            examples=[0],
        ),
    ]
    max_probability_gap: Annotated[
        float,
        Field(
            ge=0, le=1, description="largest difference of any probability between the two", examples=[0.0001]
        ),
    ]
    latency_runs: Annotated[
        int,
        Field(
            ge=10,
            le=10000,
            description="timed single-image runs of onnxruntime and of eager torch",
            examples=[100],
        ),
    ]
    golden_images: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="test images that are stored with the model, with the answers that `convoy verify` expects",
            examples=[30],
        ),
    ]
