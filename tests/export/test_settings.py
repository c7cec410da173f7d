import pytest

from convoy.core import params
from convoy.core.errors import RequestError
from convoy.evaluation.settings import EvaluateParams
from convoy.export.settings import ExportParams
from exported import LIMITS

SECTIONS = {
    "export": (ExportParams, LIMITS.model_dump()),
    "evaluate": (EvaluateParams, {"batch_size": 256, "worst_images": 24, "feature_classes": 10}),
}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("export", {"max_label_flips": -1}, r"export\.max_label_flips is -1: .* or equal to 0"),
        ("export", {"max_probability_gap": 2}, r"max_probability_gap is 2: .* or equal to 1"),
        ("export", {"latency_runs": 5}, r"latency_runs is 5: .* or equal to 10"),
        ("export", {"golden_images": 1001}, r"golden_images is 1001: .* or equal to 1000"),
        ("export", {"latency_run": 5}, r"latency_run; did you mean `export.latency_runs`\?"),
        ("evaluate", {"batch_size": 0}, r"evaluate\.batch_size is 0: .* or equal to 1"),
        ("evaluate", {"worst_images": 201}, r"worst_images is 201: .* or equal to 200"),
        ("evaluate", {"batch_size": 2.5}, r"batch_size is 2\.5: .*valid integer"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(name, change, message):
    kind, valid = SECTIONS[name]
    with pytest.raises(RequestError, match=message):
        params.check(name, kind, valid | change)
