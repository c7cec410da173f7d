"""The `network` section of params.yaml."""

from typing import Annotated

from pydantic import Field

from convoy.params import Section


class NetworkParams(Section):
    """Choose the network."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
