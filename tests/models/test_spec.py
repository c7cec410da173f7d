"""The grammar of a spec: keys, lines, arguments, named blocks, and errors with file and line."""

import re
from fnmatch import fnmatchcase

import pytest

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.models import spec
from convoy.models.layer_types import LAYERS, abbreviate
from convoy.models.shapes import infer
from convoy.models.spec import MAX_DEPTH, MAX_LAYERS, SYNONYMS, Spec, SpecParser
from network_specs import SHIPPED

LAYER_LIST = "layers: [flatten, {dense: classes}]\n"
HERE = "networks/mine.yaml:1, layer 1"
CONV_DEFAULTS = {"stride": 1, "padding": 0, "padding_mode": "zeros", "dilation": 1, "groups": 1, "bias": True}


def test_every_synonym_leads_to_an_existing_word():
    assert set(SYNONYMS.values()) <= set(LAYERS)


def pattern(message):
    """Make a pattern of a message whose `…` stands for any text."""
    return re.sub(r"([\[\]?])", r"[\1]", message).replace("…", "*")


def at_first_line(layer):
    return f"layers: [{layer}, flatten, {{dense: classes}}]\n"


def test_a_lone_value_is_the_first_argument(load):
    short = load("layers: [{max_pool: 2}, {prelu: 0.1}, flatten, {dense: classes}]").model_dump()
    named = "[{max_pool: {kernel: 2}}, {prelu: {init: 0.1}}, {flatten: {}}, {dense: {units: classes}}]"
    assert short == load(f"layers: {named}").model_dump()


def test_omitted_arguments_have_torchs_defaults():
    conv, pool, norm, response = SpecParser().layers(
        [{"conv": {"filters": 2, "kernel": 3}}, {"max_pool": 2}, "norm", {"local_response_norm": 5}]
    )
    assert conv.model_dump()["conv"] == CONV_DEFAULTS | {"filters": 2, "kernel": 3}
    assert pool.model_dump()["max_pool"] == {"kernel": 2, "stride": None, "padding": 0, "ceil": False}
    assert norm.model_dump()["norm"] == {"over": "batch", "eps": 1e-5, "momentum": 0.1, "scale": True}
    assert response.model_dump()["local_response_norm"] == {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}


