"""Restore a run: clone the repository in its state, so that `dvc repro` has nothing to do; verify it by training again."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.core import contract, files, yaml
from convoy.core.console import info
from convoy.core.errors import RequestError, listed, without_credentials
from convoy.lineage.runs import Record
from convoy.lineage.trace import DIFF, UNFINISHED, Sources, beside, is_code, unknown_commit
from convoy.repo import dvc, git
from convoy.repo.dvc import RestoreError, fill_cache
from convoy.tracking.run import flatten_metrics

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("params.yaml", "dvc.yaml", "data.dvc", "dvc.lock")  # in the folder `pipeline` of a run's artifacts
SCRATCH = Path(".git/restoring")  # of a clone's downloads: DVC would read a dvc.yaml that it finds elsewhere

METRICS = Path("build/metrics")
WEIGHTS = Path("build/model/weights.pt")
VERIFICATION = Path("build/deploy", contract.VERIFICATION)

TIMED = ("seconds", "latency", "per_second", "energy/")  # in names of metrics that differ in any two runs

SHOWN = 60
"""Lines of a run's code that a refusal shows."""

SECRET = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|CONNECTION_STRING|(^|_)(PASS|PAT|SAS|AUTH|KEY|KEYS)($|_)|"
    r"APIKEY|SSH_AUTH_SOCK|^(AWS|AZURE|ARM|GOOGLE|GCP|GH|GITHUB|GITLAB|CI_JOB|CI_REGISTRY|DATABRICKS|KAGGLE|MLFLOW_TRACKING)_",
    re.IGNORECASE,
)
"""Names of variables that may hold a credential; those of clouds and forges as a whole."""

