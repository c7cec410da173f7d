import numpy as np
import pytest
import torch

from convoy.evaluation.inference import full_float32, predict_probabilities
from convoy.models import trained


@pytest.fixture
def model(measured_things):
    return trained.load(measured_things / "model")[0]


@pytest.fixture
def images_u8():
    return np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def test_the_batch_size_changes_no_answer_and_no_image_is_left_out(model, images_u8):
    whole = predict_probabilities(model, images_u8, 10)
    assert whole.shape == (10, 2)
    assert whole.dtype == np.float32
    for size in (1, 3, 64):
        np.testing.assert_allclose(predict_probabilities(model, images_u8, size), whole, atol=1e-6)


def test_what_training_computed_in_does_not_reach_the_measurement(model, images_u8):
    expected = predict_probabilities(model, images_u8, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(predict_probabilities(model, images_u8, 10), expected)


def test_the_precision_that_was_set_before_is_set_again():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_processors_answers(model, images_u8, monkeypatch):
    on_gpu = predict_probabilities(model, images_u8, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    np.testing.assert_allclose(predict_probabilities(model, images_u8, 4), on_gpu, atol=1e-5)
