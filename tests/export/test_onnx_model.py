import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convoy.core.errors import RequestError, VerificationError
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
