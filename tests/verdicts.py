"""Look up parts of a verdict."""

from convoy.gate.result import Criterion, GateResult


def breaches(result: GateResult) -> list[str]:
    return [criterion.name for criterion in result.breaches]


def criterion(result: GateResult, name: str) -> Criterion:
    return next(criterion for criterion in result.criteria if criterion.name == name)
