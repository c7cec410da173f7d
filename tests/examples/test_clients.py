"""Every example replays the golden images, and one that answers something else fails."""

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from browser import opened
from convoy.core import params as params_file
from convoy.serving.model import open_model
from convoy.serving.service import create_app
from convoy.serving.settings import ServeParams
from pages import running, static
from servers import require

SHIPPED = params_file.default_at(ServeParams, [])


@pytest.fixture(scope="module")
def examples(repository):
    return repository / "examples"


@pytest.fixture(scope="module")
def golden(verified):
    return verified[0].home / "deploy" / "golden"


@pytest.fixture(scope="module")
def wrong(golden, tmp_path_factory):
    """Golden images of which one was measured otherwise."""
    folder = tmp_path_factory.mktemp("wrong") / "golden"
    shutil.copytree(golden, folder)
    content = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    content["images"][0]["probabilities"].reverse()
    (folder / "golden.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(verified):
    app = create_app(
        open_model(str(verified[0].model)),
        ServeParams.model_validate(SHIPPED | {"threads": 1}),
    )
    with running(app) as address:
        yield address


def run(*command, **env):
    words = [str(word) for word in command]
    plain = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=plain | env)


def replays(golden, wrong, *command, **env):
    """Check a client with golden images, with wrong ones and with a single image."""
    images = len(json.loads((golden / "golden.json").read_text(encoding="utf-8"))["images"])
    good = run(*command, "--golden", golden, **env)
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.startswith(f"{images} of {images} golden images as measured, largest probability gap ")
    bad = run(*command, "--golden", wrong, **env)
    assert bad.returncode == 1
    assert bad.stdout.startswith(f"{images - 1} of {images} ")
    first = json.loads((golden / "golden.json").read_text(encoding="utf-8"))["images"][0]
    single = run(*command, golden / first["file"], **env)
    assert single.returncode == 0, single.stderr
    assert f"{first['file']}: {first['class']} " in single.stdout
    none = run(*command, **env)
    assert none.returncode in {1, 2}
    assert "--golden" in none.stderr


@pytest.mark.parametrize(
    ("script", "packages"),
    [("classify.py", {"numpy", "onnxruntime", "PIL"}), ("client.py", set())],
)
def test_python_without_convoy(examples, verified, golden, wrong, address, script, packages):
    path = examples / "python" / script
    target = address if script == "client.py" else verified[0].model
    replays(golden, wrong, sys.executable, path, target)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    assert names - sys.stdlib_module_names == packages


def test_python_shows_the_reason_of_the_service_and_sends_the_token(examples, verified, golden, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    app = create_app(
        open_model(str(verified[0].model)),
        ServeParams.model_validate(SHIPPED | {"threads": 1}),
        token="hush",  # noqa: S106 (of a test)
    )
    with running(app) as address:
        command = sys.executable, examples / "python/client.py", address
        refused = run(*command, golden / "00.png", tmp_path / "a.jpg")
        assert refused.returncode == 1
        assert refused.stdout.count("Authorization: Bearer TOKEN") == 2
        sent = run(*command, golden / "00.png", tmp_path / "a.jpg", CONVOY_SERVE_TOKEN="hush")  # noqa: S106
        assert "00.png: " in sent.stdout
        assert "a.jpg: ERROR: The content is not an image" in sent.stdout


def test_cpp_over_a_socket(examples, golden, wrong, address, tmp_path):
    compiler = require("c++", "g++")
    client = tmp_path / "client"
    made = run(
        compiler, "-Wall", "-Wextra", "-Werror", "-std=c++17", "-o", client, examples / "cpp/client.cpp"
    )
    assert made.returncode == 0, made.stderr
    host, port = address.removeprefix("http://").split(":")
    replays(golden, wrong, client, host, port)
    text = tmp_path / "a.jpg"
    text.write_text("no image")
    refused = run(client, host, port, text)
    assert refused.returncode == 1
    assert "ERROR: The content is not an image" in refused.stderr
    assert "does not answer" in run(client, host, "1", text).stderr


@pytest.mark.slow
def test_node(examples, verified, golden, wrong, tmp_path):
    npm, node = require("npm", "npm"), require("node", "nodejs")
    shutil.copytree(examples / "node", tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    prepared = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=tmp_path / "node",
        capture_output=True,
        text=True,
        check=False,
    )
    assert prepared.returncode == 0, prepared.stderr
    replays(golden, wrong, node, tmp_path / "node/classify.mjs", verified[0].model)


def test_a_page_of_another_origin_asks_the_service(examples, verified, golden):
    first = json.loads((golden / "golden.json").read_text(encoding="utf-8"))["images"][0]
    with static(examples / "browser") as own:
        params = ServeParams.model_validate(SHIPPED | {"threads": 1, "cors": [own]})
        app = create_app(open_model(str(verified[0].model)), params)
        with running(app) as address, opened(f"{own}/fetch.html", strict=False) as page:
            page.get_by_label("Service").fill(address)
            page.get_by_label("Image").set_input_files(golden / first["file"])
            expect(page.get_by_role("status")).to_contain_text(f"{first['class']} ")
            page.get_by_label("Image").set_input_files(
                {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}
            )
            expect(page.get_by_role("status")).to_contain_text("not an image")


def test_the_lock_of_node_names_no_registry_and_pins_every_package(examples):
    lock = json.loads((examples / "node/package-lock.json").read_text(encoding="utf-8"))
    packages = {name: facts for name, facts in lock["packages"].items() if name}
    assert packages
    assert not [name for name, facts in packages.items() if "integrity" not in facts]
    assert not [name for name, facts in packages.items() if "resolved" in facts]
    wanted = json.loads((examples / "node/package.json").read_text(encoding="utf-8"))["dependencies"]
    assert lock["packages"][""]["dependencies"] == wanted
