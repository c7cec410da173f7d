"""Batches of many requests: shared work, failures of single images, swaps in between."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

import fixed_models
from convoy.serving.answers import Refusal
from convoy.serving.batches import Answerer
from convoy.serving.model import open_model
from services import CLASSES


@pytest.fixture
def make(served):
    """Make answerers, and end their threads."""
    made = []

    def answerer(model=None, **changes):
        usual = {"workers": 1, "max_queue": 100, "timeout_s": 20, "max_pixels": 10_000}
        made.append(Answerer(served=(lambda: model or served), **usual | changes))
        return made[-1]

    yield answerer
    for each in made:
        each.close()


def classes(outcomes):
    return [CLASSES[outcome.order[0]] for outcome in outcomes]


def ask(answerer, *requests):
    async def together():
        return await asyncio.gather(*map(answerer.answer, requests))

    return asyncio.run(together())


def test_requests_that_wait_share_a_batch_and_keep_their_order(make):
    sizes = []
    answerer = make(observers=[lambda images_u8, *_: sizes.append(len(images_u8))])
    answers = ask(answerer, *[[fixed_models.png(n), fixed_models.png((n + 1) % 3)] for n in (0, 1, 2)] * 5)
    assert [classes(answer) for answer in answers] == [["Bär", "cat"], ["cat", "x"], ["x", "Bär"]] * 5
    answerer.close()
    assert sum(sizes) == 30
    assert max(sizes) > 2


def test_a_worker_leaves_to_idle_ones_their_share(make):
    sizes = []
    answerer = make(workers=2, observers=[lambda images_u8, *_: sizes.append(len(images_u8))])
    ask(answerer, [fixed_models.png(0)])
    ask(answerer, [fixed_models.png(0)] * 32)
    answerer.close()
    assert sum(sizes) == 33
    assert max(sizes) < 32


def test_an_image_that_fails_the_model_does_not_fail_its_batch(make, caplog):
    bad_u8 = np.full((8, 8, 3), 200, np.uint8)  # beyond the table of the model
    [outcomes] = ask(make(), [fixed_models.image_u8(0), bad_u8, fixed_models.image_u8(2)])
    assert [outcome.refusal and outcome.refusal.code for outcome in outcomes] == [
        None,
        "inference_failed",
        None,
    ]
    assert classes([outcomes[0], outcomes[2]]) == ["Bär", "x"]
    assert "the model failed on an image" in caplog.text


def test_an_answer_that_is_no_number_is_an_error(make, tmp_path):
    path = fixed_models.write_onnx(
        tmp_path / "model.onnx", CLASSES, ["cat"] * 4, certainty=[0.9, np.nan, 0.9, 0.9]
    )
    [outcomes] = ask(make(open_model(str(path))), [fixed_models.png(0), fixed_models.png(1)])
    assert [outcome.refusal and outcome.refusal.code for outcome in outcomes] == [None, "inference_failed"]


def test_an_observer_that_fails_fails_no_answer(make, caplog):
    def fails(*_):
        raise ValueError("observed")

    answerer = make(observers=[fails])
    [outcomes] = ask(answerer, [fixed_models.png(1)])
    answerer.close()
    assert classes(outcomes) == ["cat"]
    assert "observed" in caplog.text


def test_all_images_of_a_request_are_answered_by_one_model(make, served):
    other = replace(served, name="other")
    turns = iter([served, other, other, other])

    class Turning(Answerer):
        def _process(self, items):
            for item in items:  # each image is a batch of its own
                super()._process([item])

    answerer = Turning(served=lambda: next(turns), workers=1, max_queue=10, timeout_s=20, max_pixels=100)
    [outcomes] = ask(answerer, [fixed_models.png(0), fixed_models.png(1)])
    answerer.close()
    assert [outcome.served.name for outcome in outcomes] == ["other", "other"]


def test_a_request_beyond_the_queue_is_refused_whole(make):
    with pytest.raises(Refusal, match="the limit is 100") as caught:
        ask(make(), [fixed_models.png(0)] * 101)
    assert caught.value.status == 429