def test_a_layer_has_the_location_it_was_read_from(load):
    mine = load("layers:\n  - conv:\n      filters: 2\n      kernel: 1\n  - flatten\n  - dense: classes\n")
    assert [layer.location for layer in mine.layers] == [
        "networks/mine.yaml:2, layer 1 (conv)",
        "networks/mine.yaml:5, layer 2 (flatten)",
        "networks/mine.yaml:6, layer 3 (dense)",
    ]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("{maxpool: 2}", ": unknown layer `maxpool`; did you mean `max_pool`?"),
        ("zzz", f": unknown layer `zzz`; there are: {', '.join(sorted(LAYERS))}"),
        ("Conv2d", ": unknown layer `Conv2d`; did you mean `conv`?"),
        ("ReLU", ": unknown layer `ReLU`; did you mean `relu`?"),
        ("{Linear: 10}", ": unknown layer `Linear`; did you mean `dense`?"),
        ("BatchNorm2d", ": unknown layer `BatchNorm2d`; did you mean `norm`?"),
        ("{GroupNorm: 2}", ": unknown layer `GroupNorm`; did you mean `group_norm`?"),
        ("{squeeze_excitation: [relu]}", ": unknown layer `squeeze_excitation`; did you mean `multiply`?"),
        ("group_norm", " (group_norm): `groups` is missing"),
        ("{group: {layers: [whiten]}}", " (group), layer 1 (whiten): it must be the first layer of the outermost list…"),
        ("{residual: {body: [whiten]}}", " (residual), body layer 1 (whiten): it must be the first layer…"),
        ("{whiten: {filters: 3}}", " (whiten): unknown argument `filters`; there are: bias, eps, kernel, padding, stride"),
        ("{scale: {}}", " (scale): `factor` is missing"),
        ("{layer_norm: {groups: 2}}", " (layer_norm): unknown argument `groups`; there are: eps"),
        ("{multiply: }", " (multiply), layers: expected a list … found None"),
        ("{multiply: []}", " (multiply), layers: expected a list … found []"),
        ("{multiply: [global_avg_pool, {sigmoyd: {}}]}", " (multiply), layer 2: unknown layer `sigmoyd`; did you mean `sigmoid`?"),
        ("rlu", ": unknown layer `rlu`; did you mean `relu`?"),
        ("{relu: {}, flatten: {}}", ": expected one layer, … found {relu: {}, flatten: {}}"),
        ("[relu]", ": expected one layer, … found ['relu']"),
        ("5", ": expected one layer, … found 5"),
        ("null", ": expected one layer, … found None"),
        ("{conv: {filter: 3, kernel: 3}}", " (conv): unknown argument `filter`; did you mean `filters`?"),
        ("{dense: {units: 3, word: conv}}", " (dense): unknown argument `word`; there are: bias, units"),
        ("{dense: {units: 3, location: here}}", " (dense): unknown argument `location`; there are: bias, units"),
        ("{conv: 6}", " (conv): `kernel` is missing"),
        ("{conv: }", " (conv): `filters` is None, … integer; `kernel` is missing"),
        ("{relu: 2}", " (relu) takes no arguments, found 2. Write `- relu`."),
        ("{relu: }", " (relu) takes no arguments, found None. Write `- relu`."),
        ("{flatten: 1}", " (flatten) takes no arguments, found 1. Write `- flatten`."),
        ("{flatten: {start: 1}}", " (flatten): unknown argument `start`; it takes none"),
        ("{elu: {beta: 1}}", " (elu): unknown argument `beta`; there are: alpha"),
        ("{softplus: {bet: 1}}", " (softplus): unknown argument `bet`; did you mean `beta`?"),
        ("{relu: {name: 3}}", " (relu): `name` is 3, … string"),
        ("{relu: {name: a.b}}", " (relu): `a.b` is not a name: …"),
        ("{repeat: 2}", " (repeat): `layers` is missing"),
        ("{repeat: {times: 0, layers: [relu]}}", " (repeat): `times` is 0, … 1"),
        ("{repeat: {times: 2, layers: []}}", " (repeat), layers: expected a list … found []"),
        ("{residual: {body: relu}}", " (residual), body layers: expected a list … found 'relu'"),
        ("{residual: {shortcut: [relu]}}", " (residual): `body` is missing"),
        ("{group: {layers: [relu], block: a.b}}", " (group): `a.b` is not a name: …"),
        ("{branches: }", " (branches): expected two or more lists … found None"),
        ("{branches: [[relu]]}", " (branches): expected two or more lists … found [['relu']]"),
        ("{branches: {name: x, a: [relu]}}", " (branches): expected two or more lists … found {name: 'x', a: ['relu']}"),
        ("{branches: {a: relu, b: []}}", " (branches), a layers: expected a list … found 'relu'"),
        ("{branches: {a-b: [relu], b: []}}", " (branches): `a-b` is not a name: …"),
        ("{auxiliary: {weight: 0, layers: [relu]}}", " (auxiliary): `weight` is 0, … greater than 0"),
        ("{auxiliary: {weight: 10.5, layers: [relu]}}", " (auxiliary): `weight` is 10.5, … 10"),
        ("{auxiliary: {layers: [relu]}}", " (auxiliary): `weight` is missing"),
        ("{residual: [{auxiliary: {weight: 1, layers: [relu]}}]}", " (residual), body layer 1 (auxiliary): … outermost list …"),
        ("{group: {layers: [{auxiliary: {weight: 1, layers: [relu]}}]}}", " (group), layer 1 (auxiliary): … outermost list …"),
        ("{residual: [relu, {convv: 3}]}", " (residual), body layer 2: unknown layer `convv`; did you mean `conv`?"),
        ("{branches: {a: [relu], b: [{residual: {body: [relu], shortcut: [{dense: 0}]}}]}}", " (branches), b layer 1 (residual), shortcut layer 1 (dense): `units` is 0, … 1 or 'classes'"),
    ],
)  # fmt: skip
def test_an_invalid_line_is_refused_with_its_location_and_the_alternatives(refusal, layer, message):
    assert fnmatchcase(refusal(at_first_line(layer)), pattern(f"{HERE}{message}"))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("{conv: {filters: 0, kernel: 3}}", "`filters` is 0, but should be greater than or equal to 1"),
        ("{conv: {filters: 2.0, kernel: 3}}", "`filters` is 2.0, but should be a valid integer"),
        ("{conv: {filters: true, kernel: 3}}", "`filters` is True, but should be a valid integer"),
        ("{conv: {filters: $f, kernel: 3}}", "`filters` is '$f', but should be a valid integer"),
        ("{conv: {filters: 2, kernel: '3'}}", "`kernel` is '3', but should be a valid integer or [height, width]"),
        ("{conv: {filters: 2, kernel: [3]}}", "`kernel` is [3], but should be a valid integer or [height, width]"),
        ("{conv: {filters: 2, kernel: [3, 3, 3]}}", "`kernel` is [3, 3, 3], but should be a valid integer or [height, width]"),
        ("{conv: {filters: 2, kernel: [0, 3]}}", "`kernel` holds 0, but should be greater than or equal to 1"),
        ("{conv: {filters: 2, kernel: 3, padding: sam}}", "`padding` is 'sam', but should be a valid integer or [height, width] or 'same' or 'valid'"),
        ("{conv: {filters: 2, kernel: 3, padding: -1}}", "`padding` is -1, but should be greater than or equal to 0 or [height, width] or 'same' or 'valid'"),
        ("{conv: {filters: 2, kernel: 3, padding_mode: zero}}", "`padding_mode` is 'zero', but should be 'zeros', 'replicate', 'reflect' or 'circular'"),
        ("{conv: {filters: 2, kernel: 3, stride: 0, bias: 1}}", "`stride` is 0, but should be greater than or equal to 1 or [height, width]; `bias` is 1, but should be a valid boolean"),
        ("{norm: layer}", "`over` is 'layer', but should be 'batch'"),
        ("{norm: {eps: 0}}", "`eps` is 0, but should be greater than 0"),
        ("{norm: {eps: .inf}}", "`eps` is inf, but should be a finite number"),
        ("{whiten: 17}", "`kernel` is 17, but at most 16 pixels are whitened"),
        ("{whiten: {eps: 0}}", "`eps` is 0, but should be greater than 0"),
        ("{norm: {momentum: 1.5}}", "`momentum` is 1.5, but should be less than or equal to 1"),
        ("{norm: {momentum: 0}}", "`momentum` is 0, but should be greater than 0"),
        ("{norm: {scale: 1}}", "`scale` is 1, but should be a valid boolean"),
        ("{group_norm: 0}", "`groups` is 0, but should be greater than or equal to 1"),
        ("{layer_norm: -1}", "`eps` is -1, but should be greater than 0"),
        ("{scale: 0}", "`factor` is 0, which erases its input, but should be another number"),
        ("{scale: .inf}", "`factor` is inf, but should be a finite number"),
        ("{scale: 1/256}", "`factor` is '1/256', but should be a valid number"),
        ("{residual: {body: [relu], drop: 1}}", "`drop` is 1, but should be less than 1"),
        ("{residual: {body: [relu], drop: -0.1}}", "`drop` is -0.1, but should be greater than or equal to 0"),
        ("{max_pool: {kernel: 3, padding: 2}}", "`padding` is 2, but at most half of the kernel (1) fits"),
        ("{avg_pool: {kernel: [4, 1], padding: [2, 1]}}", "`padding` is 1, but at most half of the kernel (0) fits"),
        ("{dropout: 1.0}", "`share` is 1.0, but should be less than 1"),
        ("{dense: clases}", "`units` is 'clases', but should be a valid integer or 'classes'"),
        ("{elu: big}", "`alpha` is 'big', but should be a number"),
        ("{elu: true}", "`alpha` is True, but should be a number"),
        ("{elu: .nan}", "`alpha` is nan, but should be a number"),
        ("{gelu: fast}", "`approximate` is 'fast', but should be 'none' or 'tanh'"),
        ("threshold", "`threshold` and `value` must both be given"),
        ("{threshold: 0.1}", "`threshold` and `value` must both be given"),
        ("{hardtanh: {min_val: 1}}", "`min_val` is 1, but should be less than `max_val`, 1"),
        ("{rrelu: {upper: 0.1}}", "`lower` is 0.125, but should be less than `upper`, 0.1"),
        ("{celu: 0}", "`alpha` is 0, but should be another number"),
        ("{softshrink: -0.5}", "`lambd` is -0.5, but should be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_the_allowed_ones(refusal, layer, message):
    word = layer.strip("{").split(":")[0]
    assert refusal(at_first_line(layer)) == f"{HERE} ({word}): {message}"


def test_whitening_behind_another_layer_is_refused(refusal):
    message = refusal(
        "blocks: {stem: {layers: [whiten]}}\nlayers:\n  - relu\n  - whiten\n  - flatten\n  - dense: classes\n"
    )
    assert message.startswith("networks/mine.yaml:4, layer 2 (whiten): it must be the first layer")
    assert "layer 1 (stem), layer 1 (whiten)" in refusal(
        "blocks: {stem: {layers: [whiten]}}\nlayers: [stem, flatten, {dense: classes}]\n"
    )


@pytest.mark.parametrize("layers", ["[]", "relu", "", "{conv: 3}"])
def test_a_spec_without_a_list_of_layers_is_refused_at_the_line(refusal, layers):
    message = refusal(f"layers: {layers}\n")
    assert message.startswith("networks/mine.yaml:1, layers: expected a list with one layer per line, found ")


def test_errors_in_a_spec_without_a_file_name_the_layer_alone():
    with pytest.raises(Exception, match=r"^layer 2: unknown layer `reluu`; did you mean `relu`\?$"):
        Spec.model_validate({"name": "some", "layers": ["relu", "reluu"]})


def test_branches_are_numbered_or_named_and_an_empty_one_passes_on_what_arrives(load):
    mine = load(
        """
        layers:
          - branches: [[{conv: {filters: 2, kernel: 1}}], []]
          - branches: {name: fork, left: [], right: [{conv: {filters: 3, kernel: 1}}]}
          - branches: {name: [relu], other: []}
          - flatten
          - dense: classes
        """
    )
    steps = infer(mine, 2, 8)[:3]
    assert [(step.name, list(step.layer.branches), step.output) for step in steps] == [
        ("branches1", ["branch1", "branch2"], (5, 8, 8)),
        ("fork", ["left", "right"], (8, 8, 8)),
        ("branches3", ["name", "other"], (16, 8, 8)),
    ]


def repeated(times):
    return f"layers: [{{repeat: {{times: {times}, layers: [relu]}}}}, flatten, {{dense: classes}}]\n"


def blocks_within_blocks():
    blocks = "".join(f"  b{n}: {{layers: [{', '.join([f'b{n + 1}'] * 10)}]}}\n" for n in range(20))
    return f"blocks:\n{blocks}  b20: {{layers: [relu]}}\nlayers: [b0]\n"


def aliases_of_aliases():
    bomb = "[relu, relu]"
    for n in range(9):
        bomb = f"[{{residual: &a{n} {bomb}}}, {', '.join([f'{{residual: *a{n}}}'] * 9)}]"
    return f"layers: {bomb}\n"


@pytest.mark.parametrize(
    "text",
    [
        repeated(MAX_LAYERS - 2),
        "layers: [{repeat: {times: 101, layers: [{repeat: {times: 99, layers: [relu]}}]}}]",
        repeated(10**12),
        blocks_within_blocks(),
        aliases_of_aliases(),
    ],
    ids=["repeated", "repeated twice", "repeated for ever", "blocks within blocks", "aliases of aliases"],
)
def test_more_layers_than_any_network_has_are_refused_before_they_are_made(refusal, text):
    assert "more than 10,000 layers" in refusal(text)


def test_layers_are_taken_up_to_the_limit(load):
    assert load(repeated(MAX_LAYERS - 3)).layers[0].times == MAX_LAYERS - 3


@pytest.mark.parametrize(
    "context", ["{}", "{{conv: {{filters: {}, kernel: 3}}}}", "{{elu: {}}}", "{{branches: {{a: {}}}}}"]
)
def test_aliases_of_aliases_where_no_layer_belongs_are_refused_in_few_words(refusal, context):
    bomb = "[1, 2]"
    for n in range(9):
        bomb = f"[&a{n} {bomb}, {', '.join([f'*a{n}'] * 9)}]"
    assert len(refusal(f"layers: [{context.format(bomb)}]\n")) < 400


def nested(times):
    layer = "relu"
    for _ in range(times):
        layer = f"{{residual: [{layer}]}}"
    return f"layers: [{layer}, flatten, {{dense: classes}}]\n"


def test_lists_of_layers_are_nested_up_to_a_limit(load, refusal):
    assert infer(load(nested(MAX_DEPTH - 1)), 2, 8)[0].output == (3, 8, 8)
    message = refusal(nested(MAX_DEPTH))
    assert message.startswith("networks/mine.yaml:1, layer 1 (residual), body layer 1 (residual), ")
    assert message.endswith(", body layers: nested more than 32 lists deep.")


def names(steps):
    return [step.name for step in steps]


def test_a_block_becomes_a_named_group_with_its_arguments_and_defaults_filled_in(load):
    mine = load(
        """
        blocks:
          unit: {takes: {filters, kernel: 3}, layers: [{conv: {filters: $filters, kernel: $kernel}}, relu]}
        layers: [{unit: 4}, {unit: {kernel: 1, filters: 5, name: middle}}, {unit: {filters: 4}}, flatten, {dense: classes}]
        """
    )
    first, second, third, *_ = mine.model_dump(mode="json")["layers"]
    conv = {"conv": CONV_DEFAULTS | {"filters": 4, "kernel": 3}}
    assert first == third == {"group": {"layers": [conv, {"relu": {}}], "block": "unit"}}
    assert second["group"]["layers"][0] == {"conv": CONV_DEFAULTS | {"filters": 5, "kernel": 1}}
    assert names(infer(mine, 2, 8)) == ["unit1", "middle", "unit3", "flatten1", "dense1"]


def test_a_block_may_use_another_one_and_pass_arguments_on(load):
    mine = load(
        """
        blocks:
          inner: {takes: {filters}, layers: [{conv: {filters: $filters, kernel: 1}}]}
          outer: {takes: {wide}, layers: [{inner: 2}, {inner: $wide}]}
        layers: [{outer: 7}, flatten, {dense: classes}]
        """
    )
    (inner,) = infer(mine, 2, 8)[0].parts
    assert [step.output for step in inner] == [(2, 8, 8), (7, 8, 8)]


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
    outer = infer(mine, 2, 8)[0].parts[0][0]
    body = outer.parts[0]
    assert names(body) == ["relu1", "adding1"]
    assert names(body[1].parts[0][0].parts[0]) == ["tanh1"]


def test_a_block_can_choose_a_layer_by_its_argument(load):
    block = "blocks: {then: {takes: {what: relu}, layers: [$what]}}"
    mine = load(f"{block}\nlayers: [then, {{then: tanh}}, flatten, {{dense: classes}}]")
    assert [names(step.parts[0]) for step in infer(mine, 2, 8)[:2]] == [["relu1"], ["tanh1"]]


@pytest.mark.parametrize(
    ("blocks", "line", "message"),
    [
        ("{b: {takes: {x, y: 2}, layers: [{conv: {filters: $x, kernel: $y}}]}}", "{b: {y: 3}}", "layer 1 (b): `x` must be given. The block takes: x, y"),
        ("{b: {takes: {x}, layers: [{dense: $x}]}}", "{b: {xs: 3}}", "layer 1 (b): unknown argument `xs`; did you mean `x`?"),
        ("{b: {takes: {x}, layers: [{dense: $x}]}}", "{b: }", "layer 1 (b): `x` must be given. The block takes: x"),
        ("{b: {layers: [relu]}}", "{b: {x: 3}}", "layer 1 (b): unknown argument `x`; it takes none"),
        ("{b: {layers: [relu]}}", "{b: 3}", "layer 1 (b) takes no arguments, found 3. Write `- b`."),
        ("{b: {takes: {x}, layers: [{dense: $x}]}}", "{b: {x: 3, name: b.c}}", "layer 1 (b): `b.c` is not a name: use only letters, digits and _"),
        ("{b: {layers: relu}}", "b", "layer 1 (b), layers: expected a list with one layer per line, found 'relu'"),
    ],
)  # fmt: skip
def test_wrong_use_of_a_block_is_refused_at_the_line_that_uses_it(refusal, blocks, line, message):
    assert refusal(f"blocks: {blocks}\nlayers:\n  - {line}\n") == f"networks/mine.yaml:3, {message}"


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("[b]", "networks/mine.yaml:1, blocks: expected `name:` with `layers:` below it, found ['b']"),
        ("\n  conv: {layers: [relu]}", "networks/mine.yaml:2, block `conv` has the name of a layer. Rename the block."),
        ("\n  relu: {layers: [tanh]}", "networks/mine.yaml:2, block `relu` has the name of a layer. Rename the block."),
        ("\n  a-b: {layers: [relu]}", "networks/mine.yaml:2, block `a-b`: a name has only letters, digits and _. Rename the block."),
        ("\n  b: [relu]", "networks/mine.yaml:2, block `b` must have `layers:` and a list below it, found ['relu']"),
        ("\n  b:\n    layers: [relu]\n    take: {x}", "networks/mine.yaml:4, block `b`: unknown key `take`; did you mean `takes`?"),
        ("\n  b: {takes: [x], layers: [{dense: $x}]}", "networks/mine.yaml:2, block `b`: `takes` lists arguments, such as {filters, stride: 1} (`name` is reserved), found ['x']"),
        ("\n  b: {takes: {name}, layers: [{dense: $name}]}", "networks/mine.yaml:2, block `b`: `takes` lists arguments, such as {filters, stride: 1} (`name` is reserved), found {name: None}"),
        ("\n  b:\n    takes: {x: 1}\n    layers: [relu]", "networks/mine.yaml:3, block `b` takes `x`, but none of its layers uses `$x`. Use it, or remove it."),
    ],
)  # fmt: skip
def test_an_invalid_block_is_refused_at_its_line(refusal, blocks, message):
    assert refusal(f"blocks: {blocks}\nlayers: [flatten, {{dense: classes}}]\n") == message


