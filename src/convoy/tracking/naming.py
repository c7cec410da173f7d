"""Name runs by what differs, so that a table of them can be read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.repo import git

LEADING = ("network.name", "train.lr", "train.epochs")
"""What people change most; every name begins with them."""

SHOWN = 3
"""Further params that a name has room for."""

VALUE_CHARACTERS = 24


def run_name(sections: Iterable[str]) -> str:
    """Name a run `convnet · lr 0.02 · 12 epochs`, then what else differs from the commit's params.yaml.

    Args:
        sections: of params.yaml, or top-level keys, that can make the run differ.
    """
    now = params.flatten(yaml.read(params.PARAMS_FILE))
    before = params.flatten(_committed())
    kept = tuple(sections)
    network, lr, epochs = (now[key] for key in LEADING)
    parts = [f"{network}", f"lr {_short(lr)}", f"{epochs} epoch{'' if epochs == 1 else 's'}"]
    others = [
        f"{key.rpartition('.')[2]} {_short(value)}"
        for key, value in now.items()
        if key not in LEADING and key.partition(".")[0] in kept and before.get(key, value) != value
    ]
    more = [f"{len(others) - SHOWN} more"] if len(others) > SHOWN else []
    return " · ".join([*parts, *others[:SHOWN], *more])


def _committed() -> Mapping[str, Any]:
    """Read params.yaml as it was committed; nothing where there is none, or where it was no YAML."""
    try:
        content = yaml.load(git.ask(Path.cwd(), "show", f"HEAD:./{params.PARAMS_FILE}"))
    except RequestError:
        return {}
    return content if isinstance(content, dict) else {}


def _short(value: object) -> str:
    """Write a value as people would say it."""
    if isinstance(value, float):
        return f"{value:g}"
    text = "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[: VALUE_CHARACTERS - 1]}…"
