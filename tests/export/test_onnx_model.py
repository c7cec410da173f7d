import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from convoy.core.errors import RequestError, VerificationError
from convoy.export import onnx_model
from convoy.export.onnx_model import CHUNK_BYTES, OnnxModel, chunks


@pytest.fixture(scope="module")
def model(built):
    return OnnxModel(built.unverified)


def test_classes_and_provenance_come_from_the_file(model):
    assert model.classes == ("Bär", "cat|dog", "x")
    assert model.properties["convoy.run_id"] == "run-7"


def test_images_of_mixed_sizes_are_predicted_in_their_order(built, model):
    assert model.predict_mixed([]).shape == (0, 3)
    images_u8 = built.noisy(4, 12)
    predictions = model.predict_mixed(images_u8)
    assert len({image_u8.shape for image_u8 in images_u8}) > 2
    for image_u8, probabilities in zip(images_u8, predictions, strict=True):
        np.testing.assert_allclose(model(image_u8[np.newaxis])[0], probabilities, atol=1e-6)


def test_a_missing_file_is_an_invalid_request(tmp_path):
    with pytest.raises(RequestError, match=r"nothing\.onnx does not exist.*`dvc repro`"):
        OnnxModel(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("share", [0, 0.3, 0.99], ids=["empty", "third", "nearly whole"])
def test_a_truncated_model_is_refused(built, tmp_path, share):
    content = built.unverified.read_bytes()
    broken = tmp_path / "model.onnx"
    broken.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VerificationError, match=r"model\.onnx is not a valid ONNX file.*\n.*dvc checkout"):
        OnnxModel(broken)


