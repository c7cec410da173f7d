"""`convoy weights use` with real DVC, a real HTTP server and a real tracking store; only torchvision's address is invented."""

import functools
import http.server
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from convoy.commands import weights as command
from convoy.commands.weights import pin
from convoy.core import files, yaml
from convoy.core.errors import NetworkError, RequestError
from convoy.models import torchvision
from convoy.models.spec import Spec
from convoy.models.torchvision import Pretrained
from convoy.tracking import lookup
from convoy.tracking.store import connect
from convoy.training.pretrained import load
from small_pipeline import Small

pytestmark = pytest.mark.pipeline
"""Each start of DVC takes a second."""

SPEC = Spec.model_validate({"name": "mine", "layers": ["flatten", {"dense": "classes"}]})
FACTS = {"classes": ["cat", "dog"], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with nothing but `weights/`, an ignored `checkpoints/` and MLflow's tables."""
    root = tmp_path_factory.mktemp("empty") / "repository"
    (root / "weights").mkdir(parents=True)
    (root / "weights" / "README.md").write_text("pins\n")
    (root / ".gitignore").write_text("/checkpoints/\n/mlartifacts/\n/mlflow.db\n")
    (root / "networks").mkdir()
    (root / "networks" / "resnet18.yaml").write_text("torchvision: resnet18\n")
    (root / "networks" / "mine.yaml").write_text("layers: [flatten, {dense: classes}]\n")
    Small(root).init()
    Small(root).dvc("init", "-q")
    MlflowClient(f"sqlite:///{root}/mlflow.db").search_experiments()
    return root


@pytest.fixture
def root(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = shutil.copytree(empty, tmp_path / "repository", symlinks=True).resolve()
    monkeypatch.chdir(copied)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return copied


def test_the_network_is_that_of_params_unless_an_option_names_it(repository, tmp_path, monkeypatch):
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(command, "pin", lambda *words: calls.append(words) or ["pinned"])
    params = (repository / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(params.replace("name: convnet", "name: vgg16"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for option in ((), ("--network", "resnet18")):
        done = CliRunner().invoke(command.weights, ["use", "imagenet", *option])
        assert done.output == "pinned\n"
    assert calls == [("imagenet", "vgg16", tmp_path, ""), ("imagenet", "resnet18", tmp_path, "")]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(nn.Sequential(nn.Linear(3, 2)).state_dict())


def model(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(seed), folder / "weights.pt")
    (folder / "model.json").write_text(json.dumps(FACTS | {"fit": "crop"}))
    return folder


def meta(root: Path, name: str) -> dict[str, Any]:
    content = yaml.load((root / "weights" / f"{name}.dvc").read_text())["meta"]["convoy"]
    assert isinstance(content, dict)
    return content


def imported(root: Path, name: str) -> str:
    content = yaml.load((root / "weights" / f"{name}.dvc").read_text())
    assert "frozen" not in content
    return str(content["deps"][0]["path"])


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted((root / "weights").rglob("*")) if path.is_file()}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = functools.partial(Server, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server on this machine, and the folder that it serves."""
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as address:
        yield address, tmp_path / "served"


class Server(http.server.SimpleHTTPRequestHandler):
    unsteady = False
    guarded = False
    requests = itertools.count()

    def send_head(self) -> Any:
        return self.send_error(401) if self.guarded else super().send_head()

    def end_headers(self) -> None:
        if self.unsteady:
            self.send_header("ETag", f'"{next(self.requests)}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def published(address: str, folder: Path, digits: str = "") -> Pretrained:
    """Serve a small file as torchvision's weights of resnet18, under a name with its hash or another."""
    torch.save(tensors(), folder / "w")
    digits = digits or files.sha256(folder / "w")[:8]
    (folder / "w").rename(folder / f"resnet18-{digits}.pth")
    return torchvision.pretrained("resnet18")._replace(url=f"{address}/resnet18-{digits}.pth", sha256=digits)


@pytest.fixture(scope="module")
def imagenet(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, list[str]]]:
    """A repository with a pin of imagenet, the address that it imports while tests run, and what was printed."""
    folder = tmp_path_factory.mktemp("imagenet")
    root = shutil.copytree(empty, folder / "repository", symlinks=True).resolve()
    (folder / "served").mkdir()
    with serving(folder / "served") as address, pytest.MonkeyPatch.context() as patch:
        here = published(address, folder / "served")
        patch.setattr(torchvision, "pretrained", lambda *_: here)
        lines = pin("imagenet", "resnet18", root)
        patch.undo()
        yield root, here.url, lines


@pytest.fixture
def pinned(imagenet: tuple[Path, str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = shutil.copytree(imagenet[0], tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(root)
    return root


def test_imagenet_is_imported_by_its_url_and_read_from_the_pin(imagenet, monkeypatch):
    root, address, lines = imagenet
    monkeypatch.chdir(root)
    assert imported(root, "imagenet-resnet18.pth") == address
    name = "imagenet-resnet18.pth"
    sha256 = files.sha256(root / "weights" / name)
    assert meta(root, name) == {
        "source": "imagenet",
        "resolved": "ResNet18_Weights.IMAGENET1K_V1",
        "torchvision": "resnet18",
        "sha256": {name: sha256},
    }
    assert f"weights/{name}.dvc pins imagenet as ResNet18_Weights.IMAGENET1K_V1: 2 tensors" in lines[0]
    assert sha256[:16] in lines[0]
    assert "unfrozen import" in lines[1]
    assert lines[2].startswith(f"Warning: {address} is an address of this machine")
    assert lines[3] == "Next: git add weights"
    assert lines[4].startswith("Then: dvc exp run -S network.weights=imagenet ")
    assert {path.name for path in (root / "weights").iterdir()} == {
        *(".gitignore", "README.md", name, f"{name}.dvc")
    }
    starting = load("imagenet", Spec(name="resnet18", torchvision="resnet18"))
    assert starting.facts.mean == [0.485, 0.456, 0.406]


def test_a_fresh_clone_fetches_an_import_by_plain_repro(pinned, tmp_path):
    (pinned / "dvc.yaml").write_text(
        "stages:\n  train:\n    cmd: ls weights > out\n    deps: [weights]\n    outs: [out]\n"
    )
    Small(pinned).commit("x")
    Small(pinned).git("clone", "-q", str(pinned), str(tmp_path / "clone"))
    Small(tmp_path / "clone").dvc("repro")
    assert "imagenet-resnet18.pth" in (tmp_path / "clone" / "out").read_text()


def test_weights_of_timm_are_imported_from_the_hub_as_safetensors_and_bring_their_mean(
    root, served, monkeypatch
):
    address, folder = served
    hub = folder / "timm/mixer_b16_224.goog_in21k/resolve/main"
    hub.mkdir(parents=True)
    save_file(tensors(), hub / "model.safetensors")
    monkeypatch.setenv("HF_ENDPOINT", address)
    (root / "networks" / "modern.yaml").write_text("timm: mixer_b16_224.goog_in21k\n")
    lines = pin("imagenet", "modern", root)
    name = "imagenet-timm-mixer_b16_224.goog_in21k.safetensors"
    assert imported(root, name) == f"{address}/timm/mixer_b16_224.goog_in21k/resolve/main/model.safetensors"
    assert meta(root, name) == {
        "source": "imagenet",
        "resolved": "mixer_b16_224.goog_in21k",
        "timm": "mixer_b16_224.goog_in21k",
        "sha256": {name: files.sha256(hub / "model.safetensors")},
    }
    assert "2 tensors" in lines[0]
    assert any("data.image_px: 224" in line for line in lines)
    assert any(line.startswith("Licence of the weights: apache-2.0") for line in lines)
    starting = load("imagenet", Spec(name="modern", timm="mixer_b16_224.goog_in21k"))
    assert starting.facts.mean == [0.5] * 3
    assert torch.equal(starting.tensors["0.weight"], tensors()["0.weight"])
    with pytest.raises(
        NetworkError, match=r"no pin of it for resnet18 .*imagenet \(mixer_b16_224\.goog_in21k\)"
    ):
        load("imagenet", Spec(name="resnet18", torchvision="resnet18"))


def test_a_server_that_is_down_leaves_an_earlier_pin_as_it_was(pinned, monkeypatch):
    before = snapshot(pinned)
    gone = torchvision.pretrained("resnet18")._replace(url="http://127.0.0.1:9/resnet18-0badc0de.pth")
    monkeypatch.setattr(torchvision, "pretrained", lambda *_: gone)
    with pytest.raises(NetworkError, match=r"imagenet cannot be pinned: ERROR: (.|\n)*Nothing has changed"):
        pin("imagenet", "resnet18", pinned)
    assert snapshot(pinned) == before
    assert not list((pinned / ".dvc" / "tmp").glob("convoy-*"))


def test_a_file_with_another_hash_than_in_its_name_is_refused(root, served, monkeypatch):
    before = snapshot(root)
    other = published(*served, digits="0badc0de")
    monkeypatch.setattr(torchvision, "pretrained", lambda *_: other)
    message = r"imagenet cannot be pinned: http.*0badc0de\.pth .*sha256 .*0badc0de…\nNothing has changed"
    with pytest.raises(NetworkError, match=message):
        pin("imagenet", "resnet18", root)
    assert snapshot(root) == before


def test_imagenet_for_a_network_of_ones_own_is_refused(root):
    with pytest.raises(RequestError, match=r"structure of mine.*: resnet18, and for any"):
        pin("imagenet", "mine", root)


def test_a_checkpoint_outside_is_imported_with_a_warning_and_a_change_of_it_stops_a_training(root, tmp_path):
    torch.save(tensors(), tmp_path / "best.ckpt")
    lines = pin("../best.ckpt", "mine", root)
    slug = f"{tmp_path.name}-best"
    name = str(tmp_path.resolve() / "best.ckpt")
    assert imported(root, f"{slug}.ckpt") == name
    assert meta(root, f"{slug}.ckpt")["source"] == name
    assert "lies outside the repository; another machine" in lines[2]
    assert lines[-1] == f"Then: dvc exp run -S network.weights={name} (or set it in params.yaml)"
    assert load("../best.ckpt", SPEC) is not None
    torch.save(tensors(1), tmp_path / "best.ckpt")
    Small(root).dvc("repro", f"weights/{slug}.ckpt.dvc")
    with pytest.raises(NetworkError, match=rf"differs from the file pinned for .*convoy weights use {name}$"):
        load(name, SPEC)
    pin("../best.ckpt", "mine", root)
    assert load(name, SPEC) is not None


def test_what_git_tracks_is_imported_by_its_relative_path(root):
    model(root / "starts" / "pets")
    Small(root).commit("x")
    lines = pin("./starts/pets", "mine", root)
    assert imported(root, "starts-pets") == "../starts/pets"
    assert lines[-1] == "Or, as a teacher: dvc exp run -S train.teacher=starts/pets"
    assert not any("Warning" in line for line in lines)
    assert load("starts/pets", SPEC).facts.classes == ["cat", "dog"]


def test_what_git_does_not_track_becomes_a_copy_that_an_experiments_workspace_has(root):
    model(root / "checkpoints" / "0a1b")
    lines = pin("checkpoints/0a1b", "mine", root)
    assert "weights/checkpoints-0a1b is a copy" in lines[1]
    assert "git does not track checkpoints/0a1b" in lines[1]
    assert "dvc push" in lines[2]
    (root / "dvc.yaml").write_text(
        "stages:\n  train:\n    cmd: ls weights/checkpoints-0a1b > out\n    deps: [weights]\n    outs: [out]\n"
    )
    Small(root).commit("x")
    shutil.rmtree(root / "checkpoints")
    Small(root).dvc("exp", "run", "--temp", "--name", "elsewhere")
    assert Small(root).dvc("exp", "list", "--name-only").strip() == "elsewhere"
    assert load("checkpoints/0a1b", SPEC) is not None


def test_a_single_checkpoint_that_git_does_not_track_is_copied_too(root):
    model(root / "checkpoints" / "0a1b")
    pin("checkpoints/0a1b/weights.pt", "mine", root)
    assert list(meta(root, "0a1b-weights.pt")["sha256"]) == ["0a1b-weights.pt"]
    assert load("checkpoints/0a1b/weights.pt", SPEC) is not None


def pinned_names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "weights").glob("*.dvc"))


def test_sources_of_one_name_need_a_name_of_their_own(root):
    for number, where in enumerate(("more", "again")):
        model(root / "checkpoints" / where / "one" / "model", seed=number)
    pin("checkpoints/more/one/model", "mine", root)
    with pytest.raises(
        RequestError, match=r"weights/one-model is the pin of checkpoints/more/one/model\..*--name NAME"
    ):
        pin("checkpoints/again/one/model", "mine", root)
    pin("checkpoints/again/one/model", "mine", root, "again")
    assert pinned_names(root) == ["again", "one-model"]
    starting = [load(f"./checkpoints/{where}/one/model", SPEC) for where in ("more", "again")]
    assert not torch.equal(starting[0].tensors["0.weight"], starting[1].tensors["0.weight"])
    with pytest.raises(RequestError, match="weights/again is the pin of checkpoints/again/one/model"):
        pin("checkpoints/more/one/model", "mine", root, "again")
    with pytest.raises(RequestError, match=r"`a b` cannot be a name .*, such as a-b"):
        pin("checkpoints/more/one/model", "mine", root, "a b")


def test_a_pin_keeps_its_name_until_another_is_typed(root):
    model(root / "checkpoints" / "v1.2")
    pin("checkpoints/v1.2", "mine", root)
    assert pinned_names(root) == ["checkpoints-v1.2"], "the whole name of the folder"
    pin("checkpoints/v1.2", "mine", root, "pets")
    assert pinned_names(root) == ["pets"]
    assert not (root / "weights/checkpoints-v1.2").exists()
    pin("./checkpoints/v1.2", "mine", root)
    assert pinned_names(root) == ["pets"]
    assert load("checkpoints/v1.2", SPEC) is not None
    shutil.copytree(root / "checkpoints" / "v1.2", root / "start")
    pin("./start", "mine", root)
    assert pinned_names(root) == ["pets", "start"], "without the name of the clone"


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda path: torch.save({"a": Bomb()}, path), NetworkError, r"holds pickled code \(posix\.mkdir\)"),
        (lambda path: path.write_bytes(b"junk"), NetworkError, "not a file of weights"),
        (Path.mkdir, RequestError, r"is not the folder of a model: .* weights\.pt and model\.json"),
    ],
)
def test_other_files_than_weights_are_not_pinned(root, tmp_path, make, error, reason):
    before = snapshot(root)
    make(tmp_path / "w.pth")
    with pytest.raises(error, match=reason):
        pin("../w.pth", "mine", root)
    assert snapshot(root) == before
    assert not (root / "exploded").exists()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("imagnet", "did you mean `imagenet`"),
        ("none", r"`none` needs no pin: set network\.weights: none"),
        ("./weights", r"is inside weights/"),
        ("./best.ckpt", r"\./best\.ckpt does not exist; .* holds no `best\.ckpt`"),
        ("https://me:secret@example.com/w.pth", r"https://me:\*\*\*@example.com/w.pth contains credentials"),
    ],
)
def test_what_cannot_be_a_source_is_refused(root, source, reason):
    with pytest.raises(RequestError, match=reason):
        pin(source, "mine", root)


