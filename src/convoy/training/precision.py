"""Choose the numbers to train in: bf16 halves the time where the processor computes in it, and only there."""

from typing import Literal, NamedTuple

import torch

from convoy.training.settings import Precision


class Choice(NamedTuple):
    """Hold Lightning's name of a precision, and why it was taken."""

    lightning: Literal["32-true", "bf16-mixed"]
    why: str


def choose(wanted: Precision) -> Choice:
    """Take what was asked for, or, for `auto`, bf16 where the device that Lightning will use has it.

    bf16 here means that convolutions and dense layers compute in it while weights,
    normalisation and loss stay in float32.
    """
    if wanted == 32:
        return Choice("32-true", "float32, as train.precision says")
    native, where = _native()
    if wanted == "bf16":
        slow = "" if native else f"; {where}, so this is slow"
        return Choice("bf16-mixed", f"bf16, as train.precision says{slow}")
    return Choice("bf16-mixed", f"bf16: {where}") if native else Choice("32-true", f"float32: {where}")


def _native() -> tuple[bool, str]:
    """Say whether the device computes in bf16 itself, and which device that is."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"{torch.cuda.get_device_name()} {_has(native)} it"
    if torch.backends.mps.is_available():
        return False, "on Apple's GPU it gains nothing"
    # Every processor with AMX tiles has AVX-512 BF16 too. Without it oneDNN widens each operand to float32.
    native = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 (the only form that torch 2.11 has)
    return native, f"this processor {_has(native)} AVX-512 BF16"


def _has(native: bool) -> str:  # noqa: FBT001
    return "has" if native else "does not have"
