"""Values of Python that SQLite has no type for: adapters on the way in, converters on the way out."""

from __future__ import annotations

import datetime
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

from msgspec.msgpack import Ext

from nearlite._native.database import real_text
from nearlite.dbapi.binding import OUTSIDE, PLAIN, PrepareProtocol, adapters, asked
from nearlite.dbapi.cursor import Result
from nearlite.errors import ProgrammingError

PARSE_DECLTYPES: Final = 1
PARSE_COLNAMES: Final = 2

# Name of a declared type, in capitals -> converter of its bytes.
converters: dict[str, Callable[[bytes], Any]] = {}

Converter = Callable[[Any], Any]


def register_adapter(type_: type, adapter: Callable[[Any], Any], /) -> None:
    """Store values of `type_` as `adapter` makes them."""
    adapters[type_, PrepareProtocol] = adapter
    PLAIN.discard(type_)


def register_converter(typename: str, converter: Callable[[bytes], Any], /) -> None:
    """Convert values of columns declared as `typename` (see ``detect_types``)."""
    converters[typename.upper()] = converter


def adapt(value: Any, protocol: Any = PrepareProtocol, alternate: Any = None, /) -> Any:
    """What `value` would be stored as.

    Raises:
      ProgrammingError: there is no adapter, and no `alternate` was given.

    """
    adapter = adapters.get((type(value), protocol))
    if adapter is not None:
        return adapter(value)
    answer = asked(protocol, "__adapt__", value)
    if answer is None:
        answer = asked(value, "__conform__", protocol)
    if answer is not None:
        return answer
    if alternate is not None:
        return alternate
    raise ProgrammingError("can't adapt")


# ---------------------------------------------------------------- rows out


def description(columns: tuple[str, ...], detect_types: int) -> tuple[tuple[Any, ...], ...]:
    """PEP 249's description. With PARSE_COLNAMES the converter's name is no part of a name."""
    names = columns
    if detect_types & PARSE_COLNAMES:
        names = tuple(_without_type(name) for name in columns)
    return tuple((name, None, None, None, None, None, None) for name in names)


def _without_type(name: str) -> str:
    cut = name.find("[")
    if cut < 0:
        return name
    return name[: cut - 1] if cut > 0 and name[cut - 1] == " " else name[:cut]


def finisher(
    statement: Result, detect_types: int, text_factory: Any
) -> Callable[[tuple[Any, ...]], tuple[Any, ...]] | None:
    """What applies every column's converter and text_factory to a row; None: rows are as they are."""
    casts = _casts(statement, detect_types)
    if not any(casts):
        casts = ()
    if text_factory is str or text_factory is bytes:
        if not casts:
            return None
        text = None
    else:
        text = text_factory

    def finish(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            _value(value, casts[i] if i < len(casts) else None, text) for i, value in enumerate(row)
        )

    return finish


def _value(value: Any, cast: Converter | None, factory: Any) -> Any:
    if cast is not None:
        # An empty value is None, as in the standard library (SQLite has no address for it).
        if value is None:
            return None
        text = _as_bytes(value)
        return cast(text) if text else None
    if type(value) is Ext:
        return factory(bytes(value.data))
    return value


def _as_bytes(value: Any) -> bytes:
    """A value as the text that SQLite would make of it: what a converter is given."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Ext):
        return bytes(value.data)
    if isinstance(value, float):
        return real_text(value)
    return str(value).encode()


def _casts(statement: Result, detect_types: int) -> tuple[Converter | None, ...]:
    casts: list[Converter | None] = [None] * len(statement.columns)
    if detect_types & PARSE_DECLTYPES:
        for i, declared in enumerate(statement.decltypes):
            if declared is not None:
                casts[i] = converters.get(declared.split("(")[0].split(" ")[0].upper())
    if detect_types & PARSE_COLNAMES:
        for i, name in enumerate(statement.columns):
            start, end = name.rfind("["), name.rfind("]")
            if 0 <= start < end:
                casts[i] = converters.get(name[start + 1 : end].upper()) or casts[i]
    return tuple(casts)


# ---------------------------------------------------------------- dates, as the standard library has them


def _warn(what: str) -> None:
    if sys.version_info >= (3, 12):
        warnings.warn(
            f"The default {what} is deprecated as of Python 3.12; see the sqlite3 documentation "
            "for suggested replacement recipes",
            DeprecationWarning,
            **OUTSIDE,
        )


def _adapt_date(value: datetime.date) -> str:
    _warn("date adapter")
    return value.isoformat()


def _adapt_datetime(value: datetime.datetime) -> str:
    _warn("datetime adapter")
    return value.isoformat(" ")


def _convert_date(value: bytes) -> datetime.date:
    _warn("date converter")
    return datetime.date(*map(int, value.split(b"-")))


def _convert_timestamp(value: bytes) -> datetime.datetime:
    _warn("timestamp converter")
    date, clock = value.split(b" ")
    whole, _, fraction = clock.partition(b".")
    year, month, day = map(int, date.split(b"-"))
    hour, minute, second = map(int, whole.split(b":"))
    micro = int(f"{fraction.decode():0<6.6}") if fraction else 0
    # Naive, as it was stored.
    return datetime.datetime(year, month, day, hour, minute, second, micro)  # noqa: DTZ001


register_adapter(datetime.date, _adapt_date)
register_adapter(datetime.datetime, _adapt_datetime)
register_converter("date", _convert_date)
register_converter("timestamp", _convert_timestamp)