def test_a_file_of_the_users_own_is_not_replaced(root, tmp_path):
    torch.save(tensors(), tmp_path / "best.ckpt")
    mine = root / "weights" / f"{tmp_path.name}-best.ckpt"
    mine.write_bytes(b"mine")
    with pytest.raises(RequestError, match=r"best\.ckpt exists and belongs to no pin\. Choose .*--name NAME"):
        pin("../best.ckpt", "mine", root)
    assert mine.read_bytes() == b"mine"


def test_pinning_again_replaces_the_pin_of_an_earlier_version(root, tmp_path):
    torch.save(tensors(), tmp_path / "best.ckpt")
    pin("../best.ckpt", "mine", root)
    dvc_file = root / "weights" / f"{tmp_path.name}-best.ckpt.dvc"
    content = yaml.load(dvc_file.read_text())
    earlier = content.pop("meta")["convoy"]
    dvc_file.write_text(yaml.dump(content))
    ((file, sha256),) = earlier["sha256"].items()
    old = {"asked": earlier["source"], "resolved": "x", "fetched": "x", "file": file, "sha256": sha256}
    files.write_json(root / "weights" / f"{tmp_path.name}-best.json", old)
    assert load("../best.ckpt", SPEC) is not None
    lines = pin("../best.ckpt", "mine", root)
    assert "(before: x)" in lines[0]
    assert not list((root / "weights").glob("*.json"))
    assert load("../best.ckpt", SPEC) is not None