@pytest.mark.parametrize(
    ("takes", "uses", "call", "message"),
    [
        ("{filters}", "[{dense: $filters}]", "b: 1", "`filter`; did you mean `filters`?"),
        ("{}", "[relu]", "b: {}", "`filter`; it takes none: add `takes: {filter}`"),
    ],
)
def test_an_argument_that_the_block_does_not_take_is_refused_where_it_is_used(
    refusal, takes, uses, call, message
):
    block = f"    takes: {takes}\n    layers:\n      - residual: {uses}\n      - dense: $filter\n"
    message = f"networks/mine.yaml:6, block `b` takes no argument {message}"
    assert refusal(f"blocks:\n  b:\n{block}layers: [{{{call}}}]\n") == message


@pytest.mark.parametrize(
    ("blocks", "cycle"),
    [
        ("a: {layers: [relu, {residual: [a]}]}", "a → a"),
        ("a: {layers: [b]}\n  b: {layers: [{group: {layers: [a]}}]}", "a → b → a"),
        ("a: {layers: [b]}\n  b: {layers: [c]}\n  c: {layers: [b]}", "b → c → b"),
    ],
)
def test_a_block_that_contains_itself_is_refused_with_the_cycle(refusal, blocks, cycle):
    message = refusal(f"blocks:\n  {blocks}\nlayers: [a]\n")
    line = 1 + len(blocks.splitlines())
    assert message.startswith(f"networks/mine.yaml:{line}, layer 1 (a), ")
    assert message.endswith(f": block `{cycle[0]}` contains itself: {cycle}.")


