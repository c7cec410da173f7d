import numpy as np
import pytest

from convoy.core.intervals import wilson
from convoy.evaluation import metrics


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_one_of_newcombe_1998_table_1_method_3(correct, images, low, high):
    assert wilson(correct, images) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_is_not_empty_when_every_image_is_right():
    low, high = wilson(100, 100)
    assert low == pytest.approx(0.963, abs=5e-4)
    assert high == 1


def test_precision_and_recall_are_what_counting_by_hand_gives():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0])
    found = metrics.summarise(labels, predicted, ["a", "b", "c"])
    assert found["accuracy"] == 0.5
    assert found["images"] == 6
    assert found["per_class"]["a"] == pytest.approx(
        {"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "images": 3}
    )
    assert found["per_class"]["b"] == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "images": 2}
    )
    assert found["macro_f1"] == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_never_predicted_has_precision_zero_and_no_warning():
    found = metrics.summarise(np.array([0, 1]), np.array([0, 0]), ["a", "b"])
    assert found["per_class"]["b"]["precision"] == 0


def test_rows_of_the_confusion_are_actual_and_columns_predicted():
    counts = metrics.confusion(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
