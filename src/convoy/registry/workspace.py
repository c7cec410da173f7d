"""Whether the model in build/deploy belongs to the workspace: to dvc.lock byte for byte, and to today's data.

`dvc status` cannot decide it: it trusts md5s that were never compared with the bytes that a remote delivered, and
reports nothing of a model whose data were replaced by `convoy data use`.
"""

from datetime import UTC, datetime
from pathlib import Path

from convoy.core import files, pipeline
from convoy.core.dataset import FACTS_FILE
from convoy.core.errors import RequestError, listed
from convoy.core.pipeline import DATA_IMPORT, LOCK, data_import, recorded
from convoy.repo import dvc

DATASET = Path("build/dataset")


def check(deploy: Path, run_id: str, data_hash: str) -> None:
    """Refuse a model that is not what dvc.lock records, or that was made of other data than the workspace's.

    Args:
        deploy: folder of the model.
        run_id: of the run that made it.
        data_hash: of the packed dataset that it was made of.

    Raises:
        RequestError: names what differs, and the commands that make or register what is meant.
    """
    if not recorded("outs", deploy):
        raise RequestError(
            f"{LOCK} does not record {deploy}, so nothing shows what the model in it was made of. Make it by: dvc repro "
            f"(or register the model that its run logged: convoy register {run_id})"
        )
    for path in (deploy, DATASET):
        if differing := changed(path):
            raise RequestError(
                f"{path} is not what {LOCK} records: {differing}. It was edited, or a DVC remote delivered other bytes "
                f"(docs/security.md).\nRestore it: dvc checkout --force {path}; if it still differs, the copy in DVC's "
                f"cache is damaged as well: make it again by `dvc repro --force`"
            )
    others = []
    used, now = recorded("deps", Path("data")), data_import().md5
    if used and DATA_IMPORT.exists() and now != used:
        others.append(
            f"the model was made of data {used[:10]}, {DATA_IMPORT} has {now[:10] or 'data that are not fetched yet'}"
        )
    facts = DATASET / FACTS_FILE
    packed = str(files.read_json(facts)["hash"]) if facts.is_file() else data_hash
    if packed != data_hash:
        others.append(f"the model was made of dataset {data_hash[:12]}, {DATASET} has {packed[:12]}")
    if others:
        raise RequestError(
            f"{deploy} has the model of other data than this workspace's: {'; '.join(others)}.\n"
            f"To make a model of these data: dvc repro. To register this model anyway: convoy register {run_id}"
        )


def changed(path: Path) -> str:
    """Name the files in which an output differs from dvc.lock; empty if it is equal, absent or not recorded."""
    expected, actual = recorded("outs", path), dvc.content_md5(path)
    if not expected or not actual or actual == expected:
        return ""
    members = dvc.Cache.of(Path.cwd()).members(expected) if Path(".dvc").is_dir() else {}
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    names = sorted(
        name for name in {*members, *present} if members.get(name) != (dvc.content_md5(path / name) or None)
    )
    return listed(names, 4) if members else f"its md5 is {actual[:10]}, not {expected[:10]}"


def network() -> str:
    """Name the network that dvc.lock records; empty if it records none."""
    for stage in pipeline.locked().values():
        section = stage.get("params", {}).get("params.yaml", {}).get("network", {})
        if name := section.get("name"):
            return str(name)
    return ""


def age(run_id: str) -> str:
    """Derive from a run's id how long ago it began, such as `made 3 days ago`."""
    try:
        began = datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return f"made by run {run_id}"
    minutes = max(0, int((datetime.now(UTC) - began).total_seconds() / 60))
    for length, unit in ((24 * 60, "day"), (60, "hour"), (1, "minute")):
        if minutes >= length:
            count = minutes // length
            return f"made {count} {unit}{'s' * (count > 1)} ago"
    return "made less than a minute ago"
