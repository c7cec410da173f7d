"""The rules by which the champion changes, with ONNX files that onnxruntime runs."""

import gc
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest

import fixed_models
import gate_results
from convoy.core import files
from convoy.core.errors import VerificationError
from convoy.export import onnx_model
from convoy.gate import judge as judge_module
from convoy.gate.evidence import UnavailableModel
from convoy.gate.judge import Inference, compare
from gate_project import breaches, criterion


def test_a_better_candidate_is_promoted(project, champion):
    result = project.judge(project.model("convoy/7", [3, 40]), champion)
    assert (result.verdict, result.decision, breaches(result)) == ("promote", "better", [])
    assert (result.images, result.candidate, result.champion) == (120, "convoy/7", "convoy/3")
    both = result.comparison
    assert (both.only_candidate, both.only_champion, both.both_right, both.both_wrong) == (11, 1, 107, 1)
    assert both.p_value == pytest.approx(0.0063, abs=5e-5)
    assert (both.low, both.gain, both.high) == pytest.approx((0.023, 0.0833, 0.150), abs=5e-4)
    assert result.candidate_share.accuracy == pytest.approx(118 / 120)
    assert result.champion_share.accuracy == pytest.approx(108 / 120)


@pytest.mark.parametrize(
    ("name", "wrong", "limits", "outcome"),
    [
        ("convoy/7", range(8, 32), {}, ("keep", "worse")),
        ("convoy/7", [*range(8), 20, 21], {"equal_within": 0.01}, ("keep", "not_significant")),
        ("convoy/7", range(1, 14), {"equal_within": 0.02, "on_equal": "promote"}, ("keep", "no_gain")),
        ("convoy/7", range(11), {"on_equal": "keep"}, ("keep", "equal_kept")),
        ("convoy/7", range(11), {"on_equal": "promote"}, ("promote", "equal_promoted")),
        ("convoy/2", range(11), {"on_equal": "promote"}, ("keep", "equal_not_newer")),
        # A significant loss is not equal: losses would add up round by round.
        ("convoy/7", range(18), {"equal_within": 1.0, "on_equal": "promote"}, ("keep", "worse")),
    ],
)
def test_without_a_significant_gain_the_rule_for_equals_decides(
    project, champion, name, wrong, limits, outcome
):
    result = project.judge(project.model(name, wrong), champion, **limits)
    assert (result.verdict, result.decision) == outcome
    assert breaches(result) == []


@pytest.mark.parametrize(("confidence", "decision"), [(0.5, "equal_kept"), (0.49, "better")])
def test_a_p_value_equal_to_the_threshold_is_not_significant(project, confidence, decision):
    comparison = replace(gate_results.comparison(100, 2, 1, 10), p_value=0.5, gain=0.01, low=0.0, high=0.02)
    limits = project.limits().model_copy(update={"confidence": confidence})
    assert compare(comparison, limits, newer=True)[1] == decision


@pytest.mark.parametrize(
    ("attributes", "limits", "breached"),
    [
        ({"products": 30}, {"max_latency_ratio": 2.0}, ["latency_ratio"]),
        ({"dead_bytes": 3_000_000}, {"max_size_mb": 2.0}, ["size_mb"]),
        ({"certainty": 0.5}, {"max_size_mb": 0.001}, ["ece", "size_mb"]),
    ],
)
def test_a_breached_limit_refuses(project, champion, attributes, limits, breached):
    result = project.judge(project.model("convoy/7", **attributes), champion, **limits)
    assert (result.verdict, result.decision, breaches(result)) == ("refuse", "limits", breached)
    for name in breached:
        assert criterion(result, name).figure is not None


def test_better_over_all_with_a_class_collapsed_is_refused(project):
    champion = project.model("convoy/3", [n for n in range(120) if n % 3 != 2][:48])
    collapsed = project.model("convoy/7", [n for n in range(120) if n % 3 == 2][:20])
    result = project.judge(collapsed, champion)
    assert result.comparison.low > 0
    assert (result.verdict, breaches(result)) == ("refuse", ["class_drop"])
    assert criterion(result, "class_drop").figure == pytest.approx(0.5)
    assert "`cat`, 40 images" in criterion(result, "class_drop").note


