"""How a source of starting weights may be spelt."""

from pathlib import Path

import pytest

from convoy.core import params
from convoy.core.errors import RequestError
from convoy.training.network_settings import NetworkParams
from convoy.training.sources import canonical, kind


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ("none", "none"),
        ("imagenet", "imagenet"),
        ("runs:/0a1b", "run"),
        ("models:/convoy@champion", "model"),
        ("models:/my model/12", "model"),
        ("https://example.com/w.pth", "url"),
        ("s3://bucket/w.pth", "url"),
        ("best.ckpt", "path"),
        ("./mine", "path"),
        ("~/mine", "path"),
        ("../other/build/model", "path"),
    ],
)
def test_forms_are_told_by_their_spelling(asked: str, form: str) -> None:
    assert kind(asked) == form


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "imagnet",
            r"^`imagnet` is no source of weights; did you mean `imagenet`\? A path needs a slash: \./imagnet$",
        ),
        ("None", r"did you mean `none`\?"),
        ("", r"`` is no source of weights; there are: imagenet, none"),
        (
            "run:/12",
            r"`run:/12` is no source of weights; did you mean `runs:`\? There are: none, imagenet, PATH",
        ),
        ("runs:/", r"`runs:/` names no run and no model\. There are: .*runs:/RUN_ID, models:/NAME@ALIAS"),
        ("runs:/12/model", "names no run"),
        ("models:/convoy", "names no run and no model"),
        ("models:/convoy/latest", "names no run and no model"),
    ],
)
def test_anything_else_is_refused_with_the_nearest_form(asked: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        kind(asked)


def test_a_misspelt_source_is_refused_when_params_are_read() -> None:
    with pytest.raises(
        RequestError, match=r"network\.weights is 'imagnet': `imagnet` is no source of weights; did you"
    ):
        params.check("network", NetworkParams, {"name": "lenet5", "weights": "imagnet"})
    with pytest.raises(RequestError, match=r"network\.weights is None: input should be a valid string"):
        params.check("network", NetworkParams, {"name": "lenet5", "weights": None})
    assert params.check("network", NetworkParams, {"name": "lenet5", "weights": "none"}).weights == "none"


def test_a_path_has_one_spelling_however_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = (tmp_path / "root").resolve()
    (root / "sub").mkdir(parents=True)
    monkeypatch.chdir(root)
    assert canonical("sub/../sub/w.pth", root) == "sub/w.pth"
    assert canonical(str(root / "sub" / "w.pth"), root) == "sub/w.pth"
    assert canonical("./sub", root) == "./sub"
    assert canonical("../w.pth", root) == str(tmp_path.resolve() / "w.pth")
    assert canonical("models:/convoy@champion", root) == "models:/convoy@champion"
