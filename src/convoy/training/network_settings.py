"""The `network` section of params.yaml."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from convoy.core.errors import RequestError
from convoy.core.params import Section
from convoy.training import sources


def _known(weights: str) -> str:
    """Refuse a misspelt source early, in the words of a wrong value."""
    try:
        sources.kind(weights)
    except RequestError as error:
        raise PydanticCustomError("weights", "{why}", {"why": str(error)}) from error
    return weights


class NetworkParams(Section):
    """Choose the network, and what its weights start as."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    weights: Annotated[str, AfterValidator(_known)]