def test_a_class_below_the_floor_is_refused_whatever_the_champion_does(project):
    lost = [n for n in range(120) if n % 3 == 1][:32]
    champion, candidate = project.model("convoy/3", lost), project.model("convoy/7", lost[:30])
    result = project.judge(candidate, champion)
    assert breaches(result) == ["class_recall"]
    assert "`bee`" in criterion(result, "class_recall").note
    bee = next(row for row in result.classes if row.name == "bee")
    assert (bee.candidate, bee.champion) == (0.25, 0.2)


def test_flipped_images_are_listed_the_most_certain_first(project, champion):
    sure = [0.5 + 0.4 * (n % 7) / 7 for n in range(len(project.truth))]
    candidate = project.model("convoy/7", range(6, 20), certainty=sure)
    flips = project.judge(candidate, champion, max_ece=None).flips
    assert [flip.kind for flip in flips] == ["broken"] * 8 + ["fixed"] * 6
    certainties = [flip.candidate_probability for flip in flips[:8]]
    assert certainties == sorted(certainties, reverse=True)
    for flip in flips:
        assert flip.path.startswith(f"test/{flip.label}/")
        right = flip.champion if flip.kind == "broken" else flip.candidate
        wrong = flip.candidate if flip.kind == "broken" else flip.champion
        assert right == flip.label != wrong
        assert flip.champion_probability == pytest.approx(0.9)


def test_every_interval_has_the_confidence_that_is_set(project, champion):
    candidate = project.model("convoy/7", range(9))
    wide, narrow = (project.judge(candidate, champion, confidence=sure) for sure in (0.99, 0.6))
    for name in ("candidate_share", "champion_share", "comparison"):
        of_wide, of_narrow = getattr(wide, name), getattr(narrow, name)
        assert of_wide.low < of_narrow.low < of_narrow.high < of_wide.high
    assert (wide.verdict, narrow.verdict) == ("keep", "promote")


# No champion, an unavailable champion, other classes, the same model


def test_the_first_candidate_has_only_limits_to_meet(project):
    result = project.judge(project.model("convoy/1", range(12)), None)
    assert (result.verdict, result.decision) == ("promote", "first")
    assert result.champion is result.champion_share is result.comparison is None
    for name in ("class_drop", "champion_drop", "latency_ratio"):
        assert criterion(result, name).held is None
        assert criterion(result, name).note == "there is no champion yet"
    refused = project.judge(project.model("convoy/1", certainty=0.5), None)
    assert refused.verdict == "refuse"


@pytest.mark.parametrize(
    ("wrong", "recorded", "outcome"),
    [
        (6, 0.93, ("promote", "champion_unavailable", [])),
        (30, 0.99, ("refuse", "limits", ["champion_drop"])),
        (30, None, ("promote", "champion_unavailable", [])),
    ],
)
def test_an_unavailable_champion_is_replaced_unless_far_better_on_record(project, wrong, recorded, outcome):
    gone = UnavailableModel("convoy/3", "its file is gone", recorded)
    result = project.judge(project.model("convoy/7", range(wrong)), gone)
    assert (result.verdict, result.decision, breaches(result)) == outcome
    assert (result.champion, result.champion_sha256) == ("convoy/3", None)
    assert result.champion_problem == "its file is gone"
    drop = criterion(result, "champion_drop")
    assert drop.figure == (None if recorded is None else pytest.approx(recorded - 1 + wrong / 120))
    assert "convoy/3 cannot be read: its file is gone" in drop.note
    assert drop.title.startswith("candidate accuracy drop")


def edited(model, edit):
    """Change the graph of a model, which then is the registered file."""
    onnx_model = onnx.load(model.onnx)
    edit(onnx_model.graph)
    onnx.save(onnx_model, model.onnx)
    return replace(model, sha256=files.sha256(model.onnx))


def adding(values):
    """Add values to the probabilities."""

    def add(graph):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.float32), "added"))
        graph.node[-1].input.append("added")

    return lambda model: edited(model, add)


def cut(graph):
    table = next(tensor for tensor in graph.initializer if tensor.name == "table")
    table.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table)[:5], "table"))


def not_onnx(model):
    model.onnx.write_bytes(b"\x08\x01 no model")
    return replace(model, sha256=files.sha256(model.onnx))


