"""What `convoy sweep` does: read the request, run the trials, report the results."""

import contextlib
import errno
import json
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna

from convoy.core import contract, files, params, pipeline, yaml
from convoy.core.console import ProgressBar, info, print_json
from convoy.core.dataset import FACTS_FILE, Dataset
from convoy.core.errors import RequestError, TrainingError
from convoy.repo import locks
from convoy.sweep.results import Progress, Results, plots
from convoy.sweep.space import combinations, describe
from convoy.sweep.study import (
    BASELINE,
    DATASET,
    EPOCHS,
    FOLDER,
    REASON,
    REQUEST,
    RUN,
    Request,
    begun,
    check_combinations,
    open_study,
    read_trials,
    recover,
    requeue,
)
from convoy.sweep.worker import WorkerDied, Workers
from convoy.tracking import outbox, stages
from convoy.tracking.run import Run

LOCK = "sweep.lock"
METRICS = Path("build/metrics/train.json")
LOG_EVERY_S = 60.0  # between two lines of progress in a log
RESUME = "The study is kept; `convoy sweep` continues it."


class TrialFailed(Exception):  # noqa: N818 (a trial failed, which ends no sweep)
    """A trial could not be trained; its reason is in the study."""


def sweep(trials: int | None, workers: int, *, into_params: bool, as_json: bool) -> None:
    """Bring the study of params.yaml to a number of trials, and print the results.

    `trials` counts those of earlier calls too; 0 only shows the results; None stands for `sweep.trials`. With
    `into_params` the best values are written into params.yaml. With `as_json`, progress goes to standard error.

    Raises:
        RequestError: an invalid value; nothing to apply.
        DataError: there is no packed dataset.
        TrainingError: every trial failed; the disk is full; another process runs this sweep.
        KeyboardInterrupt: the study is kept.
    """
    request = Request.read()
    target = request.sweep.trials if trials is None else trials
    with _errors_explained(request):
        results = Results.of(request, read_trials(request))
        count = combinations(request.space)
        baseline = results.baseline.values if results.baseline else request.present
        if count is not None:
            count += not request.contains(baseline)
            target = min(target, count)
        if results.done < target:
            check_combinations(request)
            stdout = sys.stderr if as_json else sys.stdout
            with locks.exclusive(request.folder / LOCK), contextlib.redirect_stdout(stdout):
                results = _run(request, results, target, workers, as_json=as_json)
    if not as_json:
        info("\n".join([*([results.table(), ""] if results.rows else []), *_summary(results, count)]))
    if results.rows and results.count("failed") == len(results.rows):
        reasons = sorted({row.reason for row in results.rows})
        raise TrainingError(
            "\n".join(["every trial failed:", *reasons, f"Logs: {request.folder}/trial-*.log"])
        )
    applied = _apply(results) if into_params else []
    if as_json:
        print_json(results.as_json() | {"own_run": own_run(request), "applied": applied})
    elif results.best and into_params:
        unchanged = f"{params.PARAMS_FILE} already holds the values of trial {results.best.number}"
        info("\n".join(["", *(applied or [unchanged]), "Train with them: dvc repro"]))
    elif results.best and results.best == results.baseline:
        info("\nNo trial is better than the baseline, so there are no values to write into params.yaml.")
    elif results.best and _exceeds(results, own_run(request)):
        info(
            "\nNo trial is better than this workspace's own run, so there are no values to write into params.yaml."
        )
    elif results.best:
        info("\nWrite the best values into params.yaml:  convoy sweep --trials 0 --apply")
        words = [f"{key}={yaml.inline(value)}" for key, value in results.best.values.items()]
        options = " ".join(f"-S {shlex.quote(word)}" for word in words)
        info(f"Train with them once:  dvc exp run {options}")


class TrialReporter:
    """Pass what a worker reports of a trial on to the study and the display."""

    def __init__(self, trial: optuna.Trial, progress: Progress) -> None:
        self._trial = trial
        self._progress = progress
        self._epochs = 0

    def started(self, attributes: Mapping[str, Any]) -> None:
        """Store attributes of the trial."""
        for key, value in attributes.items():
            self._trial.set_user_attr(key, value)
        self._epochs = int(attributes[EPOCHS])
        self._progress.epoch(self._trial.number, 0, self._epochs)

    def report(self, epoch: int, value: float) -> bool:
        """Store the metric of an epoch; return whether to prune."""
        self._trial.report(value, epoch)
        self._progress.epoch(self._trial.number, epoch, self._epochs)
        return BASELINE not in self._trial.user_attrs and self._trial.should_prune()


