"""Signatures of a model: made of all that travels with it, checked by gate and service; without the extra, the remedy.

Most tests run a stand-in for the package; a slow one runs the package itself, in an environment of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import convoy
import fixed_models
from convoy.core import contract, files
from convoy.core.errors import RequestError, VerificationError
from convoy.export import signing
from convoy.serving.model import open_model

CLASSES = ["cat", "dog"]


class Hashing:
    """Hash a folder's files as the package does, but for the ignored ones."""

    def __init__(self):
        self.ignored = set()

    def set_ignored_paths(self, *, paths):
        self.ignored = set(paths)
        return self

    def digest(self, folder):
        found = {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).parts[0] not in self.ignored
        }
        return json.dumps(found, sort_keys=True)


class Config:
    """Sign by writing the key's word and the digests."""

    def use_elliptic_key_signer(self, *, private_key):
        self.key = private_key.read_text()
        if not self.key.startswith("word"):
            raise ValueError("Could not deserialize key data\nsecond line")
        return self

    use_elliptic_key_verifier = None

    def set_hashing_config(self, hashing):
        self.hashing = hashing
        return self

    def sign(self, folder, path):
        path.write_text(self.key + self.hashing.digest(folder))


class Verifier(Config):
    def use_elliptic_key_verifier(self, *, public_key):
        return self.use_elliptic_key_signer(private_key=public_key)

    def verify(self, folder, path):
        if path.read_text() != self.key + self.hashing.digest(folder):
            raise ValueError("Signature mismatch: [\"Hash mismatch for 'x': Expected 'Digest(…)'\"]")


@pytest.fixture
def package(monkeypatch):
    """A stand-in for model-signing, by its documented interface."""
    parts = {
        "signing": SimpleNamespace(Config=Config),
        "verifying": SimpleNamespace(Config=Verifier),
        "hashing": SimpleNamespace(Config=Hashing),
    }
    whole = ModuleType("model_signing")
    vars(whole).update(parts)
    monkeypatch.setitem(sys.modules, "model_signing", whole)
    for name in ("signing", "verifying"):
        monkeypatch.setitem(sys.modules, f"model_signing.{name}", ModuleType(name))


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key.pem"
    path.write_text("word of a key")
    return path


@pytest.fixture
def deploy(tmp_path):
    folder = tmp_path / "deploy"
    fixed_models.write_onnx(folder / "model.onnx", CLASSES, CLASSES)
    (folder / "model_card.md").write_text("card")
    (folder / "golden").mkdir()
    (folder / "golden/00.png").write_bytes(fixed_models.png(0))
    return folder


@pytest.mark.usefixtures("package")
def test_what_travels_with_the_model_is_signed_and_nothing_that_happens_to_lie_there(deploy, key):
    assert signing.sign(deploy, key) == deploy / "model.sig"
    (deploy / "notes.txt").write_text("mine")
    signing.check(deploy, key, "convoy/7")
    for name in ("model.onnx", "model_card.md", "golden/00.png"):
        content = (deploy / name).read_bytes()
        (deploy / name).write_bytes(b"changed")
        with pytest.raises(
            VerificationError, match=r"convoy/7: the signature model\.sig does not hold"
        ) as caught:
            signing.check(deploy, key, "convoy/7")
        assert "Digest" not in str(caught.value)
        (deploy / name).write_bytes(content)
    (deploy / "golden/01.png").write_bytes(b"added")
    with pytest.raises(VerificationError, match="does not hold"):
        signing.check(deploy, key, "convoy/7")


@pytest.mark.usefixtures("package")
def test_a_model_without_the_required_signature_is_not_opened(deploy, key, tmp_path):
    path = str(deploy / "model.onnx")
    with pytest.raises(VerificationError, match=r"model\.onnx is not signed.*export\.sign in params\.yaml"):
        open_model(path, public_key=key)
    signing.sign(deploy, key)
    assert open_model(path, public_key=key).name == path
    other = tmp_path / "other.pub"
    other.write_text("word of another key")
    with pytest.raises(VerificationError, match=r"does not hold for .*other\.pub"):
        open_model(path, public_key=other)
    assert open_model(path).name == path, "without a key, signatures are not checked"
    (deploy / "copy.onnx").write_bytes((deploy / "model.onnx").read_bytes())
    with pytest.raises(VerificationError, match=r"copy\.onnx is none of the files"):
        open_model(str(deploy / "copy.onnx"), public_key=key)


@pytest.mark.usefixtures("package")
def test_keys_that_cannot_be_used_are_named_with_the_command_that_makes_one(deploy, tmp_path):
    bad = tmp_path / "rsa.pem"
    bad.write_text("RSA")
    with pytest.raises(
        RequestError, match=r"rsa\.pem is no private key.*Could not deserialize.*openssl ecparam"
    ):
        signing.sign(deploy, bad)
    (deploy / "model.sig").write_text("x")
    with pytest.raises(RequestError, match=r"rsa\.pem is no public key.*openssl ecparam"):
        signing.check(deploy, bad, "convoy/7")
    with pytest.raises(
        RequestError, match=r"export\.sign is gone\.pem, but there is no such file.*export\.sign: none"
    ):
        signing.private_key("gone.pem")
    with pytest.raises(RequestError, match=r"gate\.public_key is gone\.pub"):
        signing.public_key("gone.pub", "gate.public_key")
    assert signing.private_key("none") is None
    assert signing.private_key(str(bad)) == bad


def test_without_the_extra_the_package_to_install_is_named(monkeypatch, deploy, key):
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: signing.private_key(str(key)),
        lambda: signing.public_key(str(key), "serve.public_key"),
        lambda: signing.sign(deploy, key),
        lambda: open_model(str(deploy / "model.onnx"), public_key=key),
    ):
        with pytest.raises(RequestError, match=r"model-signing.*pip install 'model-signing>=1\.0\.1,<2'"):
            call()


SCRIPT = """
import sys
from pathlib import Path
from convoy.export import signing
folder, home = Path(sys.argv[1]), Path(sys.argv[2])
signing.sign(folder, home / "key.pem")
signing.check(folder, home / "key.pub", "convoy/7")
(folder / "energy.json").write_text("not signed")
signing.check(folder.rename(home / "moved"), home / "key.pub", "convoy/7")
folder = home / "moved"
for change in (lambda: (folder / "golden/00.png").write_bytes(b"x"), lambda: (folder / "model_card.md").unlink()):
    change()
    try:
        signing.check(folder, home / "key.pub", "convoy/7")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_the_package_itself_signs_and_checks(deploy, tmp_path, repository):
    """Install the extra into an environment that sees this one's packages."""
    home = tmp_path / "environment"
    venv.create(home, system_site_packages=False, with_pip=True)
    python = home / "bin/python"
    lines = (repository / "pyproject.toml").read_text(encoding="utf-8").split("sign = [")[1].split("]")[0]
    wanted = [line.split('"')[1] for line in lines.splitlines() if '"' in line]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    commands = ("ecparam -name prime256v1 -genkey -noout -out key.pem", "ec -in key.pem -pubout -out key.pub")
    for command in commands:
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    own = [path for path in sys.path if path.endswith("site-packages")]
    theirs = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    source = str(Path(convoy.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([source, theirs, *own])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(deploy), str(tmp_path)],
        capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first.startswith("VerificationError convoy/7: the signature model.sig does not hold")
    assert "golden/00.png" in first
    assert "Missing files" in second
    assert files.read_json(tmp_path / "moved" / contract.SIGNATURE)["mediaType"].startswith(
        "application/vnd.dev.sigstore"
    )
