"""CO2 by country, from codecarbon's tables; a country that is not in them is refused."""

import re

import pytest
from codecarbon.core.emissions import Emissions
from codecarbon.core.units import Energy
from codecarbon.external.geography import GeoMetadata
from codecarbon.input import DataSource

from convoy import preflight
from convoy.core import params
from convoy.core.errors import RequestError
from convoy.energy.settings import find_grid


def test_a_country_has_the_figure_and_the_year_of_codecarbons_table():
    in_codecarbon = Emissions(DataSource()).get_country_emissions(Energy(1), GeoMetadata("DEU", "Germany"))
    germany = find_grid("DEU")
    assert germany.g_per_kwh == pytest.approx(in_codecarbon * 1000)
    assert str(germany) == "Germany 381 g CO2 per kWh (2023)"


def test_world_has_the_worlds_average():
    assert str(find_grid("world")) == "world average 475 g CO2 per kWh (IEA 2019)"


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("deu", r"DEU \(Germany\)"),
        ("Germany", r"DEU \(Germany\)"),
        ("Bosnia", r"BIH \(Bosnia and Herzegovina\)"),
        ("JPX", r"JPN \(Japan\)"),
        ("%%%", None),
    ],
)
def test_a_country_that_is_not_there_is_refused_with_the_nearest_first(typed, near):
    hint = f"Did you mean {near}.*" if near else ""
    with pytest.raises(RequestError, match=rf"no such country: '{typed}'\. {hint}Use an ISO code.*`world`"):
        find_grid(typed)


def test_params_name_the_key_of_a_wrong_country():
    with pytest.raises(RequestError, match=r"energy\.country is 'DEN': no such country.*DNK \(Denmark\)"):
        params.check("energy", preflight.SECTIONS["energy"], {"country": "DEN"})
    with pytest.raises(RequestError, match=r"energy\.country is 49: .*string"):
        params.check("energy", preflight.SECTIONS["energy"], {"country": 49})


def test_the_comment_in_params_has_the_figure_in_use(repository):
    text = (repository / params.PARAMS_FILE).read_text()
    assert re.search(rf"  country:.*{find_grid('world').g_per_kwh:.0f} g CO2 per kWh", text)


def test_params_are_checked_without_importing_codecarbon(python):
    program = (
        "import sys; from convoy.energy.settings import EnergyParams; EnergyParams(country='DEU');"
        "print([name for name in ('codecarbon', 'pandas') if name in sys.modules])"
    )
    assert python("-c", program).stdout == "[]\n"