def optimize(
    study: optuna.Study, request: Request, target: int, workers: Workers, progress: Progress
) -> None:
    """Run trials until the study has `target` of them.

    Raises:
        TrainingError: a cause that concerns every trial, such as a changed dataset.
        OSError: the disk is full.
        KeyboardInterrupt: the workers were stopped.
    """
    choosing = threading.Lock()

    def train(trial: optuna.Trial) -> float:
        baseline = trial.user_attrs.get(BASELINE, {})
        with choosing:  # so that two trials at once do not choose the same
            values = {
                dimension.key: baseline[dimension.key]
                if dimension.key in baseline and dimension.stored(baseline[dimension.key]) is None
                else dimension.suggest(trial)
                for dimension in request.space
            }
        try:
            outcome = workers.train(trial.number, values, TrialReporter(trial, progress))
        except WorkerDied as death:
            again = requeue(study, trial.number, blame=True)
            result = "is tried again" if again else "failed: its values killed another worker before"
            progress.bar.print(f"a worker died of {death}: trial {trial.number} {result}")
            raise
        except BaseException as cause:
            workers.stop(cause)
            with contextlib.suppress(OSError):  # on a full disk the trial stays as running, for `recover`
                requeue(study, trial.number, blame=False)
            raise
        if outcome.state == "pruned":
            raise optuna.TrialPruned
        if outcome.state == "failed":
            trial.set_user_attr(REASON, outcome.reason)
            raise TrialFailed
        return outcome.value

    while (left := target - len(begun(study.get_trials(deepcopy=False)))) > 0:  # lost trials are replaced
        try:
            study.optimize(
                train,
                n_trials=left,
                n_jobs=min(workers.count, left),
                catch=(TrialFailed, WorkerDied),
                callbacks=[progress.ended],
            )
        finally:
            if workers.cause:  # that of the first thread; the others were interrupted
                raise workers.cause


def _run(request: Request, known: Results, target: int, workers: int, *, as_json: bool) -> Results:
    """Run trials inside one MLflow run, and log the results in it, also where the sweep was stopped."""
    changed = _changed_inputs(request)
    study = open_study(request)
    workers = min(workers, target - known.done)
    tags = {"convoy.sweep": request.name, contract.DATA_HASH: request.inputs["data"]}
    keys = ", ".join(key.rpartition(".")[2] for key in request.sweep.space)
    with ProgressBar("sweep", target, done=known.done, stderr=as_json, plain_seconds=LOG_EVERY_S) as bar:
        bar.print(
            f"{request.name}: {', '.join(map(str, request.space))}, by {request.sweep.metric}, {workers} at once"
        )
        bar.print(_subject(request))
        if known.rows:
            bar.print(f"{known.done} of {target} trials are done; continuing")
        elif changed:
            bar.print(f"a new study: {changed} changed since the latest in {FOLDER}/")
        if lost := recover(study):
            bar.print(f"lost with their processes, tried again: trial {', '.join(map(str, lost))}")
        with stages.standalone(f"sweep · {keys}", tags, resumed=study.user_attrs.get(RUN)) as run:
            study.set_user_attr(RUN, run.reference.run_id)
            pictures = False
            try:
                with Workers(request, run.reference, workers) as pool:
                    optimize(study, request, target, pool, Progress(bar, request))
                pictures = True
            finally:
                results = Results.of(request, study.get_trials(deepcopy=False))
                _log(run, study, results, pictures=pictures and bool(results.best))
    runs = [study.user_attrs[RUN], *(trial.user_attrs.get(RUN) for trial in study.get_trials(deepcopy=False))]
    left = outbox.wait_until_uploaded([run for run in runs if run], outbox.folder(), outbox.WAIT_SECONDS)
    outbox.warn_once(dict(list(left.items())[:1]), outbox.folder())
    return results


def _log(run: Run, study: optuna.Study, results: Results, *, pictures: bool) -> None:
    """Log counts, the best values, the trials and, which takes seconds, the pictures."""
    counts = {state: results.count(state) for state in ("complete", "pruned", "failed")}
    run.log_metrics(
        {f"sweep/{state}": float(count) for state, count in counts.items()}
        | {"sweep/trials": float(results.done)}
    )
    run.set_tags({"convoy.trials": str(results.done)})
    if results.best:
        run.log_metrics({"sweep/best_value": float(results.best.value or 0.0)})
        run.set_tags({f"best.{key}": yaml.inline(value) for key, value in results.best.values.items()})
        run.set_tags({"best.trial": str(results.best.number)})
    with tempfile.TemporaryDirectory(dir=results.request.folder, prefix="out-") as scratch:
        table = Path(scratch) / "trials.csv"
        files.write_text(table, results.csv())
        run.log_file(table, "sweep")
        run.log_file(results.request.folder / REQUEST, "sweep")
        if pictures:
            for picture in plots(study, results.request, Path(scratch)):
                run.log_file(picture, "sweep")


