"""Parameters of Python as one MessagePack buffer.

Values of the plain types are encoded as they are. msgspec would also encode dates, decimals, UUIDs
and enums in its own way; a database must not accept what it cannot give back, so everything that is
not exactly a plain type goes through :func:`adapt` first, as in the standard library.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from nearlite.errors import ProgrammingError

# Types that are encoded as they are. A type that gets an adapter leaves the set.
PLAIN: Final[set[type]] = {int, str, float, bytes, bool, type(None)}

encode: Final = msgspec.msgpack.Encoder().encode

# (type, protocol) -> adapter, as the standard library keeps them.
adapters: dict[tuple[type, type], Callable[[Any], Any]] = {}


# Of warnings.warn: the program's line is named, however deep in here it is. (Before 3.12 nothing is warned of.)
OUTSIDE: Final[dict[str, Any]] = (
    {"skip_file_prefixes": (f"{Path(__file__).parent.parent}{os.sep}",)}
    if sys.version_info >= (3, 12)
    else {}
)

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_IMMUTABLE_TYPE: Final = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE


class PrepareProtocol:
    """The protocol that ``__conform__`` and adapters are asked for, PEP 246 style."""


def adapt(value: Any) -> Any:
    """What to store for a value that is not of a plain type.

    Registered adapters come first, then the object's ``__conform__``; without either the value itself is taken.
    """
    adapter = adapters.get((type(value), PrepareProtocol))
    if adapter is not None:
        return adapter(value)
    answer = asked(value, "__conform__", PrepareProtocol)
    return value if answer is None else answer


def asked(target: Any, method: str, argument: Any) -> Any:
    """What `__conform__` or `__adapt__` answers; None without it. A TypeError says: I cannot."""
    function = getattr(target, method, None)
    if function is None:
        return None
    try:
        return function(argument)
    except TypeError:
        return None


def storable(value: Any, position: int) -> Any:
    """A value of a plain type for `value`.

    Args:
      value: anything.
      position: number of the parameter, from 1, for the message.

    Raises:
      ProgrammingError: SQLite has no type for it.

    """
    if type(value) in PLAIN:
        return value
    value = adapt(value)
    if value is None:
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    try:
        view = memoryview(value)
    except TypeError:
        raise ProgrammingError(
            f"Error binding parameter {position}: type '{_type_name(value)}' is not supported"
        ) from None
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return bytes(view)


def _type_name(value: object) -> str:
    """The name of a type as CPython's C code knows it: with the module if it is written in C."""
    kind = type(value)
    immutable = not kind.__flags__ & _HEAP_TYPE or kind.__flags__ & _IMMUTABLE_TYPE
    if immutable and kind.__module__ != "builtins":
        return f"{kind.__module__}.{kind.__name__}"
    return kind.__name__


def values_of(parameters: Any, names: tuple[str | None, ...]) -> list[Any]:
    """The values in the order of the statement's parameters.

    Args:
      parameters: a sequence, or a mapping of names.
      names: the statement's parameters, None for a nameless one.

    Raises:
      ProgrammingError: neither a sequence nor a mapping, or a name is missing.

    """
    if isinstance(parameters, (tuple, list)) or (
        not isinstance(parameters, dict) and _is_sequence(parameters)
    ):
        _warn_about_names(names)
        # By index, not by iteration: __getitem__ and __len__ are all a sequence must have.
        return [storable(parameters[i], i + 1) for i in range(_length(parameters, names))]
    if isinstance(parameters, Mapping) or hasattr(parameters, "__getitem__"):
        return [_named(parameters, name, i + 1) for i, name in enumerate(names)]
    raise ProgrammingError("parameters are of unsupported type")


def _warn_about_names(names: tuple[str | None, ...]) -> None:
    """Since 3.12 the standard library warns of names that are given values by position."""
    if sys.version_info < (3, 12):
        return
    for i, name in enumerate(names):
        if name is not None and not name.isdigit():
            warnings.warn(
                f"Binding {i + 1} (':{name}') is a named parameter, but you supplied a sequence "
                "which requires nameless (qmark) placeholders. Starting with Python 3.14 an "
                "sqlite3.ProgrammingError will be raised.",
                DeprecationWarning,
                **OUTSIDE,
            )


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) or (
        hasattr(type(value), "__getitem__") and not hasattr(type(value), "keys")
    )


def _length(parameters: Any, names: tuple[str | None, ...]) -> int:
    n = len(parameters)
    if n != len(names):
        raise ProgrammingError(
            "Incorrect number of bindings supplied. The current statement uses "
            f"{len(names)}, and there are {n} supplied."
        )
    return n


def _named(parameters: Any, name: str | None, position: int) -> Any:
    if name is None:
        raise ProgrammingError(
            f"Binding {position} has no name, but you supplied a dictionary (which has only names)."
        )
    try:
        value = parameters[name]
    except LookupError:
        raise ProgrammingError(
            f"You did not supply a value for binding parameter :{name}."
        ) from None
    return storable(value, position)


def encode_one(parameters: Any, names: tuple[str | None, ...]) -> bytes:
    """One parameter set as MessagePack. `execute` tries the plain case itself first.

    Raises:
      ProgrammingError: as :func:`values_of` and :func:`storable`.
      OverflowError: an integer beyond 64 bits.

    """
    return encode_plain(values_of(parameters, names))


def encode_plain(values: Sequence[Any]) -> bytes:
    """Encode values of plain types."""
    try:
        return encode(values)
    except OverflowError:
        raise OverflowError("Python int too large to convert to SQLite INTEGER") from None


def encode_sets(sets: Sequence[Any]) -> bytes | None:
    """Many parameter sets of plain values as one MessagePack array of arrays; None: they have to be looked at one
    by one.
    """
    if {tuple, list}.issuperset(map(type, sets)) and PLAIN.issuperset(
        map(type, chain.from_iterable(sets))
    ):
        try:
            return encode(sets)
        except (OverflowError, UnicodeEncodeError):
            pass
    return None
