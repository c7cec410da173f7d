"""Which tensor of a file goes where; `test_starting.py` does the same with files and heads."""

import pytest
import torch
from torch import Tensor

from convoy.training import grafting
from convoy.training.grafting import MisfitError, pair


def zeros(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_names_win_over_order() -> None:
    own = zeros(a__weight=(2, 2), b__weight=(2, 2))
    given = zeros(b__weight=(2, 2), a__weight=(2, 2))
    assert pair(own, given, []).body == {"a.weight": "a.weight", "b.weight": "b.weight"}


def test_other_names_are_paired_in_order() -> None:
    own = zeros(a__weight=(2, 3), a__bias=(2,))
    given = zeros(features__0__weight=(2, 3), features__0__bias=(2,))
    assert pair(own, given, []).body == {"a.weight": "features.0.weight", "a.bias": "features.0.bias"}


def test_kinds_must_agree_even_where_shapes_do() -> None:
    own = zeros(norm__weight=(4,), norm__bias=(4,))
    with pytest.raises(MisfitError, match=r"^tensor 1 is bn\.bias 4$") as caught:
        pair(own, zeros(bn__bias=(4,), bn__weight=(4,)), [])
    assert caught.value.wanted == "norm.weight 4"


def test_the_first_shape_that_differs_is_named() -> None:
    own = zeros(conv1__weight=(64, 3, 7, 7))
    with pytest.raises(MisfitError, match=r"^tensor 1 is features\.0\.weight 64×3×3×3$") as caught:
        pair(own, zeros(features__0__weight=(64, 3, 3, 3)), [])
    assert caught.value.wanted == "conv1.weight 64×3×7×7"


def test_missing_and_surplus_tensors_are_misfits() -> None:
    with pytest.raises(MisfitError, match=r"^tensor 2 is missing$") as caught:
        pair(zeros(a__weight=(1,), b__weight=(1,)), zeros(x__weight=(1,)), [])
    assert caught.value.wanted == "b.weight 1"
    with pytest.raises(MisfitError, match=r"^tensor 2 is y\.weight 1$") as caught:
        pair(zeros(a__weight=(1,)), zeros(a__weight=(1,), y__weight=(1,)), [])
    assert caught.value.wanted == "nothing more"


def test_the_width_of_a_head_may_differ_and_nothing_else_of_it() -> None:
    own = zeros(a__weight=(4, 3), fc__weight=(10, 4), fc__bias=(10,))
    given = zeros(x__weight=(4, 3), y__weight=(7, 4), y__bias=(7,))
    assert pair(own, given, ["fc.weight", "fc.bias"]).head == {"fc.weight": "y.weight", "fc.bias": "y.bias"}
    with pytest.raises(MisfitError, match=r"y\.weight 7×5"):
        pair(own, given | {"y.weight": torch.zeros(7, 5)}, ["fc.weight", "fc.bias"])


def test_the_counters_of_batch_norms_come_along_where_a_file_has_them() -> None:
    own = zeros(n__running_mean=(3,), n__num_batches_tracked=())
    old = zeros(bn__running_mean=(3,))
    new = zeros(bn__running_mean=(3,), bn__num_batches_tracked=())
    assert pair(own, old, []).body == {"n.running_mean": "bn.running_mean"}
    assert pair(own, new, []).body["n.num_batches_tracked"] == "bn.num_batches_tracked"


@pytest.mark.parametrize(
    "name", ["aux1.conv.weight", "aux.fc.bias", "AuxLogits.fc.weight", "auxiliary2.dense1.bias"]
)
def test_auxiliary_heads_are_told_by_their_names(name: str) -> None:
    assert list(grafting.given_parts(zeros(**{name.replace(".", "__"): (1,)}), main=()).auxiliary) == [name]


def test_a_layer_that_is_only_called_like_an_auxiliary_head_is_none() -> None:
    given = zeros(aux__weight=(1,), auxiliary_like__weight=(1,))
    parts = grafting.given_parts(given, main=["aux.weight"])
    assert list(parts.main) == ["aux.weight", "auxiliary_like.weight"]


def test_many_names_are_counted_by_unit() -> None:
    assert grafting.listed(["fc.weight", "fc.bias"]) == "fc.weight, fc.bias"
    assert grafting.listed([f"aux{n}.fc.{k}" for n in (1, 2) for k in "abcd"]) == "8 tensors in aux1, aux2"
