import pytest

from convoy.models.fitting import placed
from convoy.models.layer_types import LAYERS
from convoy.models.parser import ELSEWHERE, MOST_LAYERS, MOST_NESTED, Reader
from convoy.models.spec import Spec

HERE = "networks/mine.yaml:1, layer 1"


@pytest.mark.parametrize("word", ELSEWHERE.values())
def test_what_other_libraries_call_a_layer_leads_to_a_word_that_there_is(word):
    assert word in LAYERS


def at_first_line(layer: str) -> str:
    return f"layers: [{layer}, flatten, {{dense: classes}}]\n"


def test_an_argument_that_stands_alone_is_the_first(load):
    short = load("layers: [{max_pool: 2}, {prelu: 0.1}, flatten, {dense: classes}]")
    named = load(
        "layers: [{max_pool: {kernel: 2}}, {prelu: {init: 0.1}}, {flatten: {}}, {dense: {units: classes}}]"
    )

    assert short.model_dump() == named.model_dump()


def test_every_argument_that_is_not_given_has_torchs_default():
    conv, pool, norm, response = Reader().layers(
        [{"conv": {"filters": 2, "kernel": 3}}, {"max_pool": 2}, "norm", {"local_response_norm": 5}]
    )

    assert conv.model_dump()["conv"] == {
        "filters": 2,
        "kernel": 3,
        "stride": 1,
        "padding": 0,
        "padding_mode": "zeros",
        "dilation": 1,
        "groups": 1,
        "bias": True,
    }
    assert pool.model_dump()["max_pool"] == {"kernel": 2, "stride": None, "padding": 0, "ceil": False}
    assert norm.model_dump()["norm"] == {"over": "batch", "eps": 1e-5}
    assert response.model_dump()["local_response_norm"] == {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}