def test_a_block_that_passes_itself_on_as_an_argument_contains_itself(refusal):
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


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (3, "3"),
        (None, "None"),
        ([["relu"]], "[['relu']]"),
        ({"a": 1, "b": [2]}, "{a: 1, b: [2]}"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, 4, …]"),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, "{a: 1, b: 2, c: 3, d: 4, …}"),
        ([[[1]]], "[[[…]]]"),
        ("x" * 100, "'" + "x" * 78 + "…"),
    ],
)
def test_a_value_is_abbreviated_for_a_message(value, written):
    assert abbreviate(value) == written


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_shipped_network_is_rebuilt_by_its_plain_data(name):
    shipped = spec.load(name, SHIPPED)
    rebuilt = Spec.model_validate(yaml.load(yaml.dump(shipped.model_dump(mode="json"))))
    assert rebuilt.model_dump() == shipped.model_dump()
    assert len(rebuilt.layers) == len(shipped.layers) > 0


def test_the_plain_data_hold_what_decides_the_network_and_no_more(load):
    mine = load(LAYER_LIST + "init: kaiming\ntwin: vgg11\nmade_for: {image_px: 8, classes: 2}\n")
    assert mine.model_dump(mode="json") == {
        "name": "mine",
        "layers": [{"flatten": {}}, {"dense": {"units": "classes", "bias": True}}],
        "init": "kaiming",
        "twin": "vgg11",
    }
    assert (mine.made_for.image_px, mine.made_for.classes) == (8, 2)


