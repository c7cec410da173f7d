"""How much CO2 a kilowatt-hour comes with, by country, from the tables that codecarbon carries.

Nothing is looked up on a network. A country's figure is the yearly average of its
electricity (codecarbon's `global_energy_mix.json`, mostly of 2023). Where the country is
unknown the world's average stands in: 475 g per kWh, which codecarbon takes from the
International Energy Agency's Global Energy & CO2 Status Report 2019
(`carbon_intensity_per_source.json`).
"""

import difflib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from convoy.core.errors import RequestError

WORLD = "world"
"""Stands for a country that is not known."""

NEAR = 3
"""Countries named where one is misspelt: more would hide the right one."""


class Grid(NamedTuple):
    """Name a place's electricity, and the CO2 of it.

    Attributes:
        name: as people write it, such as `Germany`.
        g_per_kwh: grams of CO2 equivalent per kilowatt-hour.
        source: the year, or who says so.
    """

    name: str
    g_per_kwh: float
    source: str

    def __str__(self) -> str:
        """State figure and origin, such as `Germany 381 g CO2 per kWh (2023)`."""
        return f"{self.name} {self.g_per_kwh:.0f} g CO2 per kWh ({self.source})"


def find(country: str) -> Grid:
    """Look a country up by its ISO 3166 code of three capital letters; `world` is the average.

    Raises:
        RequestError: there is no figure for it; the nearest codes are named.
    """
    if country == WORLD:
        average = _table("carbon_intensity_per_source.json")["world_average"]
        return Grid("world average", float(average), "IEA 2019")
    countries = _table("global_energy_mix.json")
    if country not in countries:
        raise RequestError(f"no such country: {country!r}. {advice(country, countries)}")
    facts = countries[country]
    return Grid(facts["country_name"], float(facts["carbon_intensity"]), str(facts["year"]))


def advice(typed: str, countries: dict[str, Any]) -> str:
    """Name the countries whose code or name is nearest to what was typed, and what else is taken."""
    names = {facts["country_name"].casefold(): code for code, facts in countries.items()}
    wanted = typed.strip().casefold()
    near = [code for name, code in names.items() if wanted and name.startswith(wanted)]
    near += [names[name] for name in difflib.get_close_matches(wanted, names, n=NEAR)]
    near += difflib.get_close_matches(typed.upper(), countries, n=NEAR, cutoff=0.5)
    found = list(dict.fromkeys(near))[:NEAR]
    nearest = ", ".join(f"{code} ({countries[code]['country_name']})" for code in found)
    start = f"Near it: {nearest}. " if found else ""
    return f"{start}Give an ISO code of three letters, such as DEU, or `{WORLD}` for the world's average"


def _table(name: str) -> dict[str, Any]:
    """Read one of codecarbon's tables without importing codecarbon, which `make repro` checks params with."""
    package = find_spec("codecarbon")
    if package is None or package.origin is None:
        raise RequestError("codecarbon is not installed. Install what requirements.txt names")
    path = Path(package.origin).parent / "data/private_infra" / name
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
