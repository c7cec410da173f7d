"""`convoy rollback` goes back along the champions that the log knows."""

import pytest

from convoy.core.errors import RequestError
from convoy.registry.alias import move
from convoy.registry.client import CHAMPION, RegistryError, Version
from convoy.registry.log import Entry, stack
from convoy.registry.rollback import rollback
from registry_project import Shop


def promote(shop: Shop, *versions: Version) -> None:
    """Make versions champion, one after the other."""
    for version in versions:
        now = shop.registry.alias(CHAMPION)
        move(shop.registry, version, expected=now, kind="promote", reason="better")


def entries(*moves: str) -> list[Entry]:
    """Make a log from moves such as `1>2` (promoted), `2<1` (rolled back); `!` says that it did not happen."""
    made = []
    for number, text in enumerate(moves):
        kind = "rollback" if "<" in text else "promote"
        before, _, after = text.strip("!").replace("<", ">").partition(">")
        made.append(Entry(str(number), kind, before, after, "", number, "", "", moved="!" not in text))
    return made


@pytest.mark.parametrize(
    ("moves", "now", "champions"),
    [
        ([">1", "1>2", "2>3"], "3", "1 2 3"),
        ([">1", "1>2", "2>3", "3<2"], "2", "1 2"),
        ([">1", "1>2", "2>3", "3<2", "2<1"], "1", "1"),
        ([">1", "1>2", "2>3", "3<2", "2>4"], "4", "1 2 4"),
        ([">1", "1>2", "2>3", "3<1"], "1", "1"),
        ([">1", "1>2", "2<7"], "7", "1 7"),
        ([">1", "1>2", "2>3", "3<2", "2<1", "1<3"], "3", "1 2 3"),
        ([">1", "1>2", "2>3", "3<2", "2<1", "1<2"], "2", "1 2"),
        ([">1", "1>2", "2<1", "1>4", "4<2"], "2", "1 2"),
        ([">1", "1>2", "2>3", "3<7", "7<3"], "3", "1 2 3"),
        ([">1", "1>2", "2>1"], "1", "1 2 1"),
        ([">1", "1>2", "2>1", "1<1"], "1", "1"),
        ([">1", "1>2", "2>1", "1>3", "3<1"], "1", "1 2 1"),
        ([">1", "1>2", "2>1", "1<2"], "2", "1 2"),
        ([">1", "1>2", "2>3!"], "2", "1 2"),
        (["5>6"], "6", "5 6"),
        ([">1", "1>2"], "9", "1 2 9"),
        ([">1", "3>4"], "4", "1 3 4"),
        ([], "2", "2"),
        ([], "", ""),
    ],
)
def test_the_champions_are_stacked_as_they_were_promoted_and_rolled_back(
    moves: list[str], now: str, champions: str
) -> None:
    assert " ".join(stack(entries(*moves), now)) == champions


def test_rolling_back_twice_goes_two_back_and_then_there_is_nothing_left(shop: Shop) -> None:
    versions = shop.versions(3)
    promote(shop, *versions)
    moved = rollback("confuses 3 and 8")
    assert (moved.before, moved.to, shop.champion()) == (versions[2], versions[1], "2")
    assert rollback("").to == versions[0]
    with pytest.raises(
        RequestError,
        match=r"convoy/1 is the first champion, .* none to go back to. Name a version: convoy rollback --to 3 \(or 2\)",
    ):
        rollback("")
    assert shop.champion() == "1"
    name, status, tags = shop.entries()[3]
    assert (name, status) == ("rollback convoy/2", "FINISHED")
    assert (tags["convoy.kind"], tags["convoy.from"], tags["convoy.to"]) == ("rollback", "3", "2")
    assert tags["convoy.reason"] == "confuses 3 and 8"


def test_a_given_version_needs_no_log(shop: Shop) -> None:
    first, second = shop.versions(2)
    shop.client.set_registered_model_alias("convoy", "champion", first.number)
    assert rollback("by hand", to="2").to == second
    assert rollback("", to="convoy/1").to == first


def test_on_the_server_it_goes_back_as_well(served_shop: Shop) -> None:
    first, second = served_shop.versions(2)
    promote(served_shop, first, second)
    assert rollback("slow").to == first
    assert served_shop.champion() == first.number


def test_without_a_champion_there_is_nothing_to_go_back_from(shop: Shop) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match=r"convoy at sqlite:.* has no champion, so there is nothing"):
            rollback("")
        shop.versions(1)


def test_a_version_that_does_not_exist_or_serves_already_is_refused(shop: Shop) -> None:
    promote(shop, *shop.versions(2))
    with pytest.raises(RequestError, match=r"convoy has no version 9; there are: 1, 2"):
        rollback("", to="9")
    with pytest.raises(RequestError, match=r"convoy has no version last; there are: 1, 2"):
        rollback("", to="last")
    with pytest.raises(RequestError, match=r"convoy/2 is the champion already; name another"):
        rollback("", to="2")


def test_a_version_whose_file_is_gone_does_not_become_champion(shop: Shop) -> None:
    versions = shop.versions(3)
    promote(shop, *versions)
    run = shop.client.get_run(versions[1].mlflow_run_id)
    shop.lose(run)
    with pytest.raises(
        RegistryError,
        match=r"model.onnx of convoy/2 is not in the store any more.* Choose another: convoy rollback --to 1",
    ):
        rollback("")
    assert shop.champion() == "3"
    assert rollback("", to="1").to == versions[0]


def test_a_champion_that_was_deleted_meanwhile_is_said_with_those_before_it(shop: Shop) -> None:
    promote(shop, *shop.versions(4))
    shop.client.delete_model_version("convoy", "3")
    with pytest.raises(
        RegistryError,
        match=r"convoy/3, the champion before 4, was deleted; .* --to VERSION \(before it: 2, 1\)",
    ):
        rollback("")


def test_a_champion_that_points_nowhere_is_mended(shop: Shop) -> None:
    first, second = shop.versions(2)
    promote(shop, first, second)
    shop.point_nowhere("champion")
    with pytest.raises(RegistryError, match=r"the alias champion of convoy at .* points to version 99"):
        shop.registry.alias(CHAMPION)
    assert rollback("the alias points nowhere").to == second
    assert shop.registry.alias(CHAMPION) == second


def test_a_log_that_was_deleted_is_said_with_the_command_that_brings_it_back(shop: Shop) -> None:
    promote(shop, *shop.versions(2))
    found = shop.client.get_experiment_by_name("convoy promotions")
    shop.client.delete_experiment(found.experiment_id)
    with pytest.raises(
        RegistryError,
        match=rf"`convoy promotions`, .* was deleted. .* mlflow experiments restore --experiment-id {found.experiment_id}",
    ):
        rollback("")
    assert shop.champion() == "2"


def test_an_experiment_rolls_nothing_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(shop, *shop.versions(2))
    monkeypatch.setenv("DVC_EXP_NAME", "quick-fox")
    with pytest.raises(RequestError, match=r"`convoy rollback` does not work inside a DVC stage or experim"):
        rollback("")
    assert shop.champion() == "2"