def endless(graph):
    condition = onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
    body = onnx.helper.make_graph([], "body", [], [condition])
    graph.node.insert(0, onnx.helper.make_node("Loop", ["", "go"], [], body=body))


def in_another_file(graph):
    onnx.external_data_helper.set_external_data(graph.initializer[0], "weights.bin")


def without_file(model):
    model.onnx.unlink()
    return model


OTHER_BYTES = r"other bytes than were registered \(sha256 \w{12}…, not \w{12}…\)"
FAILURES = {
    "damaged": (lambda model: replace(not_onnx(model), sha256=model.sha256), OTHER_BYTES),
    "other sha256": (lambda model: replace(model, sha256="0" * 64), OTHER_BYTES),
    "without file": (without_file, r"its file is gone \(.*model\d+\.onnx\)"),
    "not ONNX": (not_onnx, r"is not a valid ONNX file"),
    "NaN": (adding([np.nan] * 3), r"nan, nan, nan for test/\w+/\d+\.png"),
    "below 0": (adding([1, -1, 0]), r"-0\.\d+.* for test/\w+/\d+\.png"),  # each sum is still 1
    "above 1": (adding([1, 0, 0]), r"for test/\w+/\d+\.png, which are no probabilities"),
    "endless": (lambda model: edited(model, endless), r"has control flow \(node `Loop`\)"),
    "in another file": (lambda model: edited(model, in_another_file), r"another file \(weights\.bin\)"),
    "fails": (lambda model: edited(model, cut), r"fails on test/\w+/\d+\.png or one of the \d+ images"),
}


