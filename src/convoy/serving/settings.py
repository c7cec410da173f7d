"""The `serve` section of params.yaml."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from convoy.core.params import PARAMS_FILE, Section, default_at, section
from convoy.images.decode import MAX_PIXELS

Share = Annotated[float, Field(ge=0, le=1)]


class ServeParams(Section):
    """Set what `convoy serve` accepts, how many requests it holds, and what it keeps; the stages do not depend on it."""

    providers: Annotated[
        str,
        Field(
            min_length=1,
            description="execution providers of onnxruntime, the first that works",
            examples=["auto"],
        ),
    ]
    threads: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            description="threads that decode and classify; 0: as many as the process may use cores",
            examples=[0],
        ),
    ]
    max_body_mb: Annotated[
        float, Field(gt=0, le=1024, description="largest body of a request, in 10^6 bytes", examples=[20])
    ]
    max_pixels: Annotated[
        int,
        Field(ge=1, le=MAX_PIXELS, description="largest image, in pixels", examples=[MAX_PIXELS]),
    ]
    max_files: Annotated[int, Field(ge=1, le=1024, description="most images of a request", examples=[32])]
    max_queue: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="most images that wait; further requests are answered with 429",
            examples=[256],
        ),
    ]
    timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=3600,
            description="seconds after which a request that has no answer is answered with 503",
            examples=[10],
        ),
    ]
    top_k: Annotated[
        int,
        Field(ge=1, le=10_000, description="classes of an answer, the most probable first", examples=[5]),
    ]
    min_confidence: Share = Field(
        description="probability of the class below which an answer has `abstained: true`", examples=[0.0]
    )
    allow_urls: bool = Field(
        description="whether a request may name the address of an image, which the service then fetches",
        examples=[False],
    )
    token_env: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            description="environment variable with the token that requests must carry; requests need none where it is not set",
            examples=["CONVOY_SERVE_TOKEN"],
        ),
    ]
    cors: list[str] = Field(
        description="origins whose web pages may call the service, such as https://app.example.org",
        examples=[[]],
    )
    keep_uncertain: Annotated[
        str,
        Field(
            min_length=1,
            description="folder for images of answers that abstained, for labelling",
            examples=["none"],
        ),
    ]
    keep_max: Annotated[
        int, Field(ge=1, le=1_000_000, description="most images kept in keep_uncertain", examples=[1000])
    ]
    public_key: Annotated[
        str,
        Field(
            min_length=1,
            description="public key of the signature that a model must have (PEM; needs the extra sign)",
            examples=["none"],
        ),
    ]
    watch_s: Annotated[
        float,
        Field(
            ge=0,
            le=86_400,
            description="seconds between two looks at the alias champion; 0: never",
            examples=[10],
        ),
    ]


def serve_params(path: Path = PARAMS_FILE) -> ServeParams:
    """Read the section `serve`, or use the shipped values if there is no params.yaml, as in a container."""
    if path.is_file():
        return section("serve", ServeParams, path)
    return ServeParams.model_validate(default_at(ServeParams, []))