def test_any_url_can_be_pinned(root, served):
    torch.save(tensors(), served[1] / "theirs.bin")
    pin(f"{served[0]}/theirs.bin?download=1", "mine", root)
    [name] = pinned_names(root)
    assert name.endswith("theirs.bin")
    assert load(f"{served[0]}/theirs.bin?download=1", SPEC).file.suffix == ".bin"


def log(root: Path, artifacts: str | None = None, seed: int = 0) -> str:
    """Log a model to MLflow as `train` does; return the run's id."""
    client = connect()
    where = artifacts or (root / "mlartifacts").as_uri()
    experiment = client.create_experiment(f"e{len(client.search_experiments())}", artifact_location=where)
    run_id = str(client.create_run(experiment).info.run_id)
    client.log_artifacts(run_id, str(model(root / "checkpoints" / "made", seed)), "weights")
    return run_id


def test_an_alias_becomes_the_version_that_it_stands_for_now(root):
    client = connect()
    client.create_registered_model("convoy")
    for seed in (1, 2):
        run_id = log(root, seed=seed)
        client.create_model_version("convoy", "somewhere", run_id)
        client.set_registered_model_alias("convoy", "champion", str(seed))
        if seed == 1:
            first = pin("models:/convoy@champion", "mine", root)
    assert "pins models:/convoy@champion as models:/convoy/1: 2 tensors" in first[0]
    assert "because git does not track the runs' artifacts" in first[1]
    read_first = load("models:/convoy@champion", SPEC)
    assert read_first.resolved == "models:/convoy/1"
    assert torch.equal(read_first.tensors["0.weight"], tensors(1)["0.weight"])
    second = pin("models:/convoy@champion", "mine", root)
    assert "as models:/convoy/2 (before: models:/convoy/1)" in second[0]
    again = load("models:/convoy@champion", SPEC)
    assert torch.equal(again.tensors["0.weight"], tensors(2)["0.weight"])
    assert again.facts.mean == FACTS["mean"]


