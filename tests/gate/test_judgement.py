import json
import math
from dataclasses import replace

import pytest

from convoy.core.errors import VerificationError
from convoy.gate.judge import judge
from convoy.gate.result import GateResult


@pytest.fixture(scope="module")
def judgement(world):
    champion = world.contender("convoy/3", range(12))
    return judge(world.contender("convoy/7", [3, 40]), champion, world.today, world.limits())


def test_a_judgement_survives_json(judgement):
    again = GateResult.from_json(json.loads(json.dumps(judgement.as_json())))
    assert again == judgement
    assert again.flips
    assert again.comparison
    assert again.criteria


def test_a_first_judgement_without_a_champion_survives_json(world):
    first = judge(world.contender("convoy/1"), None, world.today, world.limits(max_ece=None))
    assert GateResult.from_json(first.as_json()) == first


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_what_is_no_number_is_not_written(judgement, figure):
    broken = replace(judgement, criteria=(replace(judgement.criteria[0], figure=figure),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.as_json()


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("verdict", "perhaps", r"verdict: Input should be 'promote', 'keep' or 'refuse'"),
        ("images", "120", r"images: Input should be a valid integer"),
        ("criteria", [{"name": "accuracy"}], r"criteria\.0\.title: Field required"),
        ("data_hash", math.nan, r"not JSON compliant"),
    ],
)
def test_a_damaged_judgement_is_refused_where_it_is_wrong(judgement, key, value, complaint):
    with pytest.raises(
        VerificationError, match=f"(?s)no judgement that this version.*{complaint}.*convoy promote"
    ):
        GateResult.from_json(judgement.as_json() | {key: value})


def test_the_conditions_name_what_the_figures_depend_on(judgement):
    conditions = judgement.as_json()["conditions"]
    assert conditions["confidence"] == 0.95
    assert conditions["latency"] == {"threads": 1, "rounds": 5, "images": 64}
    assert {"onnxruntime", "python", "pillow"} <= set(conditions["versions"])
    assert conditions["hardware"]["cores"] >= 1
    assert conditions["moment"].endswith("+00:00")
