"""Read the pickles of published arrays, such as CIFAR's, without executing what they say.

Python's own unpickler calls what a pickle names. This reader knows the opcodes for dictionaries, lists, tuples, numbers,
text, bytes and numpy's arrays, and refuses every other opcode and every other name. Its time and memory are proportional to
the file: nothing is allocated for a size that is only declared. Opcodes: Python's `pickletools`.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.core.errors import DataError

MAX_OPCODES = 1_000_000
"""Most opcodes of a file: CIFAR-100's training batch has 300,000."""

ARRAY = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"})
NAMES = ARRAY | {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}
"""Names that numpy's arrays need: `_codecs.encode` holds bytes that Python 3 wrote for Python 2."""

DTYPES = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"})

NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H"}
BYTES = {b"T": "<I", b"U": "<B", b"B": "<I", b"C": "<B", b"\x8e": "<Q"}
TEXTS = {b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q"}
PUTS = {b"q": "<B", b"r": "<I"}
GETS = {b"h": "<B", b"j": "<I"}
SKIPPED = {b"\x80": 1, b"\x95": 8}  # the protocol; the length of a frame
CONSTANTS: Mapping[bytes, Callable[[], Any]] = {
    b"N": lambda: None,
    b"\x88": lambda: True,
    b"\x89": lambda: False,
    b"}": dict,
    b"]": list,
    b")": tuple,
}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


class _Name(str):
    """A name that the pickle imports."""

    __slots__ = ()


class _Dtype:
    """A dtype between its name and its byte order."""

    def __init__(self, code: str) -> None:
        self.code = code


class _Array:
    """An array between its construction and its content."""

    value: npt.NDArray[Any] | None = None


def load(content: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of numbers, texts, lists and arrays.

    Returns:
        Its entries; keys as text, and bytes as they are.

    Raises:
        DataError: it names anything but numpy's arrays, is damaged, or is no dictionary; the reason only.
    """
    try:
        found = _Reader(content).read()
    except (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError("is a damaged or truncated pickle") from error
    if not isinstance(found, dict):
        raise DataError(f"is a pickle of a {type(found).__name__}, not of a dictionary")
    entries: dict[str, Any] = {}
    for key, value in found.items():
        entries[_text(key)] = value.value if isinstance(value, _Array) else value
    return entries


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:  # noqa: ANN401 (a pickle holds anything)
        actions: dict[bytes, Callable[[], None]] = {
            b"(": self._mark,
            b"a": self._append,
            b"e": self._appends,
            b"s": self._set_item,
            b"u": self._set_items,
            b"t": self._tuple,
            b"c": self._import,
            b"\x93": self._import_from_stack,
            b"\x94": self._memoize,
            b"R": self._call,
            b"b": self._build,
            b"\x8a": self._long,
        }
        for _ in range(MAX_OPCODES):
            code = self._take(1)
            if code == b".":
                return self.stack.pop()
            if action := actions.get(code):
                action()
            else:
                self._simple(code)
        raise DataError(f"is a pickle of more than {MAX_OPCODES:,} opcodes")

    def _simple(self, code: bytes) -> None:
        """Run an opcode that needs no method of its own."""
        if code in NUMBERS:
            self.stack.append(self._number(NUMBERS[code]))
        elif code in BYTES:
            self.stack.append(self._take(self._number(BYTES[code])))
        elif code in TEXTS:
            self.stack.append(self._take(self._number(TEXTS[code])).decode())
        elif code in PUTS:
            self.memo[self._number(PUTS[code])] = self.stack[-1]
        elif code in GETS:
            self.stack.append(self.memo[self._number(GETS[code])])
        elif code in CONSTANTS:
            self.stack.append(CONSTANTS[code]())
        elif code in TUPLES:
            count = TUPLES[code]
            if len(self.stack) < count:
                raise IndexError
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif code in SKIPPED:
            self._take(SKIPPED[code])
        else:
            raise DataError(
                f"is a pickle with the opcode {code!r}; only dictionaries, lists and numpy arrays are read"
            )

    def _take(self, size: int) -> bytes:
        piece = self.content[self.at : self.at + size]
        if len(piece) < size:
            raise IndexError
        self.at += size
        return piece

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _long(self) -> None:
        self.stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _marked(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _append(self) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._marked()
        self._top(list).extend(values)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict)[_text(key)] = value

    def _set_items(self) -> None:
        values = self._marked()
        target = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_text(key)] = value

    def _top(self, kind: type) -> Any:  # noqa: ANN401 (a list or a dictionary)
        if type(self.stack[-1]) is not kind:
            raise TypeError
        return self.stack[-1]

    def _tuple(self) -> None:
        self.stack.append(tuple(self._marked()))

    def _memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _import(self) -> None:
        end = self.content.index(b"\n", self.content.index(b"\n", self.at) + 1)
        module, name = self._take(end - self.at).decode().split("\n")
        self._take(1)
        self._push_name(f"{module}.{name}")

    def _import_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(f"{_text(module)}.{_text(name)}")

    def _push_name(self, name: str) -> None:
        if name not in NAMES:
            raise DataError(
                f"is a pickle that runs `{name[:100]}`: it could run any program. Nothing of it was run; only "
                "dictionaries, lists and numpy arrays are read"
            )
        self.stack.append(_Name(name))

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or type(arguments) is not tuple:
            raise TypeError
        if function in ARRAY:
            self.stack.append(_Array())
        elif function == "numpy.dtype":
            code = _text(arguments[0])
            if code not in DTYPES:
                raise DataError(f"holds an array of dtype `{code[:20]}`; only whole numbers are read")
            self.stack.append(_Dtype(code))
        elif function == "_codecs.encode" and arguments[1:] == ("latin1",):
            self.stack.append(arguments[0].encode("latin1"))
        else:
            raise TypeError

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            order = _text(state[1])
            if order not in ("<", ">", "|", "="):
                raise ValueError
            target.code = ("" if order in "|=" else order) + target.code
            return
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(target, _Array) or not isinstance(dtype, _Dtype) or type(raw) is not bytes:
            raise TypeError
        flat = np.frombuffer(raw, np.dtype(dtype.code))
        if (
            any(type(size) is not int or size < 0 for size in shape)
            or np.prod(shape, dtype=object) != flat.size
        ):
            raise DataError(
                f"holds an array that declares the shape {str(shape)[:100]} and has {flat.size:,} elements"
            )
        target.value = flat.reshape(shape, order="F" if is_fortran else "C")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if type(value) is not str:
        raise TypeError
    return value
