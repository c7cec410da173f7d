from pathlib import Path

import pytest
import yaml

from convoy import params
from convoy.errors import RequestError
from convoy.training.settings import TrainParams

SHIPPED = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))["train"]


def test_the_shipped_section_is_valid():
    params.check("train", TrainParams, SHIPPED)


@pytest.mark.parametrize("precision", ["auto", 32, "bf16"])
def test_precision_is_written_as_one_would_type_it(precision):
    assert params.check("train", TrainParams, SHIPPED | {"precision": precision}).precision == precision


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0}, "train.lr is 0: input should be greater than 0"),
        ({"epochs": 0}, "train.epochs is 0: input should be greater than or equal to 1"),
        ({"batch_size": 2.5}, "train.batch_size is 2.5: input should be a valid integer"),
        ({"optimizer": "adam"}, "train.optimizer is 'adam': input should be 'sgd' or 'adamw'"),
        ({"augment": ["crop", "flop"]}, "train.augment.1 is 'flop': input should be 'crop' or 'flip'"),
        ({"warmup": 0.95}, "train.warmup is 0.95: input should be less than or equal to 0.9"),
        ({"precision": 16}, "train.precision is 16: input should be 'auto', 32 or 'bf16'"),
        ({"learning_rate": 0.1}, "unknown key train.learning_rate"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(change, said):
    with pytest.raises(RequestError) as caught:
        params.check("train", TrainParams, SHIPPED | change)

    assert said in str(caught.value)
