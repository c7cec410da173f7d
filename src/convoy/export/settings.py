"""The `export` section of params.yaml."""

from typing import Annotated

from pydantic import Field

from convoy.core.params import Section


class ExportParams(Section):
    """Set how far the served graph may be from what was measured, and how long to time it."""

    max_label_flips: Annotated[int, Field(ge=0)]
    max_probability_gap: Annotated[float, Field(ge=0, le=1)]
    latency_runs: Annotated[int, Field(ge=10, le=10000)]