def test_a_layer_remembers_the_line_it_was_read_from(load):
    mine = load("layers:\n  - conv:\n      filters: 2\n      kernel: 1\n  - flatten\n  - dense: classes\n")

    assert [layer.place for layer in mine.layers] == [
        "networks/mine.yaml:2, layer 1 (conv)",
        "networks/mine.yaml:5, layer 2 (flatten)",
        "networks/mine.yaml:6, layer 3 (dense)",
    ]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("{maxpool: 2}", ": unknown layer `maxpool`; did you mean `max_pool`?"),
        ("zzz", f": unknown layer `zzz`; there are: {', '.join(sorted(LAYERS))}"),
        ("Conv2d", ": unknown layer `Conv2d`; did you mean `conv`?"),
        ("ReLU", ": unknown layer `ReLU`; did you mean `relu`?"),
        ("{Linear: 10}", ": unknown layer `Linear`; did you mean `dense`?"),
        ("BatchNorm2d", ": unknown layer `BatchNorm2d`; did you mean `norm`?"),
        ("rlu", ": unknown layer `rlu`; did you mean `relu`?"),
        ("", " (flatten)"),
        ("{relu: {}, flatten: {}}", ": expected one layer, such as `- relu` or `- conv: {filters: 6, kernel: 5}`, found {relu: {}, flatten: {}}"),
        ("[relu]", ": expected one layer, such as `- relu` or `- conv: {filters: 6, kernel: 5}`, found ['relu']"),
        ("5", ": expected one layer, such as `- relu` or `- conv: {filters: 6, kernel: 5}`, found 5"),
        ("null", ": expected one layer, such as `- relu` or `- conv: {filters: 6, kernel: 5}`, found None"),
        ("{conv: {filter: 3, kernel: 3}}", " (conv): unknown argument `filter`; did you mean `filters`?"),
        ("{dense: {units: 3, word: conv}}", " (dense): unknown argument `word`; there are: bias, units"),
        ("{dense: {units: 3, place: here}}", " (dense): unknown argument `place`; there are: bias, units"),
        ("{conv: 6}", " (conv): `kernel` is missing"),
        ("{conv: }", " (conv): `filters` is None, but should be a valid integer; `kernel` is missing"),
        ("{relu: 2}", " (relu) takes no arguments, found 2. Write `- relu`."),
        ("{relu: }", " (relu) takes no arguments, found None. Write `- relu`."),
        ("{flatten: {start: 1}}", " (flatten): unknown argument `start`; it takes none"),
        ("{elu: {beta: 1}}", " (elu): unknown argument `beta`; there are: alpha"),
        ("{softplus: {bet: 1}}", " (softplus): unknown argument `bet`; did you mean `beta`?"),
        ("{relu: {name: 3}}", " (relu): `name` is 3, but should be a valid string"),
        ("{relu: {name: a.b}}", " (relu): `a.b` is no name: only letters, digits and _ make one"),
        ("{repeat: 2}", " (repeat): `layers` is missing"),
        ("{repeat: {times: 0, layers: [relu]}}", " (repeat): `times` is 0, but should be greater than or equal to 1"),
        ("{repeat: {times: 2, layers: []}}", " (repeat), layers: expected a list with one layer per line, found []"),
        ("{residual: {body: relu}}", " (residual), body layers: expected a list with one layer per line, found 'relu'"),
        ("{residual: {shortcut: [relu]}}", " (residual): `body` is missing"),
        ("{group: {layers: [relu], block: a.b}}", " (group): `a.b` is no name: only letters, digits and _ make one"),
        ("{branches: }", " (branches): expected two or more lists of layers, such as {narrow: [{conv: …}], wide: [{conv: …}]}, found None"),
        ("{branches: [[relu]]}", " (branches): expected two or more lists of layers, such as {narrow: [{conv: …}], wide: [{conv: …}]}, found [['relu']]"),
        ("{branches: {name: x, a: [relu]}}", " (branches): expected two or more lists of layers, such as {narrow: [{conv: …}], wide: [{conv: …}]}, found {name: 'x', a: ['relu']}"),
        ("{branches: {a: relu, b: []}}", " (branches), a layers: expected a list with one layer per line, found 'relu'"),
        ("{branches: {a-b: [relu], b: []}}", " (branches): `a-b` is no name: only letters, digits and _ make one"),
        ("{auxiliary: {weight: 0, layers: [relu]}}", " (auxiliary): `weight` is 0, but should be greater than 0"),
        ("{auxiliary: {weight: 10.5, layers: [relu]}}", " (auxiliary): `weight` is 10.5, but should be less than or equal to 10"),
        ("{auxiliary: {layers: [relu]}}", " (auxiliary): `weight` is missing"),
        ("{residual: [{auxiliary: {weight: 1, layers: [relu]}}]}", " (residual), body layer 1 (auxiliary): an auxiliary head stands in the outermost list of layers. Move it there."),
        ("{group: {layers: [{auxiliary: {weight: 1, layers: [relu]}}]}}", " (group), layer 1 (auxiliary): an auxiliary head stands in the outermost list of layers. Move it there."),
        ("{residual: [relu, {convv: 3}]}", " (residual), body layer 2: unknown layer `convv`; did you mean `conv`?"),
        ("{branches: {a: [relu], b: [{residual: {body: [relu], shortcut: [{dense: 0}]}}]}}", " (branches), b layer 1 (residual), shortcut layer 1 (dense): `units` is 0, but should be greater than or equal to 1 or 'classes'"),
    ],
)  # fmt: skip
def test_a_line_that_the_grammar_does_not_have_is_refused_with_its_place_and_what_may_be(
    refusal, layer, said
):
    if layer:
        assert refusal(at_first_line(layer)) == f"{HERE}{said}"
    else:
        assert (
            refusal("layers: [{flatten: 1}]\n")
            == f"{HERE}{said} takes no arguments, found 1. Write `- flatten`."
        )


