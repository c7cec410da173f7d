"""What `convoy sweep` does: read the request, lead the trials, say what came of it."""

import contextlib
import errno
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from convoy.core import files, params, yaml
from convoy.core.dataset import Dataset
from convoy.core.errors import RequestError, TrainingError
from convoy.sweep import conflicts
from convoy.sweep.leader import GO_ON, lead
from convoy.sweep.request import DATASET, Request
from convoy.sweep.results import Results
from convoy.sweep.show import Show
from convoy.sweep.space import describe
from convoy.sweep.study import FOLDER, JOURNAL, REQUEST, RUN, Study, folder_of
from convoy.sweep.suggest import combinations
from convoy.tracking import outbox, stages
from convoy.tracking.run import Run

LARGEST = 10_000
"""Most trials that can be asked for."""


def sweep(trials: int | None, workers: int, *, into_params: bool, as_json: bool) -> None:
    """Bring the study of params.yaml to a number of trials, and print what it came to.

    Args:
        trials: in all, those of earlier calls included; 0 looks only; None: `sweep.trials`.
        workers: processes at once.
        into_params: write the best trial's values into params.yaml.
        as_json: print one JSON object; progress goes to standard error.

    Raises:
        RequestError: a value that cannot be; nothing to apply.
        DataError: there is no packed dataset.
        TrainingError: every trial failed; the disk is full; another process sweeps.
        KeyboardInterrupt: the study is kept.
    """
    request = Request.read()
    folder = folder_of(request)
    count = combinations(request.space)
    target = min(request.sweep.trials if trials is None else trials, count or LARGEST)
    with _room(folder):
        results = _look(folder, request)
        if results.done < target:
            dataset = Dataset.load(DATASET)
            conflicts.check(request, len(dataset.classes), dataset.image_px)
            study = Study(folder, request)
            with study.alone(), contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
                results = _run(study, target, workers, aside=as_json)
                _deliver(study)
    if not as_json:
        table = [*results.lines(), ""] if results.rows else []
        for line in [*table, *_summary(results, count)]:
            print(line)
    if results.rows and results.count("failed") == len(results.rows):
        reasons = sorted({row.reason for row in results.rows})
        raise TrainingError("\n".join(["every trial failed:", *reasons, f"Logs: {folder}/trial-*.log"]))
    applied = _apply(results) if into_params else []
    if as_json:
        print(json.dumps(results.facts() | {"applied": applied}, ensure_ascii=False))
        return
    for line in _next(results, applied, into_params=into_params):
        print(line)


def _next(results: Results, applied: list[str], *, into_params: bool) -> list[str]:
    """Say what changed, or what to type."""
    if results.best is None:
        return []
    if into_params:
        nothing = f"{params.PARAMS_FILE} holds the values of trial {results.best.number} already"
        return ["", *(applied or [nothing]), "Train with them: dvc repro"]
    return [
        "",
        "Keep the best values in params.yaml:  convoy sweep --trials 0 --apply",
        f"Train with them once:  {command(results)}",
    ]


def command(results: Results) -> str:
    """Give the command that trains with the best values without editing."""
    if results.best is None:
        raise RequestError(_nothing(results))
    words = [f"{key}={yaml.inline(value)}" for key, value in results.best.values.items()]
    return "dvc exp run " + " ".join(f"-S {shlex.quote(word)}" for word in words)


def _look(folder: Path, request: Request) -> Results:
    """Read what is there, without making anything."""
    trials = Study(folder, request).trials() if (folder / JOURNAL).exists() else []
    return Results.of(request, trials)


def _run(study: Study, target: int, workers: int, *, aside: bool) -> Results:
    """Lead workers inside one run, and give that run what came of them, also where it was stopped."""
    request = study.request
    known = Results.of(request, study.trials())
    tags = {"convoy.sweep": request.name, "convoy.data_hash": request.inputs["data"]}
    with Show(known, target, workers, aside=aside) as show:
        for line in _opening(study, known, target, workers):
            show.say(line)
        lost = study.recover()
        if lost:
            show.say(f"lost with their processes, tried again: trial {', '.join(map(str, lost))}")
        keys = ", ".join(key.rpartition(".")[2] for key in request.sweep.space)
        before = study.optuna.user_attrs.get(RUN)
        with stages.standalone(f"sweep · {keys}", tags, resumed=before) as run:
            study.optuna.set_user_attr(RUN, run.reference.run_id)
            try:
                lead(study, target, min(workers, target - known.done), run.reference, show)
            except BaseException:
                study.recover()
                _publish(run, study, Results.of(request, study.trials()), picture=False)
                raise
            results = Results.of(request, study.trials())
            _publish(run, study, results, picture=bool(results.best))
    return results


