import numpy as np

from convoy.gate import answers
from convoy.gate.answers import Sample


def image(number, px=4):
    return np.full((px, px, 3), number, np.uint8)


def numbers(sample):
    return [int(image_u8[0, 0, 0]) for image_u8 in sample.images_u8()]


def test_the_first_images_are_kept_in_whatever_order_they_come():
    sample = Sample(3)
    for number in (7, 2, 9, 0, 1):
        sample.add(number, image(number))
    assert numbers(sample) == [0, 1, 2]


def test_no_more_is_kept_than_there_is_room_for_but_one_image_always(monkeypatch):
    monkeypatch.setattr(answers, "SAMPLE_BYTES", 2 * 4 * 4 * 3)
    sample = Sample(10)
    sample.add(5, image(5, px=100))
    sample.add(6, image(6))
    assert numbers(sample) == [5]
    small = Sample(10)
    for number in range(5):
        small.add(number, image(number))
    assert numbers(small) == [0, 1]
