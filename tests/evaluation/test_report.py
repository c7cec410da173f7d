import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.evaluation import feature_maps, report
from convoy.evaluation.evaluate import summarise
from feature_networks import HEAD, conv, features_of, from_layers, noise

NONE = {
    "checked": 9,
    "suspected": 0,
    "accuracy": 1.0,
    "lowest_accuracy": 0.85,
    "is_meaningful": True,
    "shown": [],
}


def page_of(model, tmp_path, px=32, classes=("cat", "dog"), **subject):
    image_u8, features = features_of(model, px)
    subjects = [report.Subject(**{"source": "some/image.png", "image_u8": image_u8} | subject)]
    report.write_features(tmp_path / "page.html", "tiny", list(classes), subjects, features)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def links(page):
    return ["".join(link) for link in re.findall(r'(?:src|srcset|href)="([^"]*)"|url\(([^)]*)\)', page)]


@pytest.fixture(scope="module")
def page(evaluated):
    return (evaluated[0] / "report.html").read_text(encoding="utf-8")


def test_the_report_is_self_contained_and_escapes_class_names(page):
    assert "90.00" in page
    assert len(links(page)) == 1 + 3 + 3  # confusion, mistakes, suspected labels
    assert all(link.startswith("data:image/png;base64,") for link in links(page))
    assert "<script" not in page
    assert "<b>dark</b>" not in page
    assert "&lt;b&gt;dark&lt;/b&gt;" in page


def test_a_percent_sign_stays_on_the_line_of_its_number(evaluated, page):
    for text in (page, (evaluated[0] / "features.html").read_text(encoding="utf-8")):
        assert "&#8239;%" in text
        assert "&thinsp;%" not in text


def test_pages_are_readable_in_light_and_dark(evaluated, page):
    for text in (page, (evaluated[0] / "features.html").read_text(encoding="utf-8")):
        parts = text.split("prefers-color-scheme: dark")
        light, dark = (re.search(r"--ink: (#\w+)", part)[1] for part in parts[:2])
        assert light != dark


def test_the_report_shows_no_more_mistakes_than_configured(page):
    assert page.count("<figure>") == 3 + 3  # mistakes and suspected labels


def test_the_most_confident_mistakes_come_first():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [0.6, 0.4]], np.float32)
    images_u8 = np.zeros((4, 8, 8, 3), np.uint8)
    labels = np.array([1, 0, 1, 1])
    mistakes = report.most_confident_mistakes(images_u8, labels, probabilities, "wxyz", ["a", "b"], most=2)
    assert [mistake["path"] for mistake in mistakes] == ["w", "x"]
    assert (mistakes[1]["predicted"], mistakes[1]["actual"]) == ("b", "a")
    assert mistakes[1]["probability"] == pytest.approx(0.8)
    assert mistakes[1]["probability_of_actual"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "classes",
    [
        ["costs $5", "$\\frac{$", "a name that is much longer than its axis"],
        ["日本猫", "🐶 dog"],  # the font of matplotlib lacks them
        [f"class {k}" for k in range(300)],
    ],
    ids=["formulas", "letters", "many"],
)
@pytest.mark.filterwarnings("error")
def test_the_confusion_matrix_of_any_class_names_and_numbers_is_drawn(classes):
    counts = np.eye(len(classes), dtype=np.int64) * 3
    image = Image.open(io.BytesIO(report.draw_confusion(counts, classes)))
    assert image.format == "PNG"
    assert max(image.size) <= 2000


def test_of_many_classes_the_page_lists_the_worst_first_in_a_box_that_scrolls(tmp_path):
    classes = [f"class{k}" for k in range(report.MOST_NAMES + 1)]
    counts = np.eye(len(classes), dtype=np.int64) * 3
    counts[7] = np.roll(counts[7], 1)
    counts[3, 3] = 0  # only trained on
    facts = {
        "network": "tiny",
        "split": "test",
        "counts": {},
        "image_px": 8,
        "fit": "squash",
        "crop_share": 1.0,
        "data_hash": "0",
        "temperature": 1.0,
    }
    for chosen, many in ((slice(None), True), (slice(report.MOST_NAMES), False)):
        part = counts[chosen, chosen]
        report.write_report(
            tmp_path / "report.html",
            facts,
            summarise(part, classes[chosen]) | {"ece": 0.1},
            part,
            mistakes=[],
            suspects=NONE,
        )
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        rows = re.findall(r'scope="row">(\w+)<', page)
        assert sorted(rows) == sorted(classes[chosen])
        assert ('class="scroll many"' in page) == ("lowest F1 first" in page) == many
        assert (rows[:2] + rows[-1:] == ["class7", "class8", "class3"]) == many
        assert (rows == classes[chosen]) != many
        assert "no image of 1 of the classes" in page


