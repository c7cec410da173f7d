"""The `energy` section of params.yaml."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from convoy.core.errors import RequestError
from convoy.core.params import Section
from convoy.energy import grid


def _known(country: str) -> str:
    """Refuse a country that there is no figure for."""
    try:
        grid.find(country)
    except RequestError as error:
        raise PydanticCustomError("country", "{reason}", {"reason": str(error)}) from error
    return country


class EnergyParams(Section):
    """Say whose electricity is used. Changes no result."""

    country: Annotated[str, AfterValidator(_known)]