OUTER = ("DVC_", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT")
"""Beginnings of variables that would send the training's run elsewhere: it belongs to the clone."""

NAMED = 5


def restore(record: Record, sources: Sources, target: Path, *, trust_run_code: bool = False) -> Path:
    """Clone this repository in the state of a run: commit, uncommitted changes, params, data, outputs.

    The clone is made beside the target and renamed at the end, so that a failure leaves nothing. Whoever may write to the
    tracking store may replace a run's artifacts. So what runs comes from the commit, unless `trust_run_code`, and nothing
    is written through a link that leaves the clone.

    Returns:
        The pipeline's folder: the target, or the same subfolder of it as in a larger repository.

    Raises:
        RequestError: the target is in use, or lies inside this repository; the run's code differs from its commit, and is
            not trusted.
        RestoreError: the commit, the lock or data are not available, or the result differs from the run's state.
    """
    _check_target(target, sources.root)
    number = _check_commit(record, sources)
    artifacts = sources.records.artifacts(record, "pipeline")
    if "pipeline/dvc.lock" not in artifacts:
        raise RestoreError(
            f"run {record.run_id} is {record.status}: it has no final dvc.lock, so its outputs are not recorded.\n"
            f"Choose a run that finished, or check out its code: git checkout {number[:10]}"
            if record.status in UNFINISHED
            else f"run {record.run_id} has no dvc.lock. Type `convoy sync` where the run was made, which attaches it from "
            "the workspace or the experiment, then try again."
        )
    inside = git.prefix(sources.root)
    with _temporary_clone(target) as clone:
        _clone(sources.root, clone, number, record.run_id)
        if DIFF in artifacts:
            _apply(_download(record, sources, DIFF, clone), clone, record)
        pipeline = clone / inside
        # A run's changes could have made the folder a link.
        if pipeline.resolve() != clone / inside or not (pipeline / ".dvc").is_dir():
            raise RestoreError(
                f"commit {number[:10]} of run {record.run_id} has no DVC pipeline in {inside}/"
            )
        for name in FILES:
            if f"pipeline/{name}" in artifacts:
                _place(_download(record, sources, f"pipeline/{name}", clone), pipeline / name)
        if not trust_run_code:
            _refuse_code(clone, record)
        _refuse_outside(clone, record)
        _freeze(pipeline / "data.dvc")
        info(
            f"cloned at commit {number[:10]}" + (" with the uncommitted changes" if DIFF in artifacts else "")
        )
        fill_cache(pipeline, sources.root, f"run {record.run_id}")
        dvc.run(pipeline, "checkout", "--force")
        _check_state(pipeline, record, has_diff=DIFF in artifacts)
        info("data and outputs are in place; `dvc status` reports no changes")
    return target / inside


def _place(source: Path, target: Path) -> None:
    """Replace a file; a link in its place, which the run's changes may have made, is removed and not followed."""
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


def _differing(clone: Path) -> list[str]:
    """List the files that differ from the commit, new ones included, also those that git ignores."""
    changed = git.run(clone, "diff", "--name-only", "--no-renames", "-z", "HEAD").split("\0")
    return sorted(
        name for name in [*changed, *git.run(clone, "ls-files", "-z", "--others").split("\0")] if name
    )


def _refuse_code(clone: Path, record: Record) -> None:
    """Refuse files of the run that differ from the commit, apart from params, networks and DVC's records."""
    code = [name for name in _differing(clone) if (clone / name).is_symlink() or is_code(name)]
    if not code:
        return
    git.run(clone, "add", "--intent-to-add", "--force", "--all", "--", *code)
    diff = git.run(clone, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", *code)
    lines = ["".join(c if c.isprintable() or c == "\t" else "?" for c in line) for line in diff.split("\n")]
    more = [f"… and {len(lines) - SHOWN:,} more lines"] if len(lines) > SHOWN else []
    shown = "\n".join(["", *lines[:SHOWN], *more, ""])
    raise RequestError(
        f"run {record.id} was made with code that its commit does not have: {listed(code, NAMED)}{shown}"
        "It comes from the tracking store, whose other users could have written it, and `dvc repro` in the restored folder "
        "would run it. If you trust it, add --trust-run-code."
    )


def _refuse_outside(clone: Path, record: Record) -> None:
    """Refuse links of the run and outputs that lead out of the clone: DVC would write through them."""
    inside = clone.resolve()
    paths = {name: clone / name for name in _differing(clone) if (clone / name).is_symlink()}
    for file in clone.rglob("*"):  # as DVC, which also reads what git ignores
        name, parts = file.relative_to(clone).as_posix(), file.relative_to(clone).parts
        if parts[0] in (".git", ".dvc") or not file.is_file():
            continue
        if file.suffix == ".dvc":
            entries = [yaml.read(file)]
        elif file.name in ("dvc.yaml", "dvc.lock"):
            stages = yaml.read(file).get("stages") or {}
            entries = [stage.get("do", stage) for stage in stages.values()]
        else:
            continue
        for entry in entries:
            folder = file.parent / str(entry.get("wdir") or ".")
            for out in (out for kind in ("outs", "metrics", "plots") for out in entry.get(kind) or []):
                path = out.get("path", next(iter(out))) if isinstance(out, dict) else str(out)
                paths[f"{name}: {path}"] = folder / path
    if outside := [name for name, path in paths.items() if not path.resolve().is_relative_to(inside)]:
        raise RestoreError(
            f"run {record.id} has links or outputs that lead out of the restored folder: {listed(outside, NAMED)}. Nothing "
            "was written there. If its artifacts were replaced, its commit is still in git: git checkout "
            f"{record.tag(contract.GIT_COMMIT)[:10]}"
        )


def _freeze(path: Path) -> None:
    """Freeze an import, as `dvc freeze` does: its source is no longer checked."""
    text = path.read_text(encoding="utf-8")
    if "\nfrozen: true" not in f"\n{text}" and "\ndeps:" in f"\n{text}":
        path.write_text(f"{text.rstrip()}\nfrozen: true\n", encoding="utf-8")


def _check_target(target: Path, root: Path) -> None:
    problem = ""
    if target.is_dir():
        problem = "is not empty" if any(target.iterdir()) else ""
    elif target.exists() or target.is_symlink():
        problem = "is a file"
    if git.top(root).resolve() in [target.resolve(), *target.resolve().parents]:
        problem = "lies inside this repository"
    if problem:
        raise RequestError(f"{target} {problem}. Name a folder that does not exist, such as {beside(root)}")


def _check_commit(record: Record, sources: Sources) -> str:
    number = record.tag(contract.GIT_COMMIT)
    if not number:
        raise RestoreError(f"run {record.run_id} has no commit: {unknown_commit(record)}")
    if reason := git.no_commit(sources.root):
        raise RestoreError(f"commit {number[:10]} of run {record.run_id} cannot be looked up: {reason}")
    if not git.commit(sources.root, number):
        raise RestoreError(
            f"commit {number} of run {record.run_id} is not in this repository: it was never fetched, or removed after "
            "an amend or rebase.\nType `git fetch --all --tags`, or restore from a clone that still has it. "
            "The run's artifacts in pipeline/ have its params.yaml, dvc.yaml and dvc.lock."
        )
    return number


@contextmanager
def _temporary_clone(target: Path) -> Iterator[Path]:
    """Yield a temporary name beside the target, and rename it at the end; remove it after a failure."""
    resolved = target.resolve()
    clone = resolved.with_name(f".{resolved.name}.{os.getpid()}")
    resolved.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield clone
        shutil.rmtree(clone / SCRATCH, ignore_errors=True)
        if resolved.exists():
            resolved.rmdir()
        clone.rename(resolved)
    except BaseException:  # Ctrl-C as well
        dvc.remove(clone)
        raise


def _clone(root: Path, clone: Path, number: str, run_id: str) -> None:
    """Clone with a branch at the commit, so that git keeps it there even if nothing else contains it."""
    branch = f"restored/{run_id}"
    git.run(root, "clone", "--quiet", "--no-checkout", str(git.top(root)), str(clone))
    if git.commit(clone, number):
        git.run(clone, "checkout", "--quiet", "--no-track", "-b", branch, number)
    else:  # a shallow repository gives a clone only what its branches contain
        git.run(clone, "config", "receive.shallowUpdate", "true")
        git.run(root, "push", "--quiet", str(clone), f"{number}:refs/heads/{branch}")
        git.run(clone, "checkout", "--quiet", branch)
    for key in ("user.name", "user.email"):
        if value := git.query(root, "config", "--local", key):
            git.run(clone, "config", key, value)


def _apply(diff: Path, clone: Path, record: Record) -> None:
    try:
        git.run(clone, "apply", "--binary", "--whitespace=nowarn", str(diff))
    except git.GitError as error:
        raise RestoreError(
            f"the uncommitted changes of run {record.run_id} do not fit its commit: {error}. Was its artifact {DIFF} "
            "replaced?"
        ) from error


def _download(record: Record, sources: Sources, name: str, clone: Path) -> Path:
    folder = clone / SCRATCH
    folder.mkdir(exist_ok=True)
    path = sources.records.download(record, name, folder)
    if path is None:
        raise RestoreError(f"run {record.run_id} lists the artifact {name}, but the store does not return it")
    return path


def _check_state(clone: Path, record: Record, *, has_diff: bool) -> None:
    """Make sure that `dvc repro` has nothing to do."""
    status = json.loads(dvc.run(clone, "status", "--json"))
    if not status:
        return
    dirty = record.tag(contract.GIT_DIRTY) == "true"
    reason = (
        "It was made with uncommitted changes, which were not stored."
        if dirty and not has_diff
        else "Its commit, params and dvc.lock do not belong together."
    )
    stages = "; ".join(f"{name}: {json.dumps(changes)}" for name, changes in status.items())
    raise RestoreError(
        f"run {record.run_id} cannot be restored: `dvc status` reports {stages:.600}\n"
        f"{reason} Commit before a run that matters; of this one, only the artifacts are left."
    )


@dataclass(frozen=True)
class Report:
    """Compare a second training with the run."""

    metrics: dict[
        str, tuple[float, float]
    ]  # that differ: name to the run's value and that of the second training
    compared: int  # number of metrics
    tensors: dict[str, float]  # name of each tensor that differs to its largest difference
    total: int  # number of tensors
    conditions: tuple[str, ...]  # that differ from those of the run

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.metrics and not self.tensors


def verify(clone: Path, record: Record) -> Report:
    """Force the training and what follows from it in a restored clone, then put the run's outputs back.

    Raises:
        RestoreError: the training fails here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(shutil.copy(clone / WEIGHTS, scratch))
        lock = Path(shutil.copy(clone / "dvc.lock", scratch))
        then = files.read_json(clone / VERIFICATION)
        info("training again, with everything that follows …")
        _repro(clone, "--force", "--single-item", "train")
        _repro(clone)
        metrics: dict[str, float] = {}
        for path in sorted((clone / METRICS).glob("*.json")):
            metrics |= flatten_metrics(files.read_json(path))
        total, tensors = compare_weights(weights, clone / WEIGHTS)
        now = files.read_json(clone / VERIFICATION)
        shutil.copyfile(lock, clone / "dvc.lock")
    dvc.run(clone, "checkout", "--force")
    names = [name for name in metrics if name in record.metrics and not any(part in name for part in TIMED)]
    differing = {
        name: (record.metrics[name], metrics[name]) for name in names if record.metrics[name] != metrics[name]
    }
    conditions = tuple(_conditions(then, now, clone)) if differing or tensors else ()
    return Report(differing, len(names), tensors, total, conditions)


def compare_weights(before: Path, after: Path) -> tuple[int, dict[str, float]]:
    """Compare two files of weights tensor by tensor, by the sha256 of type, shape and bytes.

    Returns:
        The number of tensors, and the largest difference in each that differs.
    """
    import torch  # noqa: PLC0415 (a second)

    old, new = (torch.load(path, map_location="cpu", weights_only=True) for path in (before, after))
    names = sorted({*old, *new})
    differing = {}
    for name in names:
        if name not in old or name not in new or old[name].shape != new[name].shape:
            differing[name] = float("inf")
        elif _digest(old[name]) != _digest(new[name]):
            differing[name] = float((old[name].double() - new[name].double()).abs().max())
    return len(names), differing


def _digest(tensor: "Tensor") -> str:
    """Hash type, shape and content of a tensor."""
    import torch  # noqa: PLC0415 (a second)

    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + content).hexdigest()


def lines(report: Report) -> Iterator[str]:
    """Render for people."""
    tensors, metrics = report.tensors, report.metrics
    if not tensors:
        yield f"weights  bit-identical: {report.total} tensors, by sha256"
    else:
        names = listed(list(tensors), NAMED)
        yield f"weights  {len(tensors)} of {report.total} tensors differ, by up to {max(tensors.values()):.3g}: {names}"
    count = f"{len(metrics)} of {report.compared} differ" if metrics else f"equal: {report.compared}"
    yield f"metrics  {count}; times and energy are not compared"
    for name, (old, new) in metrics.items():
        yield f"         {name}  {old} → {new}"
    if not report.equal:
        yield "Possible causes:"
        for condition in report.conditions:
            yield f"  {condition}"


def _conditions(then: Mapping[str, Any], now: Mapping[str, Any], clone: Path) -> Iterator[str]:
    """List what decides the last bits of a result and differs."""
    for name in ("processor", "system", "cores"):
        old, new = then["hardware"].get(name), now["hardware"].get(name)
        if old != new:
            yield f"{name}: {old} → {new}"
    for name, old in then["versions"].items():
        if old != (new := now["versions"].get(name, "absent")):
            yield f"{name} {old} → {new}; the clone's requirements.txt has the versions of the run"
    if yaml.read(clone / "params.yaml")["train"].get("precision") == "auto":
        yield "train.precision is auto: bf16 if the processor or GPU computes in it, else float32"
    yield "a GPU adds in an order that changes from run to run; on a CPU it depends on the threads (OMP_NUM_THREADS)"


def without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """Leave out variables that may hold a credential, by their name or as part of an address."""
    return {
        key: text for key, text in env.items() if not SECRET.search(key) and without_credentials(text) == text
    }


def _repro(clone: Path, *options: str) -> None:
    """Run `dvc repro` in the clone, with its output shown; the tracking store is the clone's own."""
    env = {key: text for key, text in without_secrets(os.environ).items() if not key.startswith(OUTER)}
    env |= dvc.environment(clone)
    # Stage commands call `python`: it must be the Python that runs this.
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    command = [sys.executable, "-m", "dvc", "repro", *options]
    done = subprocess.run(command, cwd=clone, env=env, stdout=sys.stderr, check=False)  # noqa: S603 (own words)
    if done.returncode:
        raise RestoreError(
            f"`dvc {' '.join(command[3:])}` failed in {clone}; see the messages above. The clone is kept as it is."
        )
