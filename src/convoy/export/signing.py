"""Sign what `export` made, and check signatures, with OpenSSF's model-signing (the extra `sign`).

The signature `model.sig` is a Sigstore bundle over the SHA-256 of model.onnx and of every file that travels with it, made
with an elliptic-curve key (P-256, P-384 or P-521, PEM). Any tool that reads the format checks it, such as `model_signing verify key`.
"""

import contextlib
import io
from pathlib import Path
from types import ModuleType

from convoy.core import contract, files
from convoy.core.errors import RequestError, VerificationError

NONE = "none"
"""Value of `export.sign`, `gate.public_key` and `serve.public_key` without a key."""

INSTALL = "Install it: pip install 'model-signing>=1.0.1,<2' (the extra `sign`)"

MAKE_KEY = "Make a pair: openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"


def private_key(setting: str) -> Path | None:
    """Return the key that `export.sign` names, once it is clear that signing can work; None for `none`.

    Raises:
        RequestError: the file does not exist, or model-signing is not installed.
    """
    return _key(setting, "export.sign", "the private key")


def public_key(setting: str, param: str) -> Path | None:
    """Return the key that a `public_key` names; None for `none`.

    Raises:
        RequestError: the file does not exist, or model-signing is not installed.
    """
    return _key(setting, param, "the public key")


def sign(folder: Path, key: Path) -> Path:
    """Write `model.sig` of a folder that `export` made; return its path.

    Raises:
        RequestError: the key is no such key, or has a password.
    """
    model_signing = _package("export.sign")
    path = folder / contract.SIGNATURE
    path.unlink(missing_ok=True)
    try:
        signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
        signer.set_hashing_config(_hashing(model_signing, folder)).sign(folder, path)
    except (ValueError, TypeError, AttributeError) as error:  # cryptography's, for keys of another kind
        raise RequestError(
            f"export.sign: {key} is no private key that signs models ({_first_line(error)}): a PEM file of an elliptic curve "
            f"(P-256, P-384 or P-521) without a password. {MAKE_KEY}"
        ) from error
    return path


def check(folder: Path, key: Path, name: str, file: str = contract.VERIFIED) -> None:
    """Refuse a model whose folder is not signed with a key's private half, or has changed since.

    Args:
        folder: holds the model and what travels with it.
        key: public key.
        name: of the model, for messages.
        file: the model in the folder.

    Raises:
        VerificationError: there is no signature, or it does not hold for this folder.
        RequestError: the key is no such key.
    """
    model_signing = _package("public_key")
    path = folder / contract.SIGNATURE
    if not path.is_file():
        raise VerificationError(
            f"{name} is not signed, and a public key is set ({key}). Export it with a key: export.sign in params.yaml; or set "
            f"public_key: {NONE}"
        )
    if file not in _signed(folder):
        raise VerificationError(f"{name}: {file} is none of the files that {path} covers.")
    try:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{key} is no public key ({_first_line(error)}): a PEM file of an elliptic curve (P-256, P-384 or P-521). {MAKE_KEY}"
        ) from error
    verifier.set_hashing_config(_hashing(model_signing, folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            verifier.verify(folder, path)
    except Exception as error:  # the package and cryptography raise errors of many classes
        raise VerificationError(
            f"{name}: the signature {path.name} does not hold for {key}: {_first_line(error)}. Restore the folder, export again, "
            "or set the public key that belongs to the private key of export.sign"
        ) from error


def _key(setting: str, param: str, what: str) -> Path | None:
    if setting == NONE:
        return None
    _package(param)
    path = files.expanded(setting)
    if not path.is_file():
        raise RequestError(
            f"{param} is {setting}, but there is no such file: {what} in PEM format. {MAKE_KEY}; or set {param}: {NONE}"
        )
    return path


def _package(param: str) -> ModuleType:
    """Import model-signing.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import model_signing.signing  # type: ignore[import-not-found]  # noqa: PLC0415 (an extra that is not always installed)
        import model_signing.verifying  # type: ignore[import-not-found]  # noqa: PLC0415 (likewise)
    except ImportError as error:
        raise RequestError(f"{param} needs the package model-signing: {error}. {INSTALL}") from error
    package: ModuleType = model_signing
    return package


def _signed(folder: Path) -> set[str]:
    """Name what is signed of a folder: the model and what travels with it."""
    names = {contract.VERIFIED, *contract.BESIDE} - {contract.SIGNATURE}
    return {name for name in names if (folder / name).exists()}


def _hashing(model_signing: ModuleType, folder: Path) -> object:
    """Hash what is signed of a folder, and nothing that happens to lie there."""
    ignored = [path.name for path in folder.iterdir() if path.name not in _signed(folder)]
    return model_signing.hashing.Config().set_ignored_paths(paths=[*ignored, contract.SIGNATURE])


def _first_line(error: Exception) -> str:
    """Shorten a message of the package, which lists digests as Python objects."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.partition(": Expected")[0][:200].rstrip(".")