def test_a_model_that_convoy_did_not_export_is_refused_with_what_it_lacks(tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    theirs = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(theirs, tmp_path / "theirs.onnx")
    keys = r" convoy\.classes.* convoy\.image_px.* convoy\.fit.* convoy\.version"
    lacks = rf"{keys}.* a single input `image`, an output `probabilities`.*build/deploy/model\.onnx"
    with pytest.raises(VerificationError, match=rf"theirs\.onnx was not exported by Convoy.*{lacks}"):
        OnnxModel(tmp_path / "theirs.onnx")


@pytest.mark.parametrize("key", ["classes", "image_px", "fit", "version"])
def test_every_metadata_key_of_the_contract_is_required(built, key):
    graph = onnx.load(built.unverified)
    kept = [entry for entry in graph.metadata_props if entry.key != f"convoy.{key}"]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    with pytest.raises(VerificationError, match=rf"the metadata convoy\.{key}\."):
        OnnxModel(graph.SerializeToString())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_reaches_onnxruntime(built, threads):
    session = OnnxModel(built.unverified, threads=threads)._session
    assert session.get_session_options().intra_op_num_threads == threads


def test_chunks_are_bounded_in_number_and_in_bytes_and_lose_nothing():
    assert [len(chunk) for chunk in chunks(range(150), lambda _: 1)] == [64, 64, 22]
    sizes = [CHUNK_BYTES // 2, CHUNK_BYTES // 2, 1, CHUNK_BYTES * 3, 5]
    assert list(chunks(sizes, lambda size: size)) == [sizes[:2], sizes[2:3], sizes[3:4], sizes[4:]]
    assert list(chunks([], lambda _: 1)) == []


def test_chunks_read_no_further_ahead_than_one_list():
    read = []
    stream = chunks((read.append(n) or n for n in range(1000)), lambda _: 1)
    next(stream)
    assert len(read) == 65


def test_a_folder_is_refused_with_the_model_in_it(built, tmp_path):
    with pytest.raises(RequestError, match=rf"{tmp_path} is a folder, not a model. It holds no model.onnx"):
        OnnxModel(tmp_path)
    folder = built.unverified.parent
    with pytest.raises(
        RequestError, match=rf"{folder} is a folder, not a model. Name the file: {built.unverified}"
    ):
        OnnxModel(folder)


def foreign(nodes, constants=(), functions=()):
    """Make a model with the metadata, input and output of an exported one."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(list(nodes), "g", [image], [out], list(constants))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    keys = {"classes": json.dumps(["a", "b"]), "image_px": "8", "fit": "squash", "version": "0"}
    helper.set_model_props(model, {f"convoy.{key}": text for key, text in keys.items()})
    return model


def endless():
    """A loop that onnxruntime runs until it is killed."""
    values = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("go_on", TensorProto.BOOL))
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"])], "body", values[:2], values[2:]
    )
    return helper.make_node("Loop", ["", "true"], [], body=body)


def small(extra=(), constants=()):
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        *extra,
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Concat", ["column", "column"], ["both"], axis=1),
        helper.make_node("Softmax", ["both"], ["probabilities"]),
    ]
    values = {"axes": np.array([1, 2, 3]), "one": np.array([1]), "true": np.array(True)}
    return foreign(
        nodes, [*(numpy_helper.from_array(value, name) for name, value in values.items()), *constants]
    )


def test_a_model_with_everything_in_its_file_is_opened(built):
    images_u8 = np.zeros((3, 4, 5, 3), np.uint8)
    assert OnnxModel(small().SerializeToString())(images_u8).tolist() == [[0.5, 0.5]] * 3


@pytest.mark.parametrize("where", ["graph", "function"])
def test_control_flow_is_refused_before_anything_runs(where, tmp_path):
    model = small([endless()])
    if where == "function":
        inner = helper.make_function(
            "own", "F", ["true"], ["out"], [endless(), helper.make_node("Identity", ["true"], ["out"])],
            [helper.make_opsetid("", 20)],
        )  # fmt: skip
        model = small([helper.make_node("F", ["true"], ["unused"], domain="own")])
        model.functions.append(inner)
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(
        VerificationError, match=r"theirs\.onnx has control flow \(node `Loop`\).*build/deploy/model"
    ):
        OnnxModel(tmp_path / "theirs.onnx")


@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_data_in_another_file_is_refused(where, tmp_path):
    constant = numpy_helper.from_array(np.zeros(3, np.float32), "zeros")
    (tmp_path / "weights.bin").write_bytes(constant.raw_data)
    external_data_helper.set_external_data(constant, "weights.bin")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    node = helper.make_node("Constant", [], ["unused"], value=constant)
    model = small(constants=[constant]) if where == "initializer" else small([node])
    (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        VerificationError, match=r"theirs\.onnx keeps the tensor `zeros` in another file \(weights\.bin\)"
    ):
        OnnxModel(tmp_path / "theirs.onnx")


def test_a_model_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(onnx_model, "LEAST_SECONDS", 0.2)
    side = 400
    noise = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    products = [helper.make_node("MatMul", ["start", "noise"], ["p0"])]
    products += [helper.make_node("MatMul", [f"p{n}", "noise"], [f"p{n + 1}"]) for n in range(2000)]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["level"], keepdims=0),
        helper.make_node("Mul", ["noise", "level"], ["start"]),
        *products,
        helper.make_node("Slice", ["p2000", "zeros", "ends"], ["probabilities"]),
    ]
    values = {"noise": noise, "zeros": np.array([0, 0]), "ends": np.array([1, 2])}
    content = foreign(
        nodes, [numpy_helper.from_array(value, name) for name, value in values.items()]
    ).SerializeToString()
    images_u8 = np.zeros((1, 4, 5, 3), np.uint8)
    with pytest.raises(VerificationError, match=r"did not answer for 1 images of 5 x 4 pixels within 0\.2 s"):
        OnnxModel(content, threads=1, seconds_per_image=0.01)(images_u8)
    built = small().SerializeToString()
    assert OnnxModel(built, seconds_per_image=10)(images_u8).shape == (1, 2)


def test_the_time_limit_grows_with_the_number_of_images(monkeypatch):
    limits = []

    class Timer:
        def __init__(self, seconds, *_):
            limits.append(seconds)

        def start(self):
            pass

        cancel = start

    monkeypatch.setattr(onnx_model.threading, "Timer", Timer)
    model = OnnxModel(small().SerializeToString(), seconds_per_image=10)
    for images in (1, 64):
        model(np.zeros((images, 4, 5, 3), np.uint8))
    assert limits == [60, 640]