def _deliver(study: Study) -> None:
    """See the runs delivered, or say once why they are not."""
    runs = [study.optuna.user_attrs[RUN], *(trial.user_attrs.get(RUN) for trial in study.trials())]
    where = outbox.folder()
    left = outbox.wait_until_uploaded([run for run in runs if run], where, outbox.WAIT_SECONDS)
    outbox.warn_once(dict(list(left.items())[:1]), where)


def _publish(run: Run, study: Study, results: Results, *, picture: bool) -> None:
    """Give the run of a sweep its figures and the trials, and the picture, which takes seconds."""
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
    with tempfile.TemporaryDirectory(dir=study.folder, prefix="out-") as scratch:
        table = Path(scratch) / "trials.csv"
        files.write_text(table, results.table())
        run.log_file(table, "sweep")
        run.log_file(study.folder / REQUEST, "sweep")
        if picture:
            from convoy.sweep.plot import draw  # noqa: PLC0415 (imports scikit-learn)

            run.log_file(draw(results, study.optuna, Path(scratch) / "sweep.png"), "sweep")


def _opening(study: Study, known: Results, target: int, workers: int) -> list[str]:
    """Say what begins, or what is gone on with."""
    request = study.request
    what = f"{request.name}: {describe_space(request)}, by {request.sweep.metric}, {workers} at once"
    if known.rows:
        return [what, f"{known.done} of {target} trials are done; going on"]
    lines = [f"{what}, {target} trials"]
    if changed := _since_the_last(study):
        lines.append(f"a new study: {changed} changed since {FOLDER}/ was last added to")
    return lines


def describe_space(request: Request) -> str:
    """Name the keys and their ranges."""
    found = []
    for one in request.space:
        low, *_, high = one.ends()
        span = " | ".join(map(yaml.inline, one.choices)) or f"{yaml.inline(low)} to {yaml.inline(high)}"
        found.append(f"{one.key} {span}")
    return ", ".join(found)


def _since_the_last(study: Study) -> str:
    """Name the inputs in which the newest other study differs; empty where there is none."""
    others = [path for path in study.folder.parent.glob(f"*/{REQUEST}") if path.parent != study.folder]
    if not others:
        return ""
    last = files.read_json(max(others, key=lambda path: path.stat().st_mtime)).get("inputs", {})
    return ", ".join(name for name, value in study.request.inputs.items() if last.get(name) != value)


def _summary(results: Results, count: int | None) -> list[str]:
    request = results.request
    if not results.rows:
        return [f"{request.name} has no trial yet: {describe_space(request)}. Begin: convoy sweep"]
    lines = [
        f"{results.done} trials: {results.count('complete')} complete, {results.count('pruned')} pruned, "
        f"{results.count('failed')} failed"
        + (f"; all {count} combinations were tried" if count is not None and results.done >= count else "")
    ]
    if results.best:
        best = results.best
        lines.append(
            f"best {request.sweep.metric} {best.value:.4f}, trial {best.number}: {describe(best.values)}. It is the best of "
            "noisy values, so expect less of it; docs/sweep.md says how to confirm it."
        )
    return lines


def _nothing(results: Results) -> str:
    return (
        f"{results.request.name} has no completed trial, so there is nothing to apply"
        + (f" ({results.done} are pruned or failed). " if results.done else ". ")
        + "Run some: convoy sweep"
    )


def _apply(results: Results) -> list[str]:
    if results.best is None:
        raise RequestError(_nothing(results))
    return yaml.update(params.PARAMS_FILE, results.best.values)


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Say a full disk as what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise TrainingError(f"the disk that holds {folder} is full. Make room. {GO_ON}") from error