@pytest.mark.parametrize(("failing", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_candidate_that_fails_gets_no_verdict_a_champion_is_unavailable(project, champion, failing, reason):
    remedy = "`dvc repro --force export`, then `convoy register`"
    with pytest.raises(VerificationError, match=f"(?s)convoy/7: .*{reason}.*{remedy}"):
        project.judge(failing(project.model("convoy/7")), champion)
    failed = failing(project.model("convoy/3", range(12)))
    result = project.judge(project.model("convoy/7"), failed)
    assert (result.verdict, result.decision) == ("promote", "champion_unavailable")
    assert (result.champion, result.champion_sha256, result.flips) == ("convoy/3", None, ())
    assert result.champion_share is result.comparison is None
    assert re.search(reason, result.champion_problem)


@pytest.mark.parametrize("slow", ["candidate", "champion"])
def test_a_model_that_does_not_answer_in_time_is_stopped(project, champion, monkeypatch, slow):
    turns = itertools.cycle(["candidate", "champion"])

    class Timer:
        """Is up at once in the turns of the slow model."""

        def __init__(self, _seconds, stop, arguments):
            self.start = lambda: stop(*arguments) if next(turns) == slow else None
            self.cancel = lambda: None

    monkeypatch.setattr(onnx_model.threading, "Timer", Timer)
    candidate = project.model("convoy/7")
    if slow == "candidate":
        with pytest.raises(
            VerificationError, match=r"convoy/7: .*did not answer for \d+ images .* within \d+ s"
        ):
            project.judge(candidate, champion)
    else:
        result = project.judge(candidate, champion)
        assert result.decision == "champion_unavailable"
        assert "did not answer" in result.champion_problem


def test_classes_in_another_order_are_the_same_classes(project):
    champion = project.model("convoy/3", range(12), classes=("cat", "ape", "bee"))
    candidate = project.model("convoy/7", range(6), classes=("bee", "cat", "ape"))
    result = project.judge(candidate, champion)
    assert criterion(result, "classes").held
    assert (result.comparison.only_candidate, result.comparison.only_champion) == (6, 0)
    assert [row.champion for row in result.classes] == pytest.approx([0.9] * 3)


def test_a_champion_that_lacks_a_class_is_wrong_on_it_and_not_blamed_for_it(project):
    champion = project.model("convoy/3", classes=("ape", "bee"), recorded_accuracy=1.0)
    result = project.judge(project.model("convoy/7", range(6)), champion)
    assert result.verdict == "promote"
    assert result.champion_share.accuracy == pytest.approx(2 / 3)
    assert criterion(result, "champion_drop").figure == pytest.approx(0.0)
    assert "`cat` new" in criterion(result, "classes").note
    cat = next(row for row in result.classes if row.name == "cat")
    assert cat.champion is None
    assert cat.candidate == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("champion_classes", "candidate_classes", "named"),
    [
        (("ape", "bee", "cat", "dog"), None, ["lacks `dog` of the champion"]),
        (("ape", "bee", "tiger"), None, ["lacks `tiger` of the champion", "it has `cat` instead"]),
        (None, ("ape", "bee"), ["the data have `ape`, `bee`, `cat`, the candidate `ape`, `bee`"]),
    ],
    ids=["lost", "renamed", "not those of the data"],
)
def test_other_classes_are_refused(project, champion_classes, candidate_classes, named):
    champion = project.model("convoy/3", range(12), classes=champion_classes)
    candidate = project.model("convoy/7", classes=candidate_classes)
    result = project.judge(candidate, champion)
    assert (result.verdict, breaches(result)[0]) == ("refuse", "classes")
    assert all(part in criterion(result, "classes").note for part in named)
    if candidate_classes:
        recall = criterion(result, "class_recall")
        assert (recall.figure, recall.held) == (0.0, False)


def test_the_champion_itself_is_kept_without_being_timed(project, champion, monkeypatch):
    monkeypatch.setattr(judge_module, "measure_latency", None)
    again = replace(champion, name="convoy/5")
    result = project.judge(again, champion)
    assert (result.verdict, result.decision) == ("keep", "identical")
    assert result.comparison is None
    assert result.champion_share == result.candidate_share
    assert criterion(result, "latency_ms_p95").held is None
    assert criterion(result, "champion_drop").figure == pytest.approx(0)
    breached = project.judge(champion, champion, min_accuracy=0.95)
    assert (breached.verdict, breached.decision, breaches(breached)) == ("keep", "identical", ["accuracy"])


# Which test images count, and what they can show


def test_images_that_either_was_trained_on_are_left_out(project):
    candidate = project.model("convoy/7", seen=range(10))
    champion = project.model("convoy/3", range(20), seen=range(5, 25))
    result = project.judge(candidate, champion)
    assert result.images == 95
    assert result.excluded == {
        "in the candidate's training": 5,
        "in the training of both": 5,
        "in the champion's training": 15,
    }
    assert result.champion_share.correct == 95
    assert "15 in the champion's training" in criterion(result, "images").note


def test_a_candidate_whose_training_images_are_unknown_is_refused_a_champion_is_not(project, champion):
    unknown = project.model("convoy/7", images=None)
    result = project.judge(unknown, champion)
    assert (result.verdict, breaches(result)) == ("refuse", ["seen"])
    of_champion = project.model("convoy/3", range(12), images=None)
    result = project.judge(project.model("convoy/7"), of_champion)
    assert (result.verdict, result.decision) == ("promote", "better")
    assert "may be flattered" in criterion(result, "seen").note


def test_poisoned_labels_show_as_a_drop_of_the_champion(delivered):
    truth = [("ape", "bee", "cat")[n % 3] for n in range(165)]
    poisoned = [("bee", "cat", "ape")[n % 3] if n < 40 else label for n, label in enumerate(truth)]
    project = delivered(poisoned, 120)
    before = project.images(labels=dict(enumerate(truth)))
    champion = project.model(
        "convoy/3", predictions=dict(enumerate(truth)), images=before, recorded_accuracy=0.98
    )
    result = project.judge(project.model("convoy/7"), champion)
    assert result.comparison.low > 0
    assert (result.verdict, breaches(result)) == ("refuse", ["champion_drop"])
    drop = criterion(result, "champion_drop")
    assert drop.figure == pytest.approx(0.98 - 80 / 120)
    assert drop.note.startswith("66.7 % today, 98.0 % recorded; 40 test images had another label")


def test_too_few_unseen_images_are_refused(project, champion):
    candidate = project.model("convoy/7", seen=range(80))
    result = project.judge(candidate, champion)
    assert (result.verdict, breaches(result)) == ("refuse", ["images"])
    assert criterion(result, "images").figure == 40


@pytest.mark.parametrize("limit", [0.3, None])
def test_a_class_without_an_unseen_image_is_refused_where_recall_is_limited(project, champion, limit):
    bees = [n for n in range(120) if n % 3 == 1]
    result = project.judge(project.model("convoy/7", seen=bees), champion, min_class_recall=limit)
    assert breaches(result) == (["class_recall"] if limit else [])
    assert criterion(result, "class_recall").held is (False if limit else None)
    if limit:
        assert "`bee`" in criterion(result, "class_recall").note
    bee = next(row for row in result.classes if row.name == "bee")
    assert (bee.images, bee.candidate, bee.champion) == (0, None, None)


def test_without_an_unseen_image_the_candidate_is_refused_whatever_the_limits(project, champion):
    none = project.model("convoy/7", seen=range(120))
    limits = "min_images", "min_accuracy", "min_class_recall", "max_ece", "max_latency_ms_p95"
    result = project.judge(none, champion, **dict.fromkeys(limits))
    assert (result.verdict, breaches(result), result.images) == ("refuse", ["images"], 0)
    assert result.candidate_share is result.champion_share is result.comparison is None
    for opponent in (champion, None):
        limited = project.judge(none, opponent)
        assert breaches(limited) == ["images", "accuracy", "class_recall", "ece", "latency_ms_p95"]


# How the models run


class OneChunk:
    """Test images 7, 2, 9, 0, 1 in one chunk."""

    def __init__(self):
        self.paths = [str(n) for n in range(10)]

    def read(self, _indices, _background):
        yield [(n, fixed_models.image_u8(n)) for n in (7, 2, 9, 0, 1)]


@pytest.mark.parametrize(
    ("images", "room", "kept"),
    [(3, 1000, [0, 1, 2]), (10, 2 * 8 * 8 * 3, [2, 7]), (10, 0, [7])],
    ids=["the first", "as far as there is room", "at least the first of the chunk"],
)
def test_a_sample_is_kept_for_the_latency_measurement(project, monkeypatch, images, room, kept):
    monkeypatch.setattr(judge_module, "MOST_TIMED", images)
    monkeypatch.setattr(judge_module, "SAMPLE_BYTES", room)
    sample = judge_module._predict([Inference(project.model(), 10)], OneChunk(), range(10))
    assert [int(image_u8[0, 0, 0]) for image_u8 in sample] == kept


def test_latency_is_measured_on_one_thread_with_the_other_models_closed(project, champion, monkeypatch):
    """Waiting threads of others would take the processor from the measured model."""
    measure, threads, alive = judge_module.measure_latency, [], []

    def watched(models, images_u8):
        threads.extend(model._session.get_session_options().intra_op_num_threads for model in models)
        alive.extend(run for run in gc.get_objects() if type(run) is Inference)
        return measure(models, images_u8)

    monkeypatch.setattr(judge_module, "measure_latency", watched)
    project.judge(project.model("convoy/7", [3]), champion)
    assert (threads, alive) == ([1, 1], [])


def test_judging_needs_neither_torch_nor_mlflow(python):
    code = "import sys, convoy.gate.judge; print({'torch', 'mlflow', 'matplotlib'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


def test_a_result_is_json_and_names_what_its_figures_depend_on(project, champion):
    result = project.judge(project.model("convoy/7", [3, 40]), champion)
    content = result.as_json()
    assert json.loads(json.dumps(content)) == content
    assert (content["verdict"], content["reasons"]) == ("promote", list(result.reasons))
    assert (content["comparison"]["only_candidate"], len(content["flips"])) == (11, 12)
    keys = {"name", "title", "figure", "limit", "sense", "unit", "held", "note"}
    assert set(content["criteria"][0]) == keys
    conditions = content["conditions"]
    assert conditions["confidence"] == 0.95
    assert conditions["latency"] == {"threads": 1, "rounds": 5, "images": 64}
    assert {"onnxruntime", "python", "pillow"} <= set(conditions["versions"])
    assert conditions["hardware"]["cores"] >= 1
    assert conditions["moment"].endswith("+00:00")
    for figure in (math.nan, math.inf):
        broken = replace(result, criteria=(replace(result.criteria[0], figure=figure),))
        with pytest.raises(ValueError, match="not JSON compliant"):
            broken.as_json()
