"""The page of a dataset: self-contained, escaped, small, and legible on a phone."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import opened
from convoy.core.dataset import SPLITS
from convoy.data import report
from convoy.data.prepare import prepare
from convoy.data.records import Finding, Pair, Record
from convoy.data.scan import Scan
from convoy.images.delivery import Delivery
from deliveries import data_params

LIMIT_BYTES = 3_000_000
ODD = [
    "قطة صغيرة",
    "🐶 dog 👩‍👩‍👧",
    "x" * 200,
    'a|b <b>$1$</b> & co " onload=alert(1)',
    "evil\u202egpj.exe",
    "word " * 30,
]


CUT = """selector => [...document.querySelectorAll(selector)].filter(e =>
    e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""
"""Elements whose text is cut off."""


def scan_of(labels, per_split=(3, 1, 1), px=8, findings=(), pairs=(), extra=()):
    """A scan of noise with as many images per class and split, and the packed images."""
    records = [
        Record(f"{label}/{split}/{n}.png", label, split, pixels=f"{k:03}{split}{n}")
        for k, label in enumerate(labels)
        for split, number in zip(SPLITS, per_split, strict=True)
        for n in range(number)
    ]
    kept = [record._replace(kept=n) for n, record in enumerate(records)]
    rng = np.random.default_rng(1)
    squares = rng.integers(0, 256, (len(kept), px, px, 3), dtype=np.uint8)
    statistics = {
        name: rng.lognormal(3, 1, len(kept)).astype(np.float32)
        for name in (*report.HISTOGRAMS, "red", "green", "blue")
    }
    scan = Scan(Delivery(Path("photos")), [*kept, *extra], sorted(labels), (), findings, pairs, statistics)
    return scan, squares


def page_of(tmp_path, scan, squares):
    report.write(tmp_path / "report.html", scan, data_params(), squares)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def images_in(page):
    return re.findall(r'<img src="([^"]*)"', page)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page = page_of(tmp_path, *scan_of(["cat", "dog"]))
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"|url\(([^)]*)\)', page)
    assert addresses
    assert all("".join(found).startswith("data:image/png;base64,") for found in addresses)
    assert "<script" not in page
    assert "@import" not in page


def test_hostile_names_are_escaped_wherever_they_stand(tmp_path):
    evil = "<b>x</b>\" onload='alert(1)' \u202egpj"
    extra = [
        Record(f"{evil}/{status}.png", evil, None, status=status, reason=evil)
        for status in ("quarantined", "left_out", "passed_over")
    ]
    findings = [
        Finding("class_names", 1, None, "report", evil, (f"{evil}/train/0.png", f"{evil}/left_out.png"))
    ]
    page = page_of(
        tmp_path, *scan_of([evil, "dog"], findings=findings, pairs=[Pair(0, 5, 0.98)], extra=extra)
    )
    assert "<b>x" not in page
    assert '" onload' not in page
    assert "\u202e" not in page
    assert page.count("&lt;b&gt;x&lt;/b&gt;&#34; onload=&#39;alert(1)&#39; &lt;U+202E&gt;gpj") > 5


def test_images_of_findings_come_first_the_most_severe_before_all_others(tmp_path):
    findings = [
        Finding("dark", 1, 8, "report", "one is dark", ("cat/train/1.png",)),
        Finding("near_duplicates", 1, 0.97, "drop", "one is a copy", ("dog/train/2.png",)),
    ]
    scan, squares = scan_of(["cat", "dog"], findings=findings)
    page = page_of(tmp_path, scan, squares)
    indices = [record.kept for path in ("dog/train/2.png", "cat/train/1.png") for record in scan.records if record.path == path]  # fmt: skip
    for uri, index in zip(images_in(page), indices, strict=False):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
        np.testing.assert_array_equal(shown, squares[index])
    assert page.index("one is a copy") < page.index("one is dark") < page.index("<h2>Classes")


def test_pairs_stand_side_by_side_with_their_correlation_those_across_splits_first(tmp_path):
    pairs = [Pair(0, 1, 0.999), Pair(1, 7, 0.98, mirrored=True), Pair(2, 4, 0.97)]
    page = page_of(tmp_path, *scan_of(["cat", "dog"], pairs=pairs))
    found = re.findall(r"correlation (0\.\d{4})(, mirrored)?", page)
    assert found == [("0.9700", ""), ("0.9800", ", mirrored"), ("0.9990", "")]
    many = [Pair(n % 5, 5 + n % 5, 0.98) for n in range(100)]
    page = page_of(tmp_path, *scan_of(["cat", "dog"], pairs=many))
    assert page.count("correlation 0.98") == report.MOST_PAIRS
    assert (
        f"100 pairs; those across splits first, then those under two labels. The first {report.MOST_PAIRS}"
        in page
    )


def test_of_many_classes_thirty_are_shown(tmp_path):
    labels = [f"n{n:03}" for n in range(300)]
    page = page_of(tmp_path, *scan_of(labels))
    assert page.count('<div class="class">') == report.MOST_CLASSES
    assert "and 270 more classes of 5 images each" in page


def test_a_class_without_images_in_a_split_stands_out(tmp_path):
    page = page_of(tmp_path, *scan_of(["cat", "dog"], per_split=(3, 0, 2)))
    assert page.count('class="val none">0<') == 2
    assert page.count("test none") == 0


def test_reasons_and_kinds_are_counted_with_examples(tmp_path):
    extra = [Record(f"cat/{n}.jpg", "cat", None, status="quarantined", reason="is empty") for n in range(9)]
    extra += [Record(f"{n}.json", None, None, status="passed_over", reason="sidecar") for n in range(4)]
    page = page_of(tmp_path, *scan_of(["cat", "dog"], extra=extra))
    assert re.search(r"is empty <b>\(9\)</b>:(<br><code>cat/\d\.jpg</code>){5}<br>.*and 4 more", page)
    assert re.search(r"sidecar</td><td>4</td>.*<code>0\.json", page)


def test_the_largest_page_of_the_noisiest_images_is_below_three_megabytes(tmp_path):
    labels = [f"n{n:03}" for n in range(60)]
    scan, squares = scan_of(labels, per_split=(4, 1, 1), px=96)
    paths = tuple(record.path for record in scan.records)
    findings = [Finding(f"check{n}", 12, 1, "report", "x" * 400, paths[12 * n :]) for n in range(13)]
    pairs = [Pair(n, n + 1, 0.99) for n in range(50)]
    page = page_of(tmp_path, replace(scan, findings=findings, pairs=pairs), squares)
    assert len(images_in(page)) == 30 * report.PER_CLASS + report.MOST_SUSPICIOUS + 2 * report.MOST_PAIRS
    assert len(page.encode()) < LIMIT_BYTES


@pytest.mark.parametrize(
    ("values", "low", "high", "median", "at"),
    [
        ([7.0] * 10, 6.3, 7.7, 7, 0.5),
        ([0.0] * 10, -0.5, 0.5, 0, 0.5),
        (list(range(1, 1002)), 6, 996, 501, 0.5),
    ],
)
def test_a_histogram_spans_the_middle_99_percent(values, low, high, median, at):
    labels = [f"{n}" for n in range(len(values))]
    scan, _ = scan_of(labels, per_split=(1, 0, 0))
    statistics = {"brightness": np.array(values, np.float32)}
    [histogram] = report.histograms(replace(scan, statistics=statistics))
    assert (histogram.low, histogram.high, histogram.median) == pytest.approx((low, high, median))
    assert histogram.at == pytest.approx(at)
    assert max(histogram.bars) == 1
    assert len(histogram.bars) == report.BINS


def test_prepare_writes_the_page_with_what_was_delivered(folder, pets, settings, tmp_path):
    prepare(folder(pets | {"cat/x.png": b""}), settings(), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "80 images of 2 classes" in page
    assert "is empty (0 bytes):<br><code>cat/x.png</code>" in " ".join(page.split())
    assert "(1: damaged 1)" in page
    assert len(images_in(page)) >= 2 * report.PER_CLASS


def test_no_name_makes_the_page_wider_than_its_window(tmp_path):
    findings = [
        Finding("dark", 2, 8, "report", "w" * 300, (f"{ODD[2]}/train/0.png", f"{ODD[0]}/train/0.png"))
    ]
    extra = [Record("y" * 240, "cat", None, status="quarantined", reason="z" * 300)]
    scan, squares = scan_of([*ODD, "cat"], findings=findings, pairs=[Pair(0, 9, 0.98)], extra=extra)
    page_of(tmp_path, scan, squares)
    with opened(f"file://{tmp_path}/report.html") as page:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for width in (375, 1200):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                # Long names end with a whole line above the split; a phone, which shows no titles, shows the names of classes in full.
                assert page.evaluate(CUT, "figcaption, .class .name" if width == 375 else "figcaption") == []
                assert (
                    page.locator("figcaption", has_text=ODD[2])
                    .get_by_text("train", exact=True)
                    .first.is_visible()
                )
            colours = (
                "getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color"
            )
            findings.append(page.evaluate(colours))
        assert findings[-1] != findings[-2]
