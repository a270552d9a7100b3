"""Seconds as programs give them: checked where they are given, and never longer than can be waited."""

from __future__ import annotations

from typing import Final

from nearlite.errors import ProgrammingError

LONGEST: Final = 2_000_000.0
"""Seconds, 23 days: poll() and SQLite's busy handler count milliseconds in an int."""


def duration(name: str, value: object, *, zero: bool = False) -> float:
    """A number of seconds; infinity, and whatever else is longer than can be waited, is LONGEST.

    Args:
      name: of the parameter, for the error.
      zero: 0 is a duration, too: whoever waits that long has a look.

    Raises:
      ProgrammingError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (value > 0 or (zero and value == 0)):  # type: ignore[operator]
        return float(min(value, LONGEST))  # type: ignore[call-overload]
    least = "from 0 on" if zero else "above 0"
    raise ProgrammingError(f"{name} is a number of seconds {least}, not {value!r}")


def busy_ms(timeout: float) -> int:
    """`timeout` as of ``sqlite3.connect`` in milliseconds; what is below 0 is 0, as there.

    Raises:
      ProgrammingError: it is not a number.
    """
    if timeout != timeout:  # NaN alone; an int too large for isnan() is not
        raise ProgrammingError("timeout is a number of seconds, not nan")
    return int(1000 * min(max(timeout, 0.0), LONGEST))
