"""The `export` section of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    int8: Annotated[
        Literal["off", "auto"],
        Field(
            description="an INT8 copy of the graph, kept if it is at least 1.3 times as fast here and accurate enough",
            examples=["off"],
        ),
    ]
    int8_max_accuracy_drop: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="largest loss of test accuracy that an INT8 copy may have, as the upper end of its 95 % interval",
            examples=[0.005],
        ),
    ]
    fp16: Annotated[
        bool,
        Field(description="a float16 copy of the graph, for GPUs; not timed", examples=[False]),
    ]
    serve: Annotated[
        Literal["fp32", "int8"],
        Field(
            description="graph that becomes model.onnx; int8 (needs int8: auto) is served only if it is kept",
            examples=["fp32"],
        ),
    ]

    licence: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9.+ ()-]{0,99}$",
            description="licence of the model, as SPDX states it, for the card and the bill of materials",
            examples=["unknown"],
        ),
    ]
    sign: Annotated[
        str,
        Field(
            min_length=1,
            description="private key that signs the model (elliptic curve, PEM; needs the extra sign)",
            examples=["none"],
        ),
    ]

    @model_validator(mode="after")
    def _int8_is_made(self) -> Self:
        """Refuse to serve what is not made."""
        if self.serve == "int8" and self.int8 == "off":
            raise ValueError(
                "export.serve: int8 serves the INT8 copy, which is not made. Set export.int8: auto"
            )
        return self
