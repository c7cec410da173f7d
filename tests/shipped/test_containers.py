"""The images, the compose file and the dashboard, as far as they can be checked without an engine."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import botocore.session
import click
import pathspec
import pytest
import typer
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow.cli import cli as mlflow_cli
from prometheus_client.parser import text_string_to_metric_families

from convoy import cli
from convoy.core import params as params_file
from convoy.core import yaml
from convoy.serving.model import open_model
from convoy.serving.service import create_app
from convoy.serving.settings import ServeParams
from dockerfiles import instructions, only, stages

DOCKERFILES = ("Dockerfile", "docker/mlflow/Dockerfile")
LOCKS = ("requirements-serve", "requirements-registry", "docker/mlflow/requirements")
NEWEST = re.compile(r"(?:^|:)(latest|main|master|edge|nightly)$")

SERVING = """
import sys
from pathlib import Path
import convoy.__main__, convoy.cli
from convoy.serving import server
from convoy.serving.model import open_model
from convoy.serving.service import create_app
from convoy.data import drift  # imported for /drift, once it is asked for
create_app(open_model(sys.argv[1]), server.serve_params(Path("no params.yaml")))
import uvicorn.protocols.http.httptools_impl
if sys.platform != "win32":
    import uvloop
print(*{name.partition(".")[0] for name in sys.modules})
"""


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_keeps_the_rules_of_its_trade(repository, name):
    path = repository / name
    arguments = dict(line.text.split("=") for line in stages(path).pop("") if line.name == "ARG")
    for stage, lines in stages(path).items():
        for line in only(lines, "FROM"):
            base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], line.text.split()[0])
            assert ":" in base or base in stages(path), f"{stage} is built on {base}, of no version"
            assert not NEWEST.search(base)
    everything = instructions(path)
    assert not only(everything, "ADD")
    assert not only(everything, "MAINTAINER")
    for line in only(everything, "ENV"):
        assert not re.search(r"(?i)token|password|secret|key=", line.text)
    for line in only(everything, "RUN"):
        assert not re.search(r"\bsudo\b|chmod 777|curl [^|]*\|", line.text)
        if "pip" in line.text and "install" in line.text:
            assert {"--no-cache-dir", "--require-hashes", "--only-binary"} <= set(shlex.split(line.text))
    served = [line for stage, lines in stages(path).items() if stage != "packages" for line in lines]
    user = [line.name for line in served].index("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", served[user].text), (
        "a number: Kubernetes' runAsNonRoot knows no names"
    )
    assert not [line.text for line in served[user:] if line.name == "RUN"]
    assert only(served, "STOPSIGNAL")[0].text == "SIGTERM"
    assert only(served, "HEALTHCHECK")
    for kind in ("ENTRYPOINT", "CMD"):
        for line in only(served, kind):
            assert line.words, "an exec form: a shell would take the signal that stops the service"


def test_packages_are_installed_before_the_code_is_copied(repository):
    found = stages(repository / "Dockerfile")
    assert [line.name for line in found["packages"]] == ["FROM", "ARG", "COPY", "RUN"]
    copied = [line.text for line in only(found["service"], "COPY")]
    assert copied == ["--from=packages /opt/venv /opt/venv", "params.yaml ./", "src/ src/"]
    assert [line.name for line in found["baked"]] == ["FROM", "ARG", "COPY"]
    mlflow = [line.name for line in instructions(repository / "docker/mlflow/Dockerfile")]
    assert mlflow.index("RUN", mlflow.index("COPY")) < mlflow.index("COPY", mlflow.index("COPY") + 1)


def test_the_image_starts_a_command_that_exists_and_asks_for_its_health_where_it_listens(repository):
    service = stages(repository / "Dockerfile")["service"]
    [entry], [command] = only(service, "ENTRYPOINT"), only(service, "CMD")
    assert entry.words[:4] == ["python", "-m", "convoy", "serve"]
    options = {name for one in typer.main.get_command(cli.app).commands["serve"].params for name in one.opts}
    assert {word for word in entry.words + command.words if word.startswith("--")} <= options
    port = entry.words[entry.words.index("--port") + 1]
    assert only(service, "EXPOSE")[0].text == port
    check = re.search(r"CMD (\[.*\])", only(service, "HEALTHCHECK")[0].text)
    assert f"http://127.0.0.1:{port}/readyz" in json.loads(check[1])[2]
    compile(json.loads(check[1])[2], "HEALTHCHECK", "exec")


def test_the_builder_gets_what_it_copies_and_no_data_stores_or_secrets(repository):
    patterns = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = pathspec.PathSpec.from_lines("gitignore", patterns)
    sent = (
        "params.yaml", "requirements-serve.txt", "requirements-registry.txt", "src/convoy/cli.py",
        "src/convoy/serving/page/index.html", "build/deploy/model.onnx", "build/deploy/golden/00.png", "build/champion/model.onnx",
    )  # fmt: skip
    kept = (
        ".env", ".git/config", "data/cat/1.jpg", "mlflow.db", "mlruns/1/meta.yaml", "build/dataset/images.npy", "build/model/weights.pt",
        "checkpoints/last.ckpt", "outbox/x", "src/convoy/__pycache__/cli.cpython-311.pyc", ".venv/bin/python", "requirements.txt",
    )  # fmt: skip
    assert [name for name in sent if ignored.match_file(name)] == []
    assert [name for name in kept if not ignored.match_file(name)] == []


def locked(path):
    """Map packages of a lock to their lines: version, marker, hashes."""
    text = path.read_text(encoding="utf-8").replace("\\\n", "")
    return {
        (re.split(r"==|\[", line)[0], line.split("--hash")[0].partition("==")[2].strip()): line
        for line in text.splitlines()
        if line.strip()
    }


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_exact_hashed_and_of_the_versions_that_are_tested(repository, name):
    own = {key: set() for key, _ in locked(repository / "requirements.txt")}
    for key, version in locked(repository / "requirements.txt"):
        own[key].add(version.split()[0])  # some have another for newer Pythons
    names = {key for key, _ in locked(repository / f"{name}.txt")}
    for (key, version), line in locked(repository / f"{name}.txt").items():
        assert re.match(
            r"^[a-z0-9._\[\]-]+==[^ ]+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+$", line, re.IGNORECASE
        )
        if key in own:
            assert version.split()[0] in own[key], (
                f"{key} of {name}.txt is not that of requirements.txt: make lock"
            )
    for line in (repository / f"{name}.in").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-r")):
            assert re.split(r"[;\[ ]", line)[0] in names
    assert name in (repository / "Makefile").read_text(encoding="utf-8")
    assert not {"torch", "dvc", "pytest"} & names


def test_the_lock_of_the_service_has_all_that_it_imports_and_little_else(repository, verified):
    import importlib.metadata  # noqa: PLC0415 (of this test alone)

    command = [sys.executable, "-c", SERVING, str(verified[0].model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository)
    packages = importlib.metadata.packages_distributions()
    imported = {
        re.sub(r"[-_.]+", "-", owner).lower()
        for name in done.stdout.split()
        for owner in packages.get(name, ())
        if len(packages[name]) == 1  # `google` and `opentelemetry` belong to many
    }
    names = {key for key, _ in locked(repository / "requirements-serve.txt")}
    # Some packages import those where they are installed; every environment has the hook of setuptools.
    assert imported - names - {"convoy", "setuptools", "orjson", "ml-dtypes", "charset-normalizer"} == set()
    direct = {
        re.split(r"[;\[ ]", line)[0]
        for line in (repository / "requirements-serve.in").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    assert direct - imported - {"ruamel-yaml", "uvloop", "prometheus-client"} == set()
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert direct <= {re.split(r"[<>=!\[;]", requirement)[0] for requirement in project["dependencies"]}


@pytest.fixture(scope="module")
def compose(repository):
    return yaml.load((repository / "compose.yaml").read_text(encoding="utf-8"))


def test_the_compose_file_is_valid(repository):
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "compose.yaml",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_services_are_pinned_closed_to_the_network_and_have_their_files(repository, compose):
    for name, service in compose["services"].items():
        if image := service.get("image"):
            assert re.search(r":v?\d+\.\d+", image), f"{name}: {image}"
            assert not NEWEST.search(image)
        else:
            build = service["build"]
            context = repository / (build if isinstance(build, str) else build["context"])
            found = stages(context / "Dockerfile")
            assert isinstance(build, str) or build["target"] in found
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens to the network: {port}"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./") and source != "./build/deploy":  # that one is made by `dvc repro`
                assert (repository / source).exists()
            elif not source.startswith("./"):
                assert source in compose["volumes"]
        for used in service.get("configs", ()):
            assert used["source"] in compose["configs"]
        for needed in service.get("depends_on", ()):
            assert needed in compose["services"]


def test_every_variable_of_the_compose_file_is_in_the_example_and_no_password_is_shipped(repository):
    text = (repository / "compose.yaml").read_text(encoding="utf-8")
    example = (repository / ".env.example").read_text(encoding="utf-8")
    listed = dict(line.split("=") for line in example.splitlines() if line and not line.startswith("#"))
    assert set(re.findall(r"\$\{(\w+)", text)) == set(listed)
    for name, value in listed.items():
        assert not (value and re.search("PASSWORD|KEY|TOKEN", name))
    for name in ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD"):
        assert f"${{{name}:?" in text, f"{name} may be left empty"
    ignored = subprocess.run(
        ["git", "check-ignore", ".env"], cwd=repository, check=False, capture_output=True
    )
    assert ignored.returncode == 0


def test_the_commands_of_the_services_exist(compose):
    command = compose["services"]["mlflow"]["command"]
    assert command[:2] == ["mlflow", "server"]
    server = mlflow_cli.commands["server"]
    options = {name for one in server.params if isinstance(one, click.Option) for name in one.opts}
    assert {word.partition("=")[0] for word in command[2:]} <= options
    reads = {str(name) for one in server.params for name in [getattr(one, "envvar", None)] if name}
    assert "MLFLOW_BACKEND_STORE_URI" in reads
    assert "mlflow:5000" in command[-1], "MLflow refuses requests to other names"
    assert compose["services"]["convoy"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    [model, _] = compose["services"]["convoy"]["command"]
    assert model == "--model"


@pytest.fixture(scope="module")
def exported_names(verified):
    """Names of the samples that /metrics has."""
    params = ServeParams.model_validate(params_file.default_at(ServeParams, []) | {"threads": 1})
    app = create_app(open_model(str(verified[0].model)), params)
    names = set()
    for family in text_string_to_metric_families(app.state.metrics.text().decode()):
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + end for end in ends}
    return names


def expressions(repository):
    boards = [
        json.loads(path.read_text()) for path in (repository / "docker/grafana/dashboards").glob("*.json")
    ]
    return [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]


def test_the_dashboard_shows_metrics_that_the_service_exports(repository, exported_names):
    shown = {
        name for text in expressions(repository) for name in re.findall(r"\b(?:convoy|process)_\w+", text)
    }
    assert len(shown) > 8
    assert shown <= exported_names
    own = {
        re.sub("_(bucket|sum|count)$", "", name)
        for name in exported_names
        if name.startswith("convoy_") and not name.endswith("_created")
    }
    forgotten = own - {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert forgotten == set(), "metrics that no panel shows"


def test_panels_lie_beside_each_other(repository):
    for path in (repository / "docker/grafana/dashboards").glob("*.json"):
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken = set()
        for panel in panels:
            place = panel["gridPos"]
            columns = range(place["x"], place["x"] + place["w"])
            cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
            assert columns.stop <= 24
            assert not cells & taken, panel["title"]
            taken |= cells


def test_prometheus_and_grafana_find_each_other(repository, compose):
    [job] = yaml.load((repository / "docker/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["convoy:8000"]
    mounts = [config["target"] for config in compose["services"]["prometheus"]["configs"]]
    assert job["authorization"]["credentials_file"] in mounts
    provisioning = repository / "docker/grafana/provisioning"
    [source] = yaml.load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    boards = [
        json.loads(path.read_text()) for path in (repository / "docker/grafana/dashboards").glob("*.json")
    ]
    assert {panel["datasource"]["uid"] for board in boards for panel in board["panels"]} == {source["uid"]}
    [provider] = yaml.load((provisioning / "dashboards/convoy.yaml").read_text())["providers"]
    targets = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in targets


def test_the_bucket_is_made_once(repository, monkeypatch):
    answers = [
        EndpointConnectionError(endpoint_url="x"),
        ClientError({"Error": {"Code": "BucketAlreadyExists"}}, "x"),
    ]
    calls = []

    class Store:
        def create_bucket(self, Bucket):  # noqa: N803 (botocore's)
            calls.append(Bucket)
            raise answers[len(calls) - 1]

    session = SimpleNamespace(create_client=lambda *_, **__: Store())
    monkeypatch.setattr(botocore.session, "get_session", lambda: session)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://store:8333")
    namespace = {"__name__": "create_bucket"}
    source = Path(repository / "docker/mlflow/create_bucket.py").read_text(encoding="utf-8")
    exec(compile(source, "create_bucket.py", "exec"), namespace)  # noqa: S102 (a script of the image)
    monkeypatch.setattr(namespace["time"], "sleep", lambda _: None)
    namespace["main"]("mlflow")
    assert calls == ["mlflow", "mlflow"]
