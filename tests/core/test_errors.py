"""Parts of messages: names in a row, addresses without passwords."""

import errno

import pytest

from convoy.core import errors
from convoy.core.errors import RequestError, fault, listed, refuse_credentials, without_credentials


@pytest.mark.parametrize(
    ("count", "text"), [(1, "0"), (2, "0, 1"), (3, "0, 1 and 1 more"), (2000, "0, 1 and 1,998 more")]
)
def test_names_beyond_a_number_are_counted(count, text):
    assert listed([str(number) for number in range(count)], 2) == text


def test_passwords_and_tokens_are_hidden():
    text = (
        "https://me:{}@host/a, https://{}@host/b.git, ssh://git@host/b.git, me@host, sqlite:////a/mlflow.db"
    )
    assert without_credentials(text.format("secret", "token")) == text.format("***", "***")


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("http://me:p@ss@host/a.zip", "http://me:***@host/a.zip"),
        ("http://me:p/a?s#s@host/a.zip", "http://me:***@host/a.zip"),
        ("s3://key:secret@bucket/a", "s3://key:***@bucket/a"),
        (
            "https://b/a.zip?X-Amz-Credential=K&v=1&X-Amz-Signature=x%2B",
            "https://b/a.zip?X-Amz-Credential=***&v=1&X-Amz-Signature=***",
        ),
        ("https://b/a.zip?sv=2024&sig=x%3D", "https://b/a.zip?sv=2024&sig=***"),
        ("https://b/a?AWSAccessKeyId=K&Expires=1", "https://b/a?AWSAccessKeyId=***&Expires=1"),
        ("https://b/a?private_token=x&key=y&api_key=z", "https://b/a?private_token=***&key=***&api_key=***"),
        ("https://b/a#access_token=x", "https://b/a#access_token=***"),
    ],
)
def test_addresses_are_parsed_to_find_their_secrets(address, masked):
    assert without_credentials(f"see {address}, then http://u:p@h/") == f"see {masked}, then http://u:***@h/"
    with pytest.raises(RequestError) as caught:
        refuse_credentials(address)
    assert str(caught.value).startswith(f"{masked} contains credentials")
    assert "docs/data.md" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://host:8080/@scope/a.zip?keyword=cat&author=me",
        "http://[::1]:80/@x",
        "ssh://git@host/a",
        "s3://bucket/a@b.zip",
        "sqlite:////a/mlflow.db",
        "remote://private/a.zip",
    ],
)
def test_addresses_without_secrets_are_unchanged(address):
    refuse_credentials(address)
    assert without_credentials(f"see {address}, ok") == f"see {address}, ok"


def raised(error: BaseException, context: BaseException) -> BaseException:
    """Make an error that was raised while another was handled."""
    error.__context__ = context
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "build/a b.npy")


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (FULL, ["build/a b.npy cannot be written: No space left", "df -h build"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ["the disk takes no more: Disk quota", "df -h ."]),
        (raised(RuntimeError("PytorchStreamWriter failed"), FULL), ["build/a b.npy", "df -h build"]),
        (OSError("100 requested and 7 written"), ["100 requested and 7 written", "df -h /"]),
        (
            PermissionError(errno.EACCES, "Permission denied", "a b/c"),
            ["a b/c cannot be read or written by this user: Permission denied", "ls -ld 'a b/c' 'a b'"],
        ),
        (OSError(errno.EROFS, "Read-only file system", "x"), ["Read-only file system", "ls -ld x ."]),
        (OSError(errno.EMFILE, "Too many open files"), ["ulimit -n"]),
        (OSError(errno.EIO, "Input/output error", "mnt/x"), ["mnt/x", "df -h mnt"]),
    ],
    ids=str,
)
def test_faults_of_the_system_have_cause_and_remedy(error, facts):
    found = fault(error)
    assert found is not None
    assert found.exit_code == 1
    for fact in facts:
        assert fact in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        raised(KeyError("a bug"), PermissionError(errno.EACCES, "Permission denied", "x")),
    ],
    ids=repr,
)
def test_bugs_keep_their_traceback(error):
    assert fault(error) is None


def test_a_repository_that_was_moved_is_named_whatever_failed_because_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "CODE", tmp_path / "photos/src/convoy/core/errors.py")
    text = str(fault(ValueError("PackageLoader could not find a '' directory")))
    assert f"{tmp_path}/photos was moved" in text
    assert "new place" in text
