"""When something happens: a command, the program below it, and the points in that program at which it is halted.

A point is a pattern of an audit event or of an SQL statement (inside.py), and how many times it may occur before: a state
that is reached, never a time. The seed chooses the point and the occurrence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

DVC = r"bin/dvc repro"
UPLOADER = r"-m convoy\.tracking\.uploader"


@dataclass(frozen=True)
class Point:
    """An event in a program; `most` is how many of its occurrences the seed may choose from."""

    program: str
    event: str
    most: int = 1


@dataclass(frozen=True)
class Moment:
    """A command, where it starts from, and the points at which it can be halted."""

    name: str
    state: str
    command: tuple[str, ...]
    points: tuple[Point, ...]
    stage: str = ""  # whose inputs are edited
    remedy: tuple[tuple[str, ...], ...] = ()  # documented commands that follow; the command itself if empty

    @property
    def next(self) -> Sequence[tuple[str, ...]]:
        """Return the documented commands that follow."""
        return self.remedy or (self.command,)

    @property
    def target(self) -> str:
        """Return the stage that the command makes; empty for a command that is no pipeline's."""
        return self.command[-1] if self.command[:2] == ("dvc", "repro") else ""


def stage_moment(stage: str, state: str, *points: tuple[str, str, int]) -> Moment:
    """Describe a stage that runs alone; points are the words after `pipelines/`, an event and its occurrences."""
    found = tuple(Point(rf"python pipelines/{program}", event, most) for program, event, most in points)
    return Moment(stage, state, ("dvc", "repro", stage), found, stage)


MOMENTS = (
    stage_moment(
        "prepare",
        "new",
        ("prepare", r"rename .*exps/rwlock$", 1),
        ("prepare", r"open .*labels\.npy", 1),
        ("prepare", r"rename .*build/dataset$", 1),
        ("prepare", r"open .*metrics/\.prepare\.json", 1),
    ),
    stage_moment(
        "train",
        "prepared",
        ("train", r"open .*journal\.jsonl", 1),
        ("train", r"rename .*runs/train\.json", 1),
        ("train", r"open .*step-\d+\.ckpt", 4),
        ("train", r"rename .*step-\d+\.json", 4),
        ("train", r"open .*build/model/", 2),
        ("train", r"rename .*metrics/train\.json", 1),
    ),
    stage_moment(
        "evaluate",
        "trained",
        ("evaluate", r"open .*journal\.jsonl", 1),
        ("evaluate", r"open .*confusion\.csv", 1),
        ("evaluate", r"rename .*report\.html", 1),
        ("evaluate", r"rename .*metrics/evaluate\.json", 1),
        ("evaluate", r"open .*outbox/.*/predictions\.parquet", 1),
    ),
    stage_moment(
        "export",
        "evaluated",
        (r"export\.py build", r"open .*journal\.jsonl", 1),
        (r"export\.py build", r"open .*build/deploy/", 3),
        (r"export\.py verify", r"read .*model\.unverified\.onnx", 1),
        (r"export\.py verify", r"rename .*deploy/model\.onnx$", 1),
        (r"export\.py verify", r"rename .*metrics/export\.json", 1),
        (r"export\.py verify", r"open .*outbox/.*/model\.onnx", 1),
        (r"export\.py verify", r"open .*outbox/wake", 1),
    ),
    Moment(
        "between",
        "trained",
        ("dvc", "repro", "export"),
        (
            Point(DVC, r"subprocess\.Popen .*export\.py build"),
            Point(DVC, r"subprocess\.Popen .*export\.py verify"),
            Point(DVC, r"open .*dvc\.lock w", 2),
            Point(DVC, r"rename .*\.dvc/cache/files/md5/", 6),
        ),
        "export",
    ),
    Moment(
        "delivery",
        "undelivered",
        ("convoy", "sync"),
        (
            Point(UPLOADER, r"open .*\.sent\.json", 3),
            Point(UPLOADER, r"open .*\.artifact\.uploading", 2),
            Point(UPLOADER, r"sql (INSERT|UPDATE|COMMIT)", 12),
            Point(UPLOADER, r"rename .*\.removed-", 1),
        ),
    ),
    Moment(
        "register",
        "exported",
        ("convoy", "register"),
        (
            Point(r"bin/convoy register", r"sql INSERT INTO registered_models"),
            Point(r"bin/convoy register", r"sql INSERT INTO model_versions"),
            Point(r"bin/convoy register", r"sql .*registered_model_aliases"),
            Point(r"bin/convoy register", r"sql SELECT", 8),
        ),
    ),
    Moment(
        "promote",
        "registered",
        ("convoy", "promote"),
        (
            Point(r"bin/convoy promote", r"open .*build/gate/"),
            Point(r"bin/convoy promote", r"sql INSERT INTO runs"),
            Point(r"bin/convoy promote", r"sql COMMIT", 20),
            Point(r"bin/convoy promote", r"sql INSERT INTO registered_model_aliases"),
            Point(r"bin/convoy promote", r"sql UPDATE runs"),
        ),
    ),
    Moment(
        "retrain",
        "exported",
        ("python", "pipelines/retrain.py"),
        (
            Point(r"pipelines/retrain\.py", r"subprocess\.Popen .*worktree.*add"),
            Point(r"pipelines/retrain\.py", r"subprocess\.Popen .*pipelines/repro\.py"),
            Point(r"pipelines/repro\.py", r"open .*dvc\.lock"),
            Point(r"pipelines/retrain\.py", r"sql INSERT INTO model_versions"),
            Point(r"pipelines/retrain\.py", r"sql INSERT INTO registered_model_aliases", 2),
            Point(r"pipelines/retrain\.py", r"sql INSERT INTO runs"),
            Point(r"pipelines/retrain\.py", r"(open|rename) .*report\.md"),
        ),
        # The second completes an entry of the promotion log that the first left open.
        remedy=(("python", "pipelines/retrain.py"), ("convoy", "promote")),
    ),
)
