"""The `energy` section of params.yaml, and how much CO2 a kilowatt-hour comes with, by country.

The figures are in tables that codecarbon carries; nothing is looked up on a network. A country's figure is
the yearly average of its electricity, mostly of 2023. The world's average is 475 g per kWh, which codecarbon
takes from the International Energy Agency's Global Energy & CO2 Status Report 2019.
"""

import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from convoy.core import files
from convoy.core.errors import RequestError
from convoy.core.params import Section

WORLD = "world"  # stands for an unknown country
OFF = "none"  # instead of a country: nothing is metered
SUGGESTIONS = 3


class Grid(NamedTuple):
    """Describe the electricity of a country.

    Attributes:
        name: such as `Germany`.
        g_per_kwh: grams of CO2 equivalent per kilowatt-hour.
        source: the year, or the publication.
    """

    name: str
    g_per_kwh: float
    source: str

    def __str__(self) -> str:
        """Return figure and origin, such as `Germany 381 g CO2 per kWh (2023)`."""
        return f"{self.name} {self.g_per_kwh:.0f} g CO2 per kWh ({self.source})"


def find_grid(country: str) -> Grid:
    """Look up a country by its ISO 3166 code of three capital letters; `world` is the average.

    Raises:
        RequestError: no figure exists for it; the nearest codes are named.
    """
    tables = codecarbon_data() / "private_infra"
    if country == WORLD:
        average = files.read_json(tables / "carbon_intensity_per_source.json")["world_average"]
        return Grid("world average", float(average), "IEA 2019")
    countries = files.read_json(tables / "global_energy_mix.json")
    if country not in countries:
        raise RequestError(f"no such country: {country!r}. {_suggestions(country, countries)}")
    row = countries[country]
    return Grid(row["country_name"], float(row["carbon_intensity"]), str(row["year"]))


def codecarbon_data() -> Path:
    """Locate codecarbon's tables without importing it: every stage checks its params, in 0.3 s less."""
    package = find_spec("codecarbon")
    if package is None or package.origin is None:
        raise RequestError("codecarbon is not installed. Install the packages of requirements.txt")
    return Path(package.origin).parent / "data"


def _suggestions(typed: str, countries: dict[str, Any]) -> str:
    """Name the countries whose code or name is nearest to what was typed, and the valid values."""
    names = {row["country_name"].casefold(): code for code, row in countries.items()}
    wanted = typed.strip().casefold()
    near = [code for name, code in names.items() if wanted and name.startswith(wanted)]
    near += [names[name] for name in difflib.get_close_matches(wanted, names, n=SUGGESTIONS)]
    near += difflib.get_close_matches(typed.upper(), countries, n=SUGGESTIONS, cutoff=0.5)
    codes = list(dict.fromkeys(near))[:SUGGESTIONS]
    nearest = ", ".join(f"{code} ({countries[code]['country_name']})" for code in codes)
    start = f"Did you mean {nearest}? " if codes else ""
    return f"{start}Use an ISO code of three letters, such as DEU, `{WORLD}` for the world's average, or `{OFF}` to meter nothing"


def _check_country(country: str) -> str:
    try:
        if country != OFF:
            find_grid(country)
    except RequestError as error:
        raise PydanticCustomError("country", "{reason}", {"reason": str(error)}) from error
    return country


class EnergyParams(Section):
    """Name whose electricity is used. Changes no result."""

    country: Annotated[
        str,
        AfterValidator(_check_country),
        Field(description="country whose electricity is used", examples=["world"]),
    ]
