import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convoy.core.errors import RequestError, VerificationError
from convoy.export.onnx_model import CHUNK_BYTES, OnnxModel, chunks


@pytest.fixture(scope="module")
def served(built):
    return OnnxModel(built.unproven)


def test_classes_and_origin_come_from_the_file_alone(served):
    assert served.classes == ("Bär", "cat|dog", "x")
    assert served.properties["convoy.run_id"] == "run-7"


def test_images_of_mixed_sizes_are_answered_in_their_order(built, served):
    images_u8 = built.noisy(4, 12)
    found = served.mixed(images_u8)
    assert len({image_u8.shape for image_u8 in images_u8}) > 2
    for image_u8, probabilities in zip(images_u8, found, strict=True):
        np.testing.assert_allclose(served(image_u8[np.newaxis])[0], probabilities, atol=1e-6)


def test_no_images_have_no_answers(served):
    assert served.mixed([]).shape == (0, 3)


def test_a_file_that_is_not_there_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match=r"nothing\.onnx does not exist\. Make one with `dvc repro`"):
        OnnxModel(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("share", [0, 0.3, 0.99], ids=["empty", "third", "nearly whole"])
def test_a_truncated_model_is_refused(built, tmp_path, share):
    content = built.unproven.read_bytes()
    broken = tmp_path / "model.onnx"
    broken.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VerificationError, match=r"model\.onnx cannot be opened as ONNX.*\n.*dvc checkout"):
        OnnxModel(broken)


def test_a_model_of_someone_elses_is_refused_with_what_it_lacks(tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(
        VerificationError,
        match=r"theirs\.onnx is ONNX, but no model of Convoy's: it lacks the metadata convoy\.classes, .*"
        r"a single input `image`, an output `probabilities`\. Use the one that `dvc repro` makes",
    ):
        OnnxModel(tmp_path / "theirs.onnx")


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
