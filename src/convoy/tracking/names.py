"""Names that MLflow takes, for params, metrics and tags that are called otherwise."""

import hashlib
import posixpath
import re

from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH

KEPT = 200
"""Characters that are kept of a name that is too long."""


def usable(name: str) -> str:
    """Spell a name with the characters that MLflow takes, short enough, and as no path that leads elsewhere.

    A changed name gets six digits of the old one's hash, so that no two become the same.
    """
    cleaned = re.sub(r"[^/\w.\- :]", "_", name)
    if posixpath.normpath(cleaned) != cleaned or cleaned.startswith(("/", "..")) or cleaned in {"", "."}:
        cleaned = cleaned.replace("/", "_").lstrip(".") or "_"
    if len(cleaned) > MAX_ENTITY_KEY_LENGTH:
        cleaned = cleaned[:KEPT]
    if cleaned == name:
        return name
    return f"{cleaned}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
