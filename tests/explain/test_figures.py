from pathlib import Path

import pytest
from matplotlib.figure import Figure

from convoy.core.errors import RequestError
from convoy.explain import figures


@pytest.mark.parametrize("ending", figures.FORMATS)
def test_equal_figures_make_equal_files(tmp_path, ending):
    for name in ("one", "two"):
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4], clip_on=True)
        figures.write(figure, tmp_path / "new" / f"{name}{ending}")

    assert (tmp_path / f"new/one{ending}").read_bytes() == (tmp_path / f"new/two{ending}").read_bytes()


def test_other_formats_are_refused():
    figures.check_name(Path("out.SVG"))
    with pytest.raises(
        RequestError, match=r"out\.gif is no \.png or \.svg file, which is what is drawn.*--picture out\.png"
    ):
        figures.check_name(Path("out.gif"))


def test_a_place_that_cannot_be_written_is_said_with_another(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        RequestError,
        match=r"The picture .*file/out\.png cannot be written: .*Name another place, or make room there\.",
    ):
        figures.write(Figure(), tmp_path / "file" / "out.png")
