"""The search space: which keys a sweep varies, in which ranges, each value valid where it will stand."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.sweep.settings import Range, SweepParams
from convoy.training.augment import policy
from convoy.training.settings import NetworkParams, TrainParams

SECTIONS: dict[str, type[params.Section]] = {"network": NetworkParams, "train": TrainParams}
"""The sections of params.yaml that decide a training, besides `seed`."""


@dataclass(frozen=True)
class Dimension:
    """Hold one key of the space: its flat name and Optuna's distribution, in which choices are YAML text."""

    key: str
    distribution: BaseDistribution

    def suggest(self, trial: optuna.Trial) -> Any:  # noqa: ANN401 (as wide as YAML)
        """Have the trial's sampler choose, and return the value for params.yaml."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return self.value(trial.suggest_categorical(self.key, kind.choices))
        if isinstance(kind, IntDistribution):
            return trial.suggest_int(self.key, kind.low, kind.high, step=kind.step, log=kind.log)
        if isinstance(kind, FloatDistribution):
            return trial.suggest_float(self.key, kind.low, kind.high, step=kind.step, log=kind.log)
        raise TypeError(kind)

    def value(self, stored: Any) -> Any:  # noqa: ANN401 (as wide as YAML)
        """Convert what Optuna stores into the value for params.yaml."""
        return yaml.load(stored) if isinstance(self.distribution, CategoricalDistribution) else stored

    def stored(self, value: Any) -> Any:  # noqa: ANN401 (as wide as YAML)
        """Convert a value into what Optuna stores; None where the space does not contain it."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return yaml.inline(value) if yaml.inline(value) in kind.choices else None
        numbers = (int,) if isinstance(kind, IntDistribution) else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers):
            return None
        return value if kind._contains(value) else None  # noqa: SLF001 (Optuna has no public test)

    def rounded(self, stored: Any) -> Any:  # noqa: ANN401 (as wide as YAML)
        """Shorten a number to the digits that matter: what is written down is what was tried."""
        kind = self.distribution
        if not isinstance(kind, FloatDistribution):
            return stored
        if kind.step is not None:
            return float(f"{stored:.10g}")
        largest = max(abs(kind.low), abs(kind.high))
        digits = 3 + round(math.log10(largest / (kind.high - kind.low)))
        return min(max(float(f"{stored:.{digits}g}"), kind.low), kind.high)

    def ends(self) -> tuple[Any, ...]:
        """List the choices, or the ends of the range."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return tuple(self.value(choice) for choice in kind.choices)
        return (kind.low, kind.high)  # type: ignore[attr-defined] # of both ranges

    def all(self) -> Sequence[Any] | None:
        """List everything that Optuna may store of this key; None for a continuous range."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return kind.choices
        if isinstance(kind, IntDistribution):
            return range(kind.low, kind.high + 1, kind.step)
        if isinstance(kind, FloatDistribution) and kind.step is not None:
            steps = round((kind.high - kind.low) / kind.step)
            return [float(f"{kind.low + step * kind.step:.10g}") for step in range(steps + 1)]
        return None

    def __str__(self) -> str:
        between = " | " if isinstance(self.distribution, CategoricalDistribution) else " to "
        return f"{self.key} {between.join(map(yaml.inline, self.ends()))}"


def dimensions(sweep: SweepParams, content: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Read the space, and check every choice and both ends of every range in `content`, all of params.yaml.

    Raises:
        RequestError: naming the key, and the values allowed or the nearest key.
    """
    for key in sweep.space:
        _check_key(key, content)
    space = tuple(_dimension(key, values, content) for key, values in sweep.space.items())
    for dimension in space:
        for value in dimension.ends():
            _check_value(dimension.key, value, content)
    return space


def combinations(space: Sequence[Dimension]) -> int | None:
    """Count the points of a space; None where a range is continuous."""
    listed = [dimension.all() for dimension in space]
    return None if None in listed else math.prod(len(values) for values in listed if values is not None)


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
    """Refuse a key that does not exist, or that a sweep cannot vary."""
    if key == "train.crop_padding":
        raise RequestError(
            f"sweep.space: {key} is now an argument in train.augment, whose choices are whole lists, such as "
            "train.augment: [[{shift: {pixels: 0}}], [{shift: {pixels: 4}}]]"
        )
    known = ["seed", *(leaf for name, kind in SECTIONS.items() for leaf in leaves(kind, name))]
    if key in known:
        return
    inside = [leaf for leaf in known if leaf.startswith(f"{key}.")]
    if inside:
        raise RequestError(f"sweep.space: {key} is a section. Name its keys: {', '.join(inside)}")
    elsewhere = params.flatten({name: item for name, item in content.items() if name not in SECTIONS})
    if key in elsewhere:
        why = (
            "needs another build/dataset, which a sweep does not make. Queue experiments instead, such as: "
            f"dvc exp run --queue -S {key}=…"
            if key.startswith("data.")
            else "does not change training, so a sweep cannot compare its values. Remove it from sweep.space."
        )
        raise RequestError(f"sweep.space: {key} {why}")
    raise RequestError(f"sweep.space: unknown key {key}{params.did_you_mean(key, known)}")


def _dimension(key: str, values: Range | list[Any], content: Mapping[str, Any]) -> Dimension:
    if isinstance(values, list):
        return Dimension(key, CategoricalDistribution([yaml.inline(value) for value in values]))
    numbers = (values.low, values.high, values.step or 1)
    if all(isinstance(number, int) for number in numbers) and not _takes(key, values.low + 0.5, content):
        low, high, step = map(int, numbers)
        return Dimension(key, IntDistribution(low, low + (high - low) // step * step, values.log, step))
    low_, high_ = float(values.low), float(values.high)
    if values.step is None:
        return Dimension(key, FloatDistribution(low_, high_, values.log))
    # Optuna would lower `high` to the last step with a warning.
    steps = math.floor((high_ - low_) / values.step + 1e-9)
    last = float(f"{low_ + steps * values.step:.10g}")
    return Dimension(key, FloatDistribution(low_, last, step=float(values.step)))


def _check_value(key: str, value: Any, content: Mapping[str, Any]) -> None:  # noqa: ANN401 (as wide as YAML)
    name = key.partition(".")[0]
    try:
        if name == "seed":
            params.check("", params.TopLevel, {"seed": value})
        else:
            checked = params.check(name, SECTIONS[name], yaml.replaced(content, {key: value})[name])
            if isinstance(checked, TrainParams) and "data" in content:
                image_px, store_px = (content["data"].get(key, 0) for key in ("image_px", "store_px"))
                policy.check(
                    checked.augment,
                    image_px=image_px,
                    store_px=store_px or image_px,
                    batch_size=checked.batch_size,
                )
    except RequestError as error:
        first, _, rest = str(error).partition("\n")
        why = rest.strip() or first
        raise RequestError(
            f"sweep.space: {why}. Give {key} other choices, or a range within those limits."
        ) from error


def _takes(key: str, value: float, content: Mapping[str, Any]) -> bool:
    try:
        _check_value(key, value, content)
    except RequestError:
        return False
    return True
