"""The values that a sweep may try: which keys, in which ranges, each valid where it will stand."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.sweep.settings import Range, SweepParams
from convoy.training.settings import NetworkParams, TrainParams

SECTIONS: dict[str, type[params.Section]] = {"network": NetworkParams, "train": TrainParams}
"""The sections of params.yaml that decide a training, besides `seed`."""

FINE = 1000
"""Steps that a range without `step` is rounded to, so that a value can be typed as it was tried."""


@dataclass(frozen=True)
class Dimension:
    """Hold one key of the space.

    Attributes:
        key: flat name, such as `train.lr`.
        distribution: Optuna's; choices that are no plain values stand in it as JSON.
        choices: the values themselves, where they are listed.
    """

    key: str
    distribution: BaseDistribution
    choices: tuple[Any, ...] = ()

    def value(self, stored: Any) -> Any:  # noqa: ANN401 (as wide as YAML)
        """Turn what Optuna keeps into the value for params.yaml."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.choices[int(self.distribution.to_internal_repr(stored))]
        return stored

    def stored(self, value: Any) -> Any:  # noqa: ANN401 (as wide as YAML)
        """Turn a value into what Optuna keeps; None where the space does not have it."""
        if self.choices:
            return _storable(value) if value in self.choices else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        kind = self.distribution
        if isinstance(kind, IntDistribution) and not float(value).is_integer():
            return None
        inside = kind._contains(value)  # noqa: SLF001 (Optuna has no public way to ask)
        return value if inside else None

    def rounded(self, stored: Any) -> Any:  # noqa: ANN401 (as wide as YAML)
        """Shorten a number between two that are as good: what is written down is what was tried."""
        kind = self.distribution
        if not isinstance(kind, FloatDistribution):
            return stored
        if kind.step is not None:
            return float(f"{stored:.10g}")
        if kind.log:
            digits = 3 if kind.high > 1.1 * kind.low else 6
            near = float(f"{stored:.{digits}g}")
        else:
            near = round(stored, max(0, math.ceil(-math.log10((kind.high - kind.low) / FINE))))
        return min(max(near, kind.low), kind.high)

    def ends(self) -> tuple[Any, ...]:
        """List the choices, or the ends of the range."""
        kind = self.distribution
        return self.choices or (kind.low, kind.high)  # type: ignore[attr-defined] # of both ranges

    def all(self) -> Sequence[Any] | None:
        """List everything that Optuna may keep of this key; None where that is without end."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return kind.choices
        if isinstance(kind, IntDistribution):
            return range(kind.low, kind.high + 1, kind.step)
        if isinstance(kind, FloatDistribution) and kind.step is not None:
            return [float(f"{kind.low + turn * kind.step:.10g}") for turn in range(_steps(kind) + 1)]
        return None


def dimensions(sweep: SweepParams, content: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Read the space, and check every choice and both ends of every range where they would stand.

    Args:
        sweep: the section.
        content: all of params.yaml.

    Raises:
        RequestError: naming the key, and the values allowed or the nearest key.
    """
    for key in sweep.space:
        _check_key(key, content)
    found = tuple(_dimension(key, values, content) for key, values in sweep.space.items())
    for one in found:
        for value in one.ends():
            _check_value(one.key, value, content)
    return found


def describe(values: Mapping[str, Any]) -> str:
    """Name values by the last words of their keys, such as `lr 0.02 · batch_size 32`."""
    return " · ".join(f"{key.rpartition('.')[2]} {yaml.inline(value)}" for key, value in values.items())


def leaves(kind: type[params.Section], prefix: str) -> Iterator[str]:
    """List the keys of a section that hold values, by their flat names."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, params.Section):
            yield from leaves(inner, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def _check_key(key: str, content: Mapping[str, Any]) -> None:
    """Refuse a key that is none, or that a sweep cannot vary."""
    known = ["seed", *(leaf for name, kind in SECTIONS.items() for leaf in leaves(kind, name))]
    if key in known:
        return
    inside = [one for one in known if one.startswith(f"{key}.")]
    if inside:
        raise RequestError(f"sweep.space: {key} is a section. Name its keys: {', '.join(inside)}")
    elsewhere = params.flatten({name: item for name, item in content.items() if name not in SECTIONS})
    if key in elsewhere:
        why = (
            "needs another build/dataset, which a sweep does not make. Queue experiments instead, such as: "
            f"dvc exp run --queue -S {key}=…"
            if key.startswith("data.")
            else "changes no training, which is what a sweep repeats. Take it out of sweep.space."
        )
        raise RequestError(f"sweep.space: {key} {why}")
    raise RequestError(f"sweep.space: unknown key {key}{params.did_you_mean(key, known)}")


def _dimension(key: str, values: Range | list[Any], content: Mapping[str, Any]) -> Dimension:
    if isinstance(values, list):
        return Dimension(key, CategoricalDistribution([_storable(one) for one in values]), tuple(values))
    numbers = (values.low, values.high, values.step or 1)
    if all(isinstance(number, int) for number in numbers) and not _takes(key, values.low + 0.5, content):
        low, high, step = map(int, numbers)
        return Dimension(key, IntDistribution(low, low + (high - low) // step * step, values.log, step))
    low_, high_ = float(values.low), float(values.high)
    if values.step is None:
        return Dimension(key, FloatDistribution(low_, high_, values.log))
    # Optuna lowers `high` to the last step, and warns of it; here it is done beforehand.
    steps = math.floor((high_ - low_) / values.step + 1e-9)
    last = float(f"{low_ + steps * values.step:.10g}")
    return Dimension(key, FloatDistribution(low_, last, step=float(values.step)))


def _check_value(key: str, value: Any, content: Mapping[str, Any]) -> None:  # noqa: ANN401 (as wide as YAML)
    changed = yaml.replaced(content, {key: value})
    try:
        if key == "seed":
            params.check("", params.TopLevel, {"seed": value})
        else:
            name = key.partition(".")[0]
            params.check(name, SECTIONS[name], changed[name])
    except RequestError as error:
        why = str(error).partition("\n")[2].strip()
        raise RequestError(
            f"sweep.space: {why}. Give {key} other choices, or a range inside that."
        ) from error


def _takes(key: str, value: float, content: Mapping[str, Any]) -> bool:
    try:
        _check_value(key, value, content)
    except RequestError:
        return False
    return True


def _storable(value: Any) -> Any:  # noqa: ANN401 (as wide as YAML)
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _steps(kind: FloatDistribution) -> int:
    return round((kind.high - kind.low) / (kind.step or 1))
