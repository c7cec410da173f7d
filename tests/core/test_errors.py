"""Parts of messages: names in a row, addresses without passwords."""

import pytest

from convoy.core.errors import listed, without_credentials


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
