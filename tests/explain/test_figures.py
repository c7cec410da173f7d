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
    with pytest.raises(RequestError, match=r"out\.gif is not a \.png or \.svg file.*--picture out\.png"):
        figures.check_name(Path("out.gif"))


def test_a_file_that_cannot_be_written_is_refused_with_the_cause(tmp_path):
    (tmp_path / "file").touch()
    message = r"The picture .*file/out\.png cannot be written: .*Choose another file, or free some space\."
    with pytest.raises(RequestError, match=message):
        figures.write(Figure(), tmp_path / "file" / "out.png")


def test_curves_of_a_run_are_drawn_by_epoch(tmp_path):
    history = tmp_path / "history.csv"
    rows = ("epoch,train/loss,val/loss,train/accuracy,val/accuracy", "1,2.0,2.1,0.2,0.1", "2,1.0,1.5,0.6,0.5")
    history.write_text("\n".join(rows), encoding="utf-8")
    svg = figures.draw_curves(history, tmp_path / "new" / "curves.svg").read_text(encoding="utf-8")
    texts = [line.strip()[5:-4] for line in svg.splitlines() if line.strip().startswith("<!-- ")]
    assert {"loss", "accuracy", "epoch"} <= set(texts)
    assert texts.count("train") == texts.count("val") == 2