def _changed_inputs(request: Request) -> str:
    """Name the inputs in which the newest other study differs; empty where there is none."""
    others = [path for path in request.folder.parent.glob(f"*/{REQUEST}") if path.parent != request.folder]
    if not others:
        return ""
    last = files.read_json(max(others, key=lambda path: path.stat().st_mtime)).get("inputs", {})
    return ", ".join(name for name, value in request.inputs.items() if last.get(name) != value)


def _subject(request: Request) -> str:
    """Name the networks and the data that trials train."""
    dataset = Dataset.load(DATASET)
    images = sum(dataset.counts["train"].values())
    return (
        f"network {', '.join(request.networks)} · data {dataset.hash[:12]} ({DATASET}: {images:,} training images, "
        f"{len(dataset.classes)} classes, {dataset.image_px} px)"
    )


def own_run(request: Request) -> float | None:
    """Read the metric of the training that dvc.lock records, if it had the same data and a network of the trials."""
    content = METRICS.read_bytes() if METRICS.is_file() else b""
    train = pipeline.locked().get("train", {})
    facts = DATASET / FACTS_FILE  # has the hash of the images and labels
    data = next((dep.get("md5") for dep in train.get("deps", ()) if dep["path"] == facts.as_posix()), None)
    network = train.get("params", {}).get(params.PARAMS_FILE.name, {}).get("network", {}).get("name")
    if not pipeline.records(METRICS, content) or data != pipeline.md5(facts.read_bytes()):
        return None
    if network not in request.networks:
        return None
    return float(json.loads(content)["best"][request.sweep.metric.replace("/", "_")])


def _exceeds(results: Results, own: float | None) -> bool:
    """Whether the workspace's own run is at least as good as the best trial."""
    if own is None or results.best is None or results.best.value is None:
        return False
    return own >= results.best.value if results.request.direction == "maximize" else own <= results.best.value


def _summary(results: Results, count: int | None) -> list[str]:
    request = results.request
    if not results.rows:
        space = ", ".join(map(str, request.space))
        return [f"{request.name} has no trials yet: {space}. Start: convoy sweep", _subject(request)]
    lines = [
        _subject(request),
        f"{results.done} trials: {results.count('complete')} complete, {results.count('pruned')} pruned, "
        f"{results.count('failed')} failed"
        + (f"; all {count} combinations were tried" if count is not None and results.done >= count else ""),
    ]
    if best := results.best:
        lines.append(
            f"best {request.sweep.metric} {best.value:.4f}, trial {best.number}: {describe(best.values)}. "
            "The best of noisy values overestimates; docs/sweep.md shows how to confirm it."
        )
    metric = request.sweep.metric
    if not (baseline := results.baseline):
        lines.append("The baseline, the values of params.yaml, was not tried yet.")
    elif baseline.state != "complete" or baseline.value is None:
        reason = baseline.reason.partition("\n")[0]
        lines.append(
            f"The baseline, trial {baseline.number}, is {baseline.state}, so nothing shows whether the best is better than "
            f"params.yaml: {describe(baseline.values)}{f'. {reason}' if reason else ''}"
        )
    else:
        outside = "" if request.contains(baseline.values) else ", outside the space"
        gain = abs((best.value or 0.0) - baseline.value) if best else 0.0
        compared = "the best of all" if best == baseline else f"the best is better by {gain:.4f}"
        lines.append(
            f"baseline {metric} {baseline.value:.4f}, trial {baseline.number}: {describe(baseline.values)} "
            f"(params.yaml{outside}): {compared}"
        )
    if (own := own_run(request)) is not None and best:
        side = (
            "no trial is better"
            if _exceeds(results, own)
            else f"the best is better by {abs((best.value or 0.0) - own):.4f}"
        )
        lines.append(f"this workspace's own run (dvc.lock, the same data): {metric} {own:.4f}: {side}")
    return lines


def _apply(results: Results) -> list[str]:
    if results.best is None:
        raise RequestError(
            f"{results.request.name} has no completed trial, so there is nothing to apply"
            + (f" ({results.done} are pruned or failed). " if results.done else ". ")
            + "Run some: convoy sweep"
        )
    return yaml.update(params.PARAMS_FILE, results.best.values)


@contextlib.contextmanager
def _errors_explained(request: Request) -> Iterator[None]:
    try:
        yield
    except locks.AlreadyRunning as error:
        raise TrainingError(
            f"{request.name} is already being swept by {error}. Wait, stop it with Ctrl-C, or look: "
            "convoy sweep --trials 0"
        ) from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise TrainingError(
            f"the disk that holds {request.folder} is full. Free some space. {RESUME}"
        ) from error
