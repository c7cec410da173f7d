"""The shipped networks: outputs equal to those of torchvision's twins, and the sizes in their comments."""

import re

import pytest
import torch
from torchvision import models

from convoy.models import spec
from convoy.models.build import WithAuxiliary, assemble, build_layers
from convoy.models.shapes import chain, infer
from network_specs import SHIPPED, slow_but

WITHOUT_TWIN = {"airbench", "airbench_half", "alexnet_2012", "convnet", "lenet5"}
TWINS = [name for name in spec.names(SHIPPED) if name not in WITHOUT_TWIN]

HEADER = re.compile(r"# (\d+) px RGB and (\d+) classes: ([\d,]+) parameters(?:, ([\d,]+) with)?")
VOLUME = r"\d+(?:x\d+)*"
COMMENT = re.compile(rf"# (?:({VOLUME}) )?-> ({VOLUME})|# (\d+x\d+x\d+)")


def count(module):
    return sum(value.numel() for value in module.parameters())


def fill(state):
    """Random values of a size that neither fades nor grows through many layers, cheaper than drawing each."""
    noise = torch.randn(65_537)  # a prime: no two filters are alike
    for name, tensor in state.items():
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1:
            tensor.normal_(0, 0.1)
        elif tensor.dim() > 1:
            times = tensor.numel() // noise.numel() + 1
            values = noise.repeat(times)[: tensor.numel()].view(tensor.shape)
            torch.mul(values, (2 / tensor[0].numel()) ** 0.5, out=tensor)


def pair_of_twins(name, classes, px):
    """torchvision's network with random tensors, and the spec's with copies of them, in order."""
    shipped = spec.load(name, SHIPPED)
    with_heads = {"aux_logits": True, "transform_input": False, "init_weights": False}
    options = with_heads if name in {"googlenet", "inception_v3"} else {}
    with torch.device("meta"):
        twin = models.get_model(shipped.twin, num_classes=classes, **options)
    twin.to_empty(device="cpu")
    theirs = twin.state_dict()
    with torch.no_grad():
        fill(theirs)
    own = assemble(shipped, classes, px, auxiliary=True)
    # torchvision keeps auxiliary heads behind the others in one network and between them in the other.
    copied = {}
    for aside in (False, True):
        names = [key for key in own.state_dict() if key.startswith("auxiliary") == aside]
        tensors = [tensor for key, tensor in theirs.items() if key.lower().startswith("aux") == aside]
        assert len(names) == len(tensors)
        # Buffers are copied, since training mode changes them; weights are shared, since it does not.
        copied |= zip(names, [value.clone() if value.dim() < 2 else value for value in tensors], strict=True)
    own.load_state_dict(copied, assign=True)
    return own, twin


def answers(answer):
    """Logits, then those of the auxiliary heads from the lowest on."""
    if isinstance(answer, WithAuxiliary):
        return [answer.logits, *(logits for _, logits in answer.auxiliary)]
    if isinstance(answer, models.GoogLeNetOutputs):
        return [answer.logits, answer.aux_logits1, answer.aux_logits2]
    return list(answer) if isinstance(answer, tuple) else [answer]


def differences(own, twin, image, *, training):
    outputs = []
    for network in (own, twin):
        torch.manual_seed(7)  # of dropout
        with torch.no_grad():
            outputs.append(answers(network.train(training)(image)))
    assert len(outputs[0]) == len(outputs[1])
    assert all(output.std() > 1e-3 for output in outputs[1])  # two times nothing would be equal too
    return [float((mine - theirs).abs().max()) for mine, theirs in zip(*outputs, strict=True)]


def agree(name, classes, px):
    torch.manual_seed(3)
    own, twin = pair_of_twins(name, classes, px)
    image = torch.randn(2, 3, px, px)
    heads = {"googlenet": 2, "inception_v3": 1}.get(name, 0)
    evaluated = differences(own, twin, image[:1], training=False)
    trained = differences(own, twin, image, training=True)
    assert len(evaluated) == 1
    assert len(trained) == 1 + heads
    # Training mode moved the running statistics of both alike.
    moved = differences(own, twin, image[:1], training=False)
    assert max(*evaluated, *trained, *moved) <= 1e-5


def test_every_network_that_torchvision_has_too_names_its_twin():
    named = {name: spec.load(name, SHIPPED).twin for name in spec.names(SHIPPED)}
    assert {name: twin for name, twin in named.items() if twin} == {name: name for name in TWINS}


@pytest.mark.parametrize("name", slow_but({*TWINS} - {"vgg13", "vgg16", "vgg19"}, TWINS))
def test_a_network_with_the_tensors_of_its_twin_gives_its_outputs(name):
    agree(name, classes=10, px={"alexnet": 63, "inception_v3": 299}.get(name, 32))


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_a_network_gives_the_outputs_of_its_twin_at_full_size(name):
    agree(name, classes=1000, px=spec.load(name, SHIPPED).made_for.image_px)


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_a_network_has_as_many_parameters_as_its_comment_says(name):
    shipped = spec.load(name, SHIPPED)
    px, classes, alone, with_heads = HEADER.search((SHIPPED / f"{name}.yaml").read_text()).groups()
    counted = [count(assemble(shipped, int(classes), int(px), auxiliary=heads)) for heads in (False, True)]
    assert [f"{number:,}" for number in counted] == [alone, with_heads or alone]
    if shipped.made_for:
        assert (shipped.made_for.image_px, shipped.made_for.classes) == (int(px), int(classes))


@pytest.mark.parametrize("name", [name for name in spec.names(SHIPPED) if name.startswith("vgg")])
def test_a_vggs_comment_says_what_its_dense_layers_hold(name):
    network = assemble(spec.load(name, SHIPPED), 1000, 224)
    dense = sum(count(network.get_submodule(f"dense{number}")) for number in (1, 2, 3))
    assert f"{dense:,} of them in the three dense layers" in (SHIPPED / f"{name}.yaml").read_text()


def test_lenet5_has_the_papers_parameters_on_one_channel():
    steps = chain(spec.load("lenet5", SHIPPED).layers, (1, 32, 32), 10)
    assert count(build_layers(steps, auxiliary=False)) == 61_706
    assert "(61,706 on the paper's one channel)" in (SHIPPED / "lenet5.yaml").read_text()


def every(steps):
    for step in steps:
        yield step
        for part in step.parts:
            yield from every(part)


def written(volume):
    return "x".join(str(side) for side in (*volume[1:], volume[0]))


@pytest.mark.parametrize("name", spec.names(SHIPPED))
def test_every_volume_in_a_comment_is_the_one_that_its_line_makes(name):
    path = SHIPPED / f"{name}.yaml"
    shipped = spec.load(name, SHIPPED)
    px, classes, *_ = HEADER.search(path.read_text()).groups()
    steps = list(every(infer(shipped, int(classes), int(px))))
    checked = 0
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        comment = None if text.startswith("#") else COMMENT.search(text)
        if not comment:
            continue
        before, after, alone = comment.groups()
        here = [step for step in steps if step.layer.location.startswith(f"{path}:{line}, ")]
        outermost = min((step.layer.location.count("layer ") for step in here), default=0)
        here = [step for step in here if step.layer.location.count("layer ") == outermost]
        assert here, f"{path}:{line} makes no layer"
        assert {written(step.output) for step in here} == {after or alone}, f"{path}:{line}"
        assert not before or {written(step.input) for step in here} == {before}, f"{path}:{line}"
        checked += 1
    assert checked >= 4
