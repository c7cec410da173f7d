"""Which id of the source has become which of the target: MLflow mints its own for runs and models."""

import re

ORIGIN = "convoy.migrated_from"
"""Tag of everything that was carried over: its id in the store that it came from."""

ID = re.compile(r"\b(?:m-)?[0-9a-f]{32}\b")
"""How MLflow writes the id of a run, or of a model (`m-…`)."""


class Ids(dict[str, str]):
    """Map ids of the source to those of the target, and places of artifacts likewise."""

    def __init__(self) -> None:
        """Know nothing yet."""
        super().__init__()
        self.places: dict[str, str] = {}

    def translate(self, text: str) -> str:
        """Replace every known id in a text, such as the tag `mlflow.parentRunId`."""
        return ID.sub(lambda found: self.get(found[0], found[0]), text)

    def place(self, uri: str) -> str:
        """Say where artifacts of the source lie in the target; the source's paths are absolute."""
        for old, new in self.places.items():
            if uri == old or uri.startswith(f"{old}/"):
                return new + uri.removeprefix(old)
        return self.translate(uri)
