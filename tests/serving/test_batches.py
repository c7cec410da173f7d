"""Batches of many requests: shared work, failures of single images, swaps in between."""

import asyncio
import io
import threading
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fixed_models
from convoy.serving.answers import Refusal
from convoy.serving.batches import Answerer
from convoy.serving.model import ServedModel, open_model
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
    deadline = time.monotonic() + 20
    while max(sizes, default=32) == 32:  # until the other worker has started
        assert time.monotonic() < deadline
        sizes.clear()
        ask(answerer, [fixed_models.png(0)] * 32)


@dataclass(frozen=True)
class Counted(ServedModel):
    """Count the images of each lane."""

    lanes: dict[str, int] = field(default_factory=lambda: {"usual": 0, "small": 0})

    def predict(self, images_u8):
        self.lanes["usual"] += len(images_u8)
        return super().predict(images_u8)

    def predict_single(self, images_u8):
        self.lanes["small"] += len(images_u8)
        return super().predict_single(images_u8)


@pytest.fixture
def counted(served):
    return Counted(**vars(served) | {"single": served.model})


def resized(side, format_="PNG"):
    stream = io.BytesIO()
    Image.fromarray(fixed_models.image_u8(1)).resize((side, side)).save(stream, format=format_)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("request_", "lane"),
    [
        ([fixed_models.png(1)], "small"),
        ([resized(128)], "small"),
        ([resized(129)], "usual"),
        ([resized(64, "BMP")], "usual"),  # 12,342 bytes
        ([fixed_models.image_u8(1)], "usual"),  # nothing to decode
        ([fixed_models.png(1)] * 3, "usual"),
    ],
    ids=["8px", "128px", "129px", "12kB", "pixels", "several"],
)
def test_small_images_of_a_fast_model_have_a_lane_of_their_own(make, counted, request_, lane):
    answerer = make(counted, workers=2, max_pixels=100_000)
    [outcomes] = ask(answerer, request_)
    assert classes(outcomes) == ["cat"] * len(request_)
    assert counted.lanes == {"usual": 0, "small": 0} | {lane: len(request_)}
    assert all((outcome.decode_ms > 0) == isinstance(request_[0], bytes) for outcome in outcomes)


def test_a_model_that_is_not_fast_has_the_usual_lane_only(make, counted):
    slow = replace(counted, single=None)
    ask(make(slow), [fixed_models.png(1)])
    assert counted.lanes == {"usual": 1, "small": 0}


def test_a_small_file_that_is_damaged_is_refused_with_its_reason(make, counted):
    [[outcome]] = ask(make(counted), [fixed_models.png(1)[:40]])
    assert outcome.refusal.code == "not_an_image"


def test_an_image_is_decoded_again_for_a_model_with_another_background(make, counted):
    transparent = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(transparent, format="PNG")
    other = replace(counted, model=SimpleNamespace(**vars(counted.model) | {"background": "#010000"}))
    other.model.predict_mixed = counted.model.predict_mixed
    object.__setattr__(other, "single", other.model)
    turns = iter([counted, other, other])
    answerer = Answerer(served=lambda: next(turns), workers=1, max_queue=10, timeout_s=20, max_pixels=100)
    [outcomes] = ask(answerer, [transparent.getvalue()])
    answerer.close()
    assert classes(outcomes) == ["cat"], "#010000 is the image with the number 1"


def test_threads_start_and_end_once(make):
    before = threading.active_count()
    answerer = make(workers=2)
    answerer.start()
    answerer.start()
    assert threading.active_count() == before + 3
    answerer.close()
    answerer.close()
    assert threading.active_count() == before


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
        def _process(self, items, **named):
            for item in items:  # each image is a batch of its own
                super()._process([item], **named)

    answerer = Turning(served=lambda: next(turns), workers=1, max_queue=10, timeout_s=20, max_pixels=100)
    [outcomes] = ask(answerer, [fixed_models.png(0), fixed_models.png(1)])
    answerer.close()
    assert [outcome.served.name for outcome in outcomes] == ["other", "other"]


def test_a_request_beyond_the_queue_is_refused_whole(make):
    with pytest.raises(Refusal, match="the limit is 100") as caught:
        ask(make(), [fixed_models.png(0)] * 101)
    assert caught.value.status == 429
