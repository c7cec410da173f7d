"""Named blocks: what they take, how they are filled in, and how they may not contain each other."""

import pytest

from convoy.models.fitting import placed


def names(steps):
    return [step.name for step in steps]


def leaves(steps):
    return [step.leaves for step in steps]


CONV_BLOCK = """
    blocks:
      unit:
        takes: {filters, kernel: 3}
        layers:
          - conv: {filters: $filters, kernel: $kernel, padding: same}
          - relu
"""
HEAD = """
      - flatten
      - dense: classes
"""


def test_a_block_becomes_a_group_with_its_arguments_and_defaults_filled_in(load):
    mine = load(
        CONV_BLOCK + "    layers:\n      - unit: {filters: 4}\n      - unit: {kernel: 1, filters: 5}" + HEAD
    )

    assert mine.model_dump(mode="json")["layers"][:2] == [
        load_conv(4, 3),
        load_conv(5, 1),
    ]


def load_conv(filters, kernel):
    conv = {
        "filters": filters,
        "kernel": kernel,
        "stride": 1,
        "padding": "same",
        "padding_mode": "zeros",
        "dilation": 1,
        "groups": 1,
        "bias": True,
    }
    return {"group": {"layers": [{"conv": conv}, {"relu": {}}], "block": "unit"}}


def test_an_argument_that_stands_alone_is_the_blocks_first(load):
    mine = load(CONV_BLOCK + "    layers:\n      - unit: 4\n      - unit: {filters: 4}" + HEAD)

    first, second, *_ = mine.model_dump(mode="json")["layers"]

    assert first == second


def test_a_block_is_named_by_its_word_and_number_or_as_the_line_says(load):
    mine = load(
        CONV_BLOCK
        + "    layers:\n      - unit: 4\n      - unit: {filters: 4, name: middle}\n      - unit: 4"
        + HEAD
    )

    assert names(placed(mine, 2, 8)) == ["unit1", "middle", "unit3", "flatten1", "dense1"]


def test_a_block_may_use_another_one_and_hand_arguments_on(load):
    mine = load(
        """
        blocks:
          inner: {takes: {filters}, layers: [{conv: {filters: $filters, kernel: 1}}]}
          outer: {takes: {wide}, layers: [{inner: 2}, {inner: $wide}]}
        layers: [{outer: 7}, flatten, {dense: classes}]
        """
    )

    (inner,) = placed(mine, 2, 8)[0].parts

    assert leaves(inner) == [(2, 8, 8), (7, 8, 8)]


def test_layers_can_be_an_argument_and_may_use_the_block_that_takes_them(load):
    mine = load(
        """
        blocks:
          adding: {takes: {what}, layers: [{residual: $what}]}
        layers:
          - adding: {what: [relu, {adding: {what: [tanh]}}]}
          - flatten
          - dense: classes
        """
    )

    outer = placed(mine, 2, 8)[0].parts[0][0]
    body = outer.parts[0]

    assert names(body) == ["relu1", "adding1"]
    assert names(body[1].parts[0][0].parts[0]) == ["tanh1"]


def test_a_block_can_choose_a_layer_by_its_argument(load):
    mine = load(
        "blocks: {then: {takes: {what: relu}, layers: [$what]}}\nlayers: [then, {then: tanh}, flatten, {dense: classes}]"
    )

    assert [names(step.parts[0]) for step in placed(mine, 2, 8)[:2]] == [["relu1"], ["tanh1"]]