def test_the_confusion_matrix_has_a_transparent_background_and_text_readable_on_black_and_white(evaluated):
    image = Image.open(evaluated[0] / "confusion.png")
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0))[3] == 0
    luminance = [(x / 255) ** 2.2 for x in bytes.fromhex(report.TEXT.removeprefix("#"))]
    text = float(np.dot(luminance, [0.2126, 0.7152, 0.0722]))
    assert 1.05 / (text + 0.05) > 3
    assert (text + 0.05) / 0.05 > 3


def test_cells_of_the_confusion_matrix_without_images_are_transparent():
    image = Image.open(io.BytesIO(report.draw_confusion(np.eye(2, dtype=np.int64), ["a", "b"])))
    opaque = np.asarray(image)[..., 3] > 200
    upper, lower = (np.flatnonzero(opaque[int(share * image.height)]).mean() for share in (0.25, 0.6))
    assert upper < image.width / 2 < lower


def test_equal_counts_give_equal_bytes():
    counts = np.array([[3, 1], [0, 4]])
    assert report.draw_confusion(counts, ["a", "b"]) == report.draw_confusion(counts, ["a", "b"])


def test_the_features_page_is_self_contained_and_below_a_megabyte(tmp_path):
    deep = [conv(16), "relu", conv(16), "relu", conv(16), "relu", *HEAD]
    # Noise, and three volumes of full size: the worst case.
    page = page_of(from_layers(deep, px=224), tmp_path, px=224)
    assert len(links(page)) == 1 + 16 + 3 * 8
    assert all(link.startswith("data:image/png;base64,") for link in links(page))
    assert "<script" not in page
    assert len(page) < 1_000_000


def test_names_are_escaped_in_the_features_page(tmp_path):
    model = from_layers([conv(4), "relu", *HEAD])
    page = page_of(model, tmp_path, classes=("<b>cat</b>", "a & b"), source="<i>x</i>.png")
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_the_page_shows_the_image_as_the_network_sees_it(tmp_path):
    image_u8 = noise(32)
    page = page_of(from_layers([conv(4), "relu", *HEAD]), tmp_path, image_u8=image_u8)
    np.testing.assert_array_equal(decoded(re.search(r"--image: url\(([^)]*)\)", page)[1]), image_u8)


def test_a_map_is_black_at_0_and_below_and_white_at_its_largest_value():
    values = np.array([[-1.0, 0.0], [1.0, 2.0]], np.float32)
    drawn = decoded(report.draw_map(feature_maps.ActivationMap(0, 2.0, values)))
    assert drawn.tolist() == [[0, 0], [128, 255]]
    silent = decoded(report.draw_map(feature_maps.ActivationMap(0, 0.0, np.zeros((2, 2), np.float32))))
    assert not silent.any()


def test_a_filter_is_gray_at_0_and_full_at_its_largest_weight_of_either_sign():
    weights = np.array([[[0.0, 0.5, -0.5]], [[0.25, 0, 0]]], np.float32)
    assert decoded(report.draw_filter(weights))[:, 0].tolist() == [[128, 255, 0], [191, 128, 128]]


def test_gray_images_show_the_sum_of_the_weights_over_the_colours(tmp_path):
    model = from_layers([{"conv": {"filters": 1, "kernel": [1, 2]}}, *HEAD], mean=(0.3, 0.3, 0.3))
    with torch.no_grad():
        model.network.conv1.weight.copy_(torch.tensor([[1.0, 1, 0], [-2, -2, 0]]).T.view(1, 3, 1, 2))
    page = page_of(model, tmp_path)
    assert "training images are gray" in page
    first = decoded(re.search(r'<img src="([^"]*)" alt="Filter 0"', page)[1])
    assert first.tolist() == [[[191] * 3, [0] * 3]]


@pytest.mark.parametrize(
    ("layers", "text", "filters"),
    [
        ([conv(6, groups=3), "relu", *HEAD], "on one colour each", 6),
        ([conv(97), "relu", *HEAD], r"The first 96 of\s+97 filters", 96),
        (["flatten", {"dense": "classes"}], "no convolution, so there are no filters or maps to show", 0),
        (
            [{"conv": {"filters": 4, "kernel": 16, "stride": 16}}, *HEAD],
            "1 convolution, .* layers process tokens",
            4,
        ),
    ],
    ids=["filters of a single colour", "many filters", "no convolution", "transformer"],
)
def test_the_features_page_describes_the_filters_and_maps_that_a_network_has(tmp_path, layers, text, filters):
    page = page_of(from_layers(layers), tmp_path)
    assert re.search(text, page, re.DOTALL)
    assert page.count('alt="Filter') == filters
    assert ("How to read the maps" in page) == (filters > 0)


def test_a_known_class_marks_the_prediction_as_right_or_wrong(tmp_path):
    model = from_layers([conv(4), "relu", *HEAD])
    with torch.no_grad():
        model.network.dense1.bias.copy_(torch.tensor([9.0, 0.0]))
    assert 'class="top good"' in page_of(model, tmp_path, actual="cat")
    assert 'class="top bad"' in page_of(model, tmp_path, actual="dog")
    assert 'class="top"' in page_of(model, tmp_path)
