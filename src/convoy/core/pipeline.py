"""Read dvc.yaml, which declares the stages, dvc.lock, which records what their last runs read and made, and data.dvc."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convoy.core import params, yaml
from convoy.core.errors import RequestError

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
DATA_IMPORT = Path("data.dvc")
TEMPLATE = re.compile(r"\$\{([^}]+)\}")
"""How dvc.yaml refers to a param, such as `${network.name}`."""

FOR_PEOPLE = ("desc", "meta")
"""Fields of a stage that DVC does not compare."""

Read = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class DataImport:
    """What data.dvc records.

    Attributes:
        source: DVC's fields of the source, such as `path`, `md5`, `size`; empty for data that were added, not imported.
        data: DVC's fields of data/ as it was imported; without `md5` until then.
        frozen: whether DVC leaves the source alone.
    """

    source: Mapping[str, Any]
    data: Mapping[str, Any]
    frozen: bool = False

    @property
    def address(self) -> str:
        """Return the source's path or URL; empty if there is none."""
        return str(self.source.get("path", ""))

    @property
    def md5(self) -> str:
        """Return DVC's hash of data/; empty if it is not fetched yet."""
        return str(self.data.get("md5", ""))


def data_import(root: Path = Path()) -> DataImport:
    """Read data.dvc; all is empty if it does not exist.

    Raises:
        RequestError: it is not valid YAML, or not as DVC writes it.
    """
    path = root / DATA_IMPORT
    return _import_of(yaml.read(path)) if path.exists() else DataImport({}, {})


def parse_import(text: str) -> DataImport:
    """Read the content of a data.dvc, as `data_import` does."""
    return _import_of(yaml.load(text, str(DATA_IMPORT)) or {})


def _import_of(content: Any) -> DataImport:  # noqa: ANN401 (as wide as YAML)
    try:
        source, data = ((content.get(key) or [{}])[0] for key in ("deps", "outs"))
        return DataImport(dict(source), dict(data), bool(content.get("frozen")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{DATA_IMPORT} is not as DVC writes it. Restore it: git checkout {DATA_IMPORT}, or choose the data again: "
            "convoy data use SOURCE"
        ) from error


def stages(root: Path = Path()) -> dict[str, dict[str, Any]]:
    """Read the fields of each stage in dvc.yaml, those of foreach and matrix from `do`.

    Raises:
        RequestError: the file does not exist or is not valid YAML.
    """
    content = yaml.read(root / PIPELINE).get("stages") or {}
    return {name: fields.get("do", fields) for name, fields in content.items()}


def stage(name: str) -> dict[str, Any]:
    """Read the fields that DVC compares of a stage, which has its name in dvc.yaml or DVC's address (`ml/dvc.yaml:train@lenet5`).

    Raises:
        RequestError: dvc.yaml has no such stage.
    """
    name, found = name.rpartition(":")[2].partition("@")[0], stages()
    if name not in found:
        raise RequestError(f"{PIPELINE} has no stage {name}{params.did_you_mean(name, found)}")
    return {key: value for key, value in found[name].items() if key not in FOR_PEOPLE}


def declared(fields: Mapping[str, Any], read: Read = yaml.read) -> tuple[dict[str, Any], list[str]]:
    """Resolve the params of a stage, `file:key` to value, and the paths of its dependencies.

    `read` returns the content of a YAML file by its path relative to dvc.yaml.

    Raises:
        RequestError: a params file does not exist or is not valid YAML.
    """
    found: dict[str, Any] = {}
    for entry in fields.get("params") or ():
        for path, keys in ({params.PARAMS_FILE.name: [entry]} if isinstance(entry, str) else entry).items():
            content = read(Path(path))
            found |= {f"{path}:{key}": value_of(content, key) for key in keys or content}
    values = read(params.PARAMS_FILE)
    paths = [
        TEMPLATE.sub(lambda match: str(value_of(values, match[1])), path) for path in fields.get("deps") or ()
    ]
    return found, paths


def value_of(values: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Look up a param by its flat key; None if it does not exist."""
    try:
        return yaml.get(values, key)
    except (KeyError, TypeError):
        return None


def locked(root: Path = Path()) -> dict[str, dict[str, Any]]:
    """Read the stages of dvc.lock; empty without the file.

    Raises:
        RequestError: the file is damaged.
    """
    cause = f"{root / LOCK} is not a file that DVC wrote."
    try:
        content = yaml.read(root / LOCK) if (root / LOCK).exists() else {}
        stages = content.get("stages") or {}
        entries = [
            entry
            for fields in stages.values()
            for kind in ("deps", "outs")
            for entry in fields.get(kind) or ()
        ]
        if all(entry.get("path") for entry in entries):
            return dict(stages)
    except RequestError as error:
        cause = str(error)
    except AttributeError:
        pass  # text where entries belong
    raise RequestError(
        f"{cause} If a loss of power or a full disk cut it, `make repro` restores it; otherwise restore the committed file: "
        f"git checkout {LOCK}. `dvc repro` then takes results that are not committed from its run cache."
    )


def recorded(kind: Literal["outs", "deps"], path: Path) -> str:
    """Look up the md5 of a path among the outputs or dependencies in dvc.lock; empty if it is not there."""
    entries = (entry for fields in locked().values() for entry in fields.get(kind, ()))
    return str(next((entry.get("md5", "") for entry in entries if entry["path"] == path.as_posix()), ""))


def records(path: Path, content: bytes) -> bool:
    """Check whether dvc.lock records an output with this content."""
    return recorded("outs", path) == md5(content)


def md5(content: bytes) -> str:
    """Hash a file's content as DVC does."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