@pytest.mark.parametrize(
    ("blocks", "line", "said"),
    [
        ("{b: {takes: {x, y: 2}, layers: [{conv: {filters: $x, kernel: $y}}]}}", "{b: {y: 3}}", "layer 1 (b): `x` must be given. The block takes: x, y"),
        ("{b: {takes: {x}, layers: [{dense: $x}]}}", "{b: {xs: 3}}", "layer 1 (b): unknown argument `xs`; did you mean `x`?"),
        ("{b: {takes: {x}, layers: [{dense: $x}]}}", "{b: }", "layer 1 (b): `x` must be given. The block takes: x"),
        ("{b: {layers: [relu]}}", "{b: {x: 3}}", "layer 1 (b): unknown argument `x`; it takes none"),
        ("{b: {layers: [relu]}}", "{b: 3}", "layer 1 (b) takes no arguments, found 3. Write `- b`."),
        ("{b: {takes: {x}, layers: [{dense: $x}]}}", "{b: {x: 3, name: b.c}}", "layer 1 (b): `b.c` is no name: only letters, digits and _ make one"),
        ("{b: {layers: relu}}", "b", "layer 1 (b), layers: expected a list with one layer per line, found 'relu'"),
    ],
)  # fmt: skip
def test_wrong_use_of_a_block_is_refused_at_the_line_that_uses_it(refusal, blocks, line, said):
    assert refusal(f"blocks: {blocks}\nlayers:\n  - {line}\n") == f"networks/mine.yaml:3, {said}"


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ("[b]", "networks/mine.yaml:1, blocks: expected `name:` with `layers:` below it, found ['b']"),
        ("\n  conv: {layers: [relu]}", "networks/mine.yaml:2, block `conv` has the name of a layer. Call it something else."),
        ("\n  relu: {layers: [tanh]}", "networks/mine.yaml:2, block `relu` has the name of a layer. Call it something else."),
        ("\n  a-b: {layers: [relu]}", "networks/mine.yaml:2, block `a-b`: only letters, digits and _ make a name. Call it something else."),
        ("\n  b: [relu]", "networks/mine.yaml:2, block `b` needs `layers:` and a list below it, found ['relu']"),
        ("\n  b:\n    layers: [relu]\n    take: {x}", "networks/mine.yaml:4, block `b`: unknown key `take`; did you mean `takes`?"),
        ("\n  b: {takes: [x], layers: [{dense: $x}]}", "networks/mine.yaml:2, block `b`: `takes` lists arguments, such as {filters, stride: 1} (`name` is every layer's), found ['x']"),
        ("\n  b: {takes: {name}, layers: [{dense: $name}]}", "networks/mine.yaml:2, block `b`: `takes` lists arguments, such as {filters, stride: 1} (`name` is every layer's), found {name: None}"),
        ("\n  b:\n    takes: {x: 1}\n    layers: [relu]", "networks/mine.yaml:3, block `b` takes `x`, but none of its layers says `$x`. Use it, or take it out."),
    ],
)  # fmt: skip
def test_a_block_that_is_none_is_refused_at_its_line(refusal, blocks, said):
    assert refusal(f"blocks: {blocks}\nlayers: [flatten, {{dense: classes}}]\n") == said


@pytest.mark.parametrize(
    ("takes", "said"),
    [
        ("{filters}", "takes no argument `filter`; did you mean `filters`?"),
        ("{}", "takes no argument `filter`; it takes none: add `takes: {filter}`"),
    ],
)
def test_an_argument_that_the_block_does_not_take_is_refused_where_it_is_asked_for(refusal, takes, said):
    used = "[{dense: $filters}]" if takes == "{filters}" else "[relu]"
    text = f"blocks:\n  b:\n    takes: {takes}\n    layers:\n      - residual: {used}\n      - dense: $filter\nlayers: [{{b: {{{'filters: 1' if takes != '{}' else ''}}}}}]\n"

    assert refusal(text) == f"networks/mine.yaml:6, block `b` {said}"


@pytest.mark.parametrize(
    ("blocks", "way"),
    [
        ("a: {layers: [relu, {residual: [a]}]}", "a → a"),
        ("a: {layers: [b]}\n  b: {layers: [{group: {layers: [a]}}]}", "a → b → a"),
        ("a: {layers: [b]}\n  b: {layers: [c]}\n  c: {layers: [b]}", "b → c → b"),
    ],
)
def test_a_block_that_contains_itself_is_refused_with_the_way(refusal, blocks, way):
    message = refusal(f"blocks:\n  {blocks}\nlayers: [a]\n")

    line = 1 + len(blocks.splitlines())
    assert message.startswith(f"networks/mine.yaml:{line}, layer 1 (a), ")
    assert message.endswith(f": block `{way[0]}` contains itself: {way}. Let one of them use layers alone.")


def test_a_block_that_hands_itself_on_as_layers_is_found_too(refusal):
    message = refusal(
        """
        blocks:
          adding: {takes: {what}, layers: [{residual: $what}]}
          a: {layers: [{adding: {what: [relu, a]}}]}
        layers: [a]
        """
    )

    assert "block `a` contains itself: a → a." in message


def test_aliases_of_aliases_in_a_block_cost_neither_time_nor_memory(refusal):
    bomb = "[relu, relu]"
    for n in range(30):
        bomb = f"[&a{n} {bomb}, *a{n}]"

    message = refusal(f"blocks: {{b: {{layers: {bomb}}}}}\nlayers: [b]\n")

    assert message.startswith("networks/mine.yaml:1, layer 1 (b), layer 1: expected one layer")
    assert len(message) < 400