@pytest.mark.parametrize(
    ("existing", "hint"),
    [
        (["lenet5", "vgg16"], r"; did you mean `lenet5`\?"),
        (["mine"], r"; there are: mine\."),
        ([], r"; the folder has none\."),
    ],
)
def test_an_unknown_network_is_refused_with_the_existing_ones(tmp_path, existing, hint):
    for name in existing:
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(RequestError, match=rf"no network `lenet` in \S*/{hint} Set network\.name") as caught:
        spec.load("lenet", tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer: [relu]\n", ":1: unknown key `layer`; did you mean `layers`?"),
        (LAYER_LIST + "extras: 3\n", ":2: unknown key `extras`; there are: blocks, init, layers, made_for, timm, torchvision, twin"),
        ("init: torch\n", " must have either `layers:`, `torchvision: NAME` or `timm: NAME`."),
        ("torchvision: resnet18\n" + LAYER_LIST, ":2: `layers` cannot be combined with `torchvision:`, which names a whole network. Keep either `layers:` or `torchvision: NAME`."),
        ("torchvision: resnet18\ntwin: resnet18\n", ":2: `twin` cannot be combined with `torchvision:`, which names a whole network. Keep either `layers:` or `torchvision: NAME`."),
        ("torchvision: resnet_18\n", ":1: torchvision has no classifier `resnet_18`; did you mean `resnet18`?"),
        ("torchvision: fcn_resnet50\n", ":1: torchvision has no classifier `fcn_resnet50`; did you mean `resnet50`?"),
        (LAYER_LIST + "init: xavier\n", ":2: `init` is 'xavier', but should be 'torch', 'kaiming' or 'dirac'"),
        (LAYER_LIST + "twin: 5\n", ":2: `twin` is 5, but should be a valid string"),
        (LAYER_LIST + "made_for: {image_px: 3}\n", ":2: `made_for.classes` is missing"),
        (LAYER_LIST + "made_for:\n  image_px: 0\n  classes: 2\n", ":3: `made_for.image_px` is 0, but should be greater than or equal to 1"),
        (LAYER_LIST + "made_for:\n  image_px: 8\n  classes: 2\n  clases: 2\n", ":5: unknown key `made_for.clases`; did you mean `classes`?"),
        (LAYER_LIST + "init: 3\ntwin: 5\n", ":2: `init` is 3, but should be 'torch', 'kaiming' or 'dirac'\nnetworks/mine.yaml:3: `twin` is 5, but should be a valid string"),
    ],
)  # fmt: skip
def test_an_invalid_key_is_refused_at_its_line(refusal, text, message):
    assert refusal(text) == f"networks/mine.yaml{message}"


def test_a_classifier_of_torchvision_is_one_line(load):
    made = load("torchvision: mobilenet_v2\n").model_dump(mode="json")
    assert made == {"name": "mine", "torchvision": "mobilenet_v2", "init": "torch"}
