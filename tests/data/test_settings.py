from pathlib import Path

import pytest

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.core.params import check, section
from convoy.data.settings import DataParams

ROOT = Path(__file__).parents[2]
GOOD = yaml.read(ROOT / "params.yaml")["data"]


def test_the_shipped_params_are_valid():
    assert section("data", DataParams, ROOT / "params.yaml").image_px >= 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_px": 7}, "data.image_px is 7: input should be greater than or equal to 8"),
        ({"image_px": 1025}, "data.image_px is 1025: input should be less than or equal to 1024"),
        ({"image_px": 32.5}, "data.image_px is 32.5: "),
        ({"fit": "stretch"}, "'squash', 'crop' or 'letterbox'"),
        (
            {"crop_share": 0.875},
            "crop_share: 0.875 has no effect with fit: squash, which shows the whole image. Set crop_share: 1.0",
        ),
        (
            {"crop_share": 0, "fit": "crop"},
            "data.crop_share is 0: input should be greater than or equal to 0.1",
        ),
        (
            {"crop_share": 1.5, "fit": "crop"},
            "data.crop_share is 1.5: input should be less than or equal to 1",
        ),
        (
            {"store_px": 16},
            "store_px: 16 is less than image_px: 32, the side that the network sees. Set store_px: 0",
        ),
        ({"store": "jpeg"}, "input should be 'auto', 'pixels' or 'encoded'"),
        ({"store_px": 4096}, "data.store_px is 4096: input should be less than or equal to 2048"),
        ({"resize_size": 256}, "did you mean `data.store_px`"),
        ({"crop_pct": 0.9}, "did you mean `data.crop_share`"),
        ({"splits": {"val": 0.0, "test": 0.2}}, "data.splits.val is 0.0: input should be greater than or"),
        ({"splits": {"val": 0.1, "test": 0.005}}, "input should be at least 0.01, or 0 for no test split"),
        (
            {"splits": {"val": 0.1, "test": "none"}},
            "data.splits.test is 'none': input should be a share from 0 to 0.5, or val",
        ),
        ({"splits": {"val": 0.45, "test": 0.4}}, "val + test must be at most 0.8"),
        ({"splits": {"val": 0.1, "tset": 0.2}}, "data.splits.tset; did you mean `data.splits.test`?"),
        ({"columns": GOOD["columns"] | {"label": 0}}, "data.columns.label"),
        ({"columns": GOOD["columns"] | {"group": ""}}, "data.columns.group"),
        ({"max_quarantined": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key_and_the_range(change, message):
    with pytest.raises(RequestError) as caught:
        check("data", DataParams, GOOD | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("test", ["val", 0, 0.0])
def test_no_test_split_is_cut_where_results_are_measured_on_val(test):
    params = check("data", DataParams, GOOD | {"splits": {"val": 0.2, "test": test}})
    assert (params.splits.test, params.cut(()), params.cut(("train", "test"))) == (0, ("val",), ("val",))
    assert check("data", DataParams, GOOD).cut(()) == ("val", "test")
