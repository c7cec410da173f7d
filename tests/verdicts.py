"""What a judgement says, asked in a word."""

from convoy.gate.result import Criterion, GateResult


def said(judgement: GateResult) -> str:
    return "\n".join(judgement.reasons)


def breaches(judgement: GateResult) -> list[str]:
    return [one.name for one in judgement.criteria if one.held is False]


def criterion(judgement: GateResult, name: str) -> Criterion:
    return next(one for one in judgement.criteria if one.name == name)
