"""Parts of messages: names in a row, addresses without passwords."""

import pytest

from convoy.core.errors import RequestError, listed, refuse_credentials, without_credentials


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