def test_a_runs_artifacts_outside_the_repository_are_imported(root, tmp_path):
    run_id = log(root, artifacts=(tmp_path / "store").as_uri())
    lines = pin(f"runs:/{run_id}", "mine", root)
    assert imported(root, f"runs-{run_id}") == f"{tmp_path.resolve()}/store/{run_id}/artifacts/weights"
    assert "lies outside the repository" in lines[2]


@pytest.fixture
def proxied(served: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run whose artifacts a tracking server hands out; the server is played by folders that are served."""
    model(served[1] / "run" / "weights")
    logged = lookup.LoggedWeights("runs:/12", "12", None, f"{served[0]}/run/weights")
    monkeypatch.setattr(lookup, "find", lambda *_: logged)
    monkeypatch.setattr(lookup.LoggedWeights, "download", lambda _, target: model(target))
    return logged.address


def test_a_servers_artifacts_are_imported_file_by_file(root, proxied):
    pin("runs:/12", "mine", root)
    for name in ("weights.pt", "model.json"):
        assert imported(root, f"runs-12/{name}") == f"{proxied}/{name}"
    assert list(meta(root, "runs-12/weights.pt")["sha256"]) == ["runs-12/weights.pt", "runs-12/model.json"]
    assert load("runs:/12", SPEC) is not None


def test_what_dvc_may_not_fetch_is_downloaded_by_mlflow(root, proxied, monkeypatch):
    monkeypatch.setattr(Server, "guarded", True)
    lines = pin("runs:/12", "mine", root)
    assert (
        "weights/runs-12 is a copy under DVC, not an import, because DVC cannot import it (ERROR: "
        in lines[1]
    )
    assert load("runs:/12", SPEC) is not None


def test_a_server_without_steady_etags_gives_a_copy(root, proxied, monkeypatch):
    monkeypatch.setattr(Server, "unsteady", True)
    lines = pin("runs:/12", "mine", root)
    assert "another ETag for the same file at every request" in lines[1]
    assert "deps" not in yaml.load((root / "weights" / "runs-12.dvc").read_text())
    assert not list((root / "weights" / "runs-12").glob("*.dvc"))
    assert Small(root).dvc("status", "--json").strip() == "{}"


def test_a_password_of_the_tracking_server_gets_into_no_file(root, monkeypatch):
    logged = lookup._locate("runs:/12", "12", "http://me:secret@127.0.0.1:9/run")
    monkeypatch.setattr(lookup, "find", lambda *_: logged)
    monkeypatch.setattr(lookup.LoggedWeights, "download", lambda _, target: model(target))
    lines = pin("runs:/12", "mine", root)
    assert "because the tracking server requires a password" in lines[1]
    assert not [name for name, content in snapshot(root).items() if b"secret" in content]
    assert "secret" not in "\n".join(lines)
