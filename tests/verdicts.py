"""What a judgement says, asked in a word."""

from convoy.gate.result import Criterion, Judgement


def said(judgement: Judgement) -> str:
    return "\n".join(judgement.reasons)


def breaches(judgement: Judgement) -> list[str]:
    return [one.name for one in judgement.criteria if one.held is False]


def criterion(judgement: Judgement, name: str) -> Criterion:
    return next(one for one in judgement.criteria if one.name == name)