@pytest.mark.parametrize(
    ("layer", "said"),
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
def test_a_value_out_of_range_is_refused_with_what_it_may_be(refusal, layer, said):
    assert refusal(at_first_line(layer)).split("): ", 1) == [
        f"{HERE} ({layer.strip('{').split(':')[0]}",
        said,
    ]


@pytest.mark.parametrize("layers", ["[]", "relu", "", "{conv: 3}"])
def test_a_spec_without_a_list_of_layers_is_refused_at_the_line(refusal, layers):
    message = refusal(f"layers: {layers}\n")

    assert message.startswith("networks/mine.yaml:1, layers: expected a list with one layer per line, found ")


def test_the_layers_of_a_spec_that_is_no_file_have_no_place():
    with pytest.raises(Exception, match=r"^layer 2: unknown layer `reluu`; did you mean `relu`\?$"):
        Spec.model_validate({"name": "some", "layers": ["relu", "reluu"]})


def test_branches_are_numbered_or_named_and_an_empty_one_passes_on_what_arrives(load):
    mine = load(
        """
        layers:
          - branches: [[{conv: {filters: 2, kernel: 1}}], []]
          - branches: {name: fork, left: [], right: [{conv: {filters: 3, kernel: 1}}]}
          - flatten
          - dense: classes
        """
    )

    first, second, *_ = placed(mine, 2, 8)

    assert [list(first.layer.branches), list(second.layer.branches)] == [
        ["branch1", "branch2"],
        ["left", "right"],
    ]
    assert [first.name, second.name] == ["branches1", "fork"]
    assert [first.leaves, second.leaves] == [(5, 8, 8), (8, 8, 8)]


def test_a_branch_may_be_called_name(load):
    mine = load(at_first_line("{branches: {name: [relu], other: []}}"))

    assert list(mine.layers[0].branches) == ["name", "other"]


@pytest.mark.parametrize(
    "layers",
    [
        f"[{{repeat: {{times: {MOST_LAYERS}, layers: [relu]}}}}]",
        "[{repeat: {times: 101, layers: [{repeat: {times: 99, layers: [relu]}}]}}]",
        "[{repeat: {times: 1000000000000, layers: [relu]}}]",
    ],
)
def test_more_layers_than_any_network_has_are_refused_before_they_are_made(refusal, layers):
    assert refusal(f"layers: {layers}\n").endswith(": this is more than 10,000 layers. Repeat fewer blocks.")


def test_many_layers_are_taken_up_to_the_limit(load):
    mine = load(
        f"layers: [{{repeat: {{times: {MOST_LAYERS - 3}, layers: [relu]}}}}, flatten, {{dense: classes}}]\n"
    )

    assert mine.layers[0].times == MOST_LAYERS - 3


def test_layers_that_blocks_make_of_blocks_are_counted(refusal):
    blocks = "".join(f"  b{n}: {{layers: [{', '.join([f'b{n + 1}'] * 10)}]}}\n" for n in range(20))

    message = refusal(f"blocks:\n{blocks}  b20: {{layers: [relu]}}\nlayers: [b0]\n")

    assert message.endswith(": this is more than 10,000 layers. Repeat fewer blocks.")


def test_aliases_of_aliases_are_counted(refusal):
    bomb = "[relu, relu]"
    for n in range(9):
        bomb = f"[{{residual: &a{n} {bomb}}}, {', '.join([f'{{residual: *a{n}}}'] * 9)}]"

    assert refusal(f"layers: {bomb}\n").endswith(": this is more than 10,000 layers. Repeat fewer blocks.")


@pytest.mark.parametrize(
    "place", ["{}", "{{conv: {{filters: {}, kernel: 3}}}}", "{{elu: {}}}", "{{branches: {{a: {}}}}}"]
)
def test_aliases_of_aliases_in_a_wrong_place_are_refused_in_few_words(refusal, place):
    bomb = "[1, 2]"
    for n in range(9):
        bomb = f"[&a{n} {bomb}, {', '.join([f'*a{n}'] * 9)}]"

    assert len(refusal(f"layers: [{place.format(bomb)}]\n")) < 400


def nested(times: int) -> str:
    layer = "relu"
    for _ in range(times):
        layer = f"{{residual: [{layer}]}}"
    return f"layers: [{layer}, flatten, {{dense: classes}}]\n"


def test_lists_of_layers_may_stand_in_each_other_up_to_a_limit(load, refusal):
    assert placed(load(nested(MOST_NESTED - 1)), 2, 8)[0].leaves == (3, 8, 8)


def test_lists_of_layers_deeper_than_the_limit_are_refused(refusal):
    message = refusal(nested(MOST_NESTED))

    assert message.startswith("networks/mine.yaml:1, layer 1 (residual), body layer 1 (residual), ")
    assert message.endswith(", body layers: more than 32 lists of layers stand in each other. Nest fewer.")
