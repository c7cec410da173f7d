"""The list of networks, and its cache."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from convoy.explain import network_list
from convoy.explain.network_list import Cache, Entry
from convoy.models import spec, timm, torchvision
from network_specs import SHIPPED

LARGE = {"image_px": 224, "classes": 1000, "auxiliary_parameters": 0}
RESNET = Entry(name="resnet18", parameters=11_689_512, macs=1_814_073_344, smallest_px=1, **LARGE)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def only_resnet(monkeypatch):
    """A torchvision of one classifier, and what was measured of it."""
    measured = []

    def measure(name):
        measured.append(name)
        return RESNET

    monkeypatch.setattr(torchvision, "names", lambda: ["resnet18"])
    monkeypatch.setattr(timm, "names", list)
    monkeypatch.setattr(network_list, "_measure_classifier", measure)
    return measured


def described(folder, *, everything=False, pattern=""):
    return network_list.entries(folder, 32, 10, everything=everything, quiet=True, pattern=pattern)


def test_every_shipped_network_is_listed_with_its_numbers_and_from_then_on_without_torch():
    entries = {entry.name: entry for entry in described(SHIPPED)}
    assert list(entries) == spec.names(SHIPPED)
    assert all(entry.problem is None for entry in entries.values())
    alexnet = Entry(name="alexnet", parameters=61_100_840, macs=714_188_480, smallest_px=63, **LARGE)
    assert entries["alexnet"] == alexnet
    lenet5 = entries["lenet5"]
    assert (lenet5.image_px, lenet5.classes, lenet5.smallest_px) == (32, 10, 16)
    code = "import sys; sys.modules['torch'] = None; from pathlib import Path; from convoy.explain import network_list;"
    code += f"print(len(network_list.entries(Path({str(SHIPPED)!r}), 32, 10, everything=False, quiet=True)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(len(entries))


def test_a_network_that_takes_no_such_images_is_counted_for_the_smallest_that_it_takes(home):
    large = "layers: [{conv: {filters: 2, kernel: 50}}, flatten, {dense: classes}]\n"
    (home / "large.yaml").write_text(large, encoding="utf-8")
    [entry] = described(home)
    assert (entry.image_px, entry.smallest_px) == (50, 50)


def test_a_broken_spec_is_listed_with_its_error(home):
    specs = {"broken": "convolution, flatten", "cut": "{dense: classes}", "fine": "flatten, {dense: classes}"}
    for name, layers in specs.items():
        (home / f"{name}.yaml").write_text(f"layers: [{layers}]\n", encoding="utf-8")
    broken, cut, fine = described(home)
    assert "broken.yaml:1, layer 1: unknown layer `convolution`" in str(broken.problem)
    assert "needs a flat row, but its input is the volume 1×1×3" in str(cut.problem)
    assert fine.parameters == (32 * 32 * 3 + 1) * 10
    lines = network_list.lines([broken, cut, fine])
    assert lines[2].split()[:2] == ["fine", "30,730"]
    assert lines[-2].startswith("broken: ")
    assert "needs a flat row" in lines[-1]


def test_a_spec_is_measured_once_until_its_layers_change(home, monkeypatch):
    (home / "mine.yaml").write_text("layers: [flatten, {dense: classes}]\n", encoding="utf-8")
    measured, measure = [], network_list._measure
    watched = Mock(side_effect=lambda spec, *more: measured.append(spec.name) or measure(spec, *more))
    monkeypatch.setattr(network_list, "_measure", watched)
    first = described(home)
    (home / "mine.yaml").rename(home / "other.yaml")
    assert described(home) == [first[0].model_copy(update={"name": "other"})]
    assert measured == ["mine"]
    (home / "other.yaml").write_text("layers: [flatten, {dense: 7}, {dense: classes}]\n", encoding="utf-8")
    assert described(home)[0].parameters == (3 * 32 * 32 + 1) * 7 + (7 + 1) * 10
    assert measured == ["mine", "other"]


def test_torchvisions_classifiers_come_on_request_and_are_measured_once(home, only_resnet, monkeypatch):
    assert described(home) == []
    first = described(home, everything=True)
    monkeypatch.setattr(torchvision, "names", None)  # the second time needs no torchvision
    assert described(home, everything=True) == first
    assert [entry.name for entry in first] == ["torchvision:resnet18"]
    assert only_resnet == ["resnet18"]


def test_a_one_line_spec_is_cached_too(home, only_resnet):
    (home / "mine.yaml").write_text("torchvision: resnet18\n", encoding="utf-8")
    assert described(home) == described(home) == [RESNET.model_copy(update={"name": "mine"})]
    assert only_resnet == ["resnet18"]


@pytest.mark.parametrize("content", ["{", '{"names": 3}', '{"networks": {"resnet18": {"macs": "many"}}}', ""])
def test_a_damaged_cache_is_replaced(home, only_resnet, content):
    network_list.cache_file().parent.mkdir(parents=True)
    network_list.cache_file().write_text(content, encoding="utf-8")
    assert described(home, everything=True)[0].parameters == 11_689_512
    assert json.loads(network_list.cache_file().read_text(encoding="utf-8"))["names"] == ["resnet18"]


def test_a_cache_that_cannot_be_written_is_reported_and_stops_nothing(home, only_resnet, capsys):
    (home / "cache").touch()  # in place of a folder
    assert len(described(home, everything=True)) == 1
    assert "cannot be written, so networks are measured again" in capsys.readouterr().err


def test_networks_are_listed_where_no_home_folder_is_known(home, only_resnet, monkeypatch, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(
        Path, "home", lambda: Path("~nobody-of-this-name").expanduser()
    )  # raises as it does there
    assert len(described(home, everything=True)) == 1
    assert "cannot be written, so networks are measured again" in capsys.readouterr().err


def test_the_cache_is_in_the_users_cache_folder(home, monkeypatch):
    assert network_list.cache_file().parent == home / "cache" / "convoy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(home))
    assert network_list.cache_file().parent == home / ".cache" / "convoy"


def test_progress_is_shown_unless_quiet(home, only_resnet, capsys):
    Cache.read(network_list.cache_file()).all_of_torchvision(quiet=True)
    assert capsys.readouterr().out == ""
    network_list.cache_file().unlink()
    Cache.read(network_list.cache_file()).all_of_torchvision(quiet=False)
    assert "measuring torchvision's classifiers" in capsys.readouterr().out


@pytest.fixture
def three_of_timm(only_resnet, monkeypatch):
    """A timm of three networks, of which at most two are measured for a list, and what was measured of them."""
    measured = []

    def measure(zoo, name, image_px, classes):
        measured.append((zoo, name, image_px, classes))
        return Entry(name=name, parameters=5, macs=7, smallest_px=1, **LARGE)

    monkeypatch.setattr(timm, "names", lambda: ["big_a", "small_a", "small_b"])
    monkeypatch.setattr(timm, "made_for", lambda name: (256, 1000))
    monkeypatch.setattr(network_list, "_measure_of_library", measure)
    monkeypatch.setattr(network_list, "MEASURED", 2)
    return measured


def test_many_networks_of_timm_are_listed_by_name_and_few_are_measured_once(home, three_of_timm, monkeypatch):
    listed = described(home, everything=True)
    assert [entry.name for entry in listed[1:]] == ["timm:big_a", "timm:small_a", "timm:small_b"]
    assert [entry.parameters for entry in listed[1:]] == [None] * 3
    assert three_of_timm == []
    text = network_list.lines(listed)
    assert any(line.startswith("3 networks of timm ") and "--filter" in line for line in text)
    assert text[-1] == "timm:big_a  timm:small_a  timm:small_b"
    for _ in range(2):
        assert [entry.parameters for entry in described(home, everything=True, pattern="small")] == [5, 5]
        monkeypatch.setattr(timm, "names", None)  # from then on without timm
    assert three_of_timm == [("timm", "small_a", 256, 1000), ("timm", "small_b", 256, 1000)]
    content = json.loads(network_list.cache_file().read_text(encoding="utf-8"))
    network_list.cache_file().write_text(json.dumps(content | {"timm_version": "0.1"}), encoding="utf-8")
    monkeypatch.setattr(timm, "names", lambda: ["new"])
    assert [entry.name for entry in described(home, everything=True, pattern="timm:")] == ["timm:new"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("small", ["timm:small_a", "timm:small_b"]), ("timm:*_a", ["timm:big_a", "timm:small_a"]),
     ("resnet", ["torchvision:resnet18"]), ("mine", ["mine"]), ("nothing", []), ("*18", ["torchvision:resnet18"])],
)  # fmt: skip
def test_a_filter_selects_by_a_part_of_the_name_or_a_pattern(home, three_of_timm, pattern, names):
    (home / "mine.yaml").write_text("layers: [flatten, {dense: classes}]\n", encoding="utf-8")
    assert [entry.name for entry in described(home, everything=True, pattern=pattern)] == names
    assert network_list.lines(described(home, everything=True, pattern=pattern))


def test_a_network_of_timm_is_measured_for_its_own_images(home):
    (home / "mine.yaml").write_text("timm: mobilenetv4_conv_small\n", encoding="utf-8")
    [entry] = described(home)
    assert entry.problem is None
    assert (entry.name, entry.image_px, entry.classes, entry.smallest_px) == ("mine", 224, 1000, 1)
    assert entry.parameters == 3_774_024


def test_measuring_gives_torchvisions_own_numbers_and_the_smallest_side():
    assert network_list._measure_classifier("resnet18") == RESNET
    squeezed = network_list._measure_classifier("squeezenet1_1")
    assert (squeezed.parameters, squeezed.smallest_px, squeezed.image_px) == (1_235_496, 17, 224)
