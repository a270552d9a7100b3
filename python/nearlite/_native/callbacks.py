"""What SQLite calls while it runs: functions, aggregates, collations and hooks of the program.

C calls one of the static functions below with the number of a :class:`Callback`. The numbers lead to weak
references: a callback belongs to its connection, so that a function which refers to the connection is
garbage together with it. What is called in one go is measured in tens of nanoseconds: the plain cases are
written out.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final

import msgspec

from nearlite import errors
from nearlite._native._lib import ffi, lib

SCALAR: Final[int] = lib.NL_FUNCTION_SCALAR
AGGREGATE: Final[int] = lib.NL_FUNCTION_AGGREGATE
WINDOW: Final[int] = lib.NL_FUNCTION_WINDOW

_BASE: Final[int] = -(2**63)
_NULL: Final[int] = _BASE + lib.NL_ANSWER_NULL
_PUT: Final[int] = _BASE + lib.NL_ANSWER_PUT
_RAISED: Final[int] = _BASE + lib.NL_ANSWER_RAISED
_NOMEM: Final[int] = _BASE + lib.NL_ANSWER_NOMEM
_TOO_BIG: Final[int] = _BASE + lib.NL_ANSWER_TOO_BIG
_CARRY: Final[int] = _BASE + lib.NL_ANSWER_CARRY
_UNDEFINED: Final[int] = _BASE + lib.NL_ANSWER_UNDEFINED
_NO_GROUP: Final[int] = _BASE + lib.NL_ANSWER_NO_GROUP
_LOW: Final[int] = _BASE + lib.NL_ANSWERS - 1  # integers between these are their own answers
_HIGH: Final[int] = 2**63

_STEP: Final[int] = lib.NL_GROUP_STEP
_INVERSE: Final[int] = lib.NL_GROUP_INVERSE
_VALUE: Final[int] = lib.NL_GROUP_VALUE

_DENY: Final[int] = 1  # SQLITE_DENY

_decode: Final[Callable[[Any], list[Any]]] = msgspec.msgpack.Decoder(list).decode
_decode_raw: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode

# The type of what sys.unraisablehook is given has no name of its own.
_UnraisableArgs: Final[Any] = next(
    (kind for kind in tuple.__subclasses__() if kind.__name__ == "UnraisableHookArgs"), None
)

carried: Final[dict[int, BaseException]] = {}
"""Exceptions that a call of C has to be ended by, by thread: of signal handlers, and of callbacks."""

_tracebacks = False


def show_tracebacks(show: bool) -> None:
    """Whether exceptions in callbacks are told to ``sys.unraisablehook``, for the whole process."""
    global _tracebacks  # noqa: PLW0603 - the standard library's switch is the module's, too
    _tracebacks = show


def _died(number: int, _reference: object) -> None:
    """It went with its connection, which nobody closed."""
    if _live is not None:  # the interpreter may be ending
        _live.pop(number, None)


class Callback:
    """One function of the program, as long as SQLite may call it.

    Attributes:
      function: the program's callable.
      area: where C puts arguments.
      groups: instances of an aggregate class, by number.
    """

    __slots__ = ("__weakref__", "_owned", "area", "function", "groups", "number")

    def __init__(self, function: Any, area: Any, owned: dict[int, Callback]) -> None:
        self.function = function
        self.area = area
        self.groups: dict[int, Any] = {}
        self._owned = owned
        self.number = next(_numbers)
        owned[self.number] = self
        _live[self.number] = weakref.ref(self, partial(_died, self.number))

    def described(self) -> Any:
        """An ``nl_callable *``."""
        if not _DIRECT:
            return ffi.new("nl_callable *", {"id": self.number})
        return ffi.new("nl_callable *", (self.number, id(self), id(self.function), id(self.groups)))

    def forget(self) -> None:
        """Nothing calls it any more."""
        _live.pop(self.number, None)
        self._owned.pop(self.number, None)


# Where id() is an address, C may call functions without the trampolines below.
_DIRECT: Final = sys.implementation.name == "cpython"
_numbers: Final = count(1)
_live: Final[dict[int, weakref.ref[Callback]]] = {}


class Callbacks:
    """What one connection has been given to call.

    Args:
      db: its ``nl_db *``.
      err: where its failures are told.

    The methods answer SQLite's result code, 0 for success; REFUSED: the connection cannot be used now, and
    `err` says why. A function of None takes away what was there.
    """

    __slots__ = ("_area", "_authorizer", "_db", "_err", "_owned", "_progress", "_trace")

    def __init__(self, db: Any, err: Any) -> None:
        area = lib.nl_db_call_area(db)
        if area == ffi.NULL:
            raise MemoryError
        self._area = ffi.buffer(area, lib.NL_CALL_AREA)
        self._db = db
        self._err = err
        self._owned: dict[int, Callback] = {}
        self._authorizer: Callback | None = None
        self._progress: Callback | None = None
        self._trace: Callback | None = None

    def end(self) -> None:
        """Give up the hooks: the connection is closed. SQLite has told what became of the rest."""
        for hook in (self._authorizer, self._progress, self._trace):
            if hook is not None:
                hook.forget()
        self._authorizer = self._progress = self._trace = None

    def __len__(self) -> int:
        """How many callables SQLite may call."""
        return len(self._owned)

    def _new(self, function: Any) -> Callback | None:
        return None if function is None else Callback(function, self._area, self._owned)

    def create_function(
        self, name: bytes, arguments: int, function: Any, kind: int, *, deterministic: bool = False
    ) -> int:
        """Define a function, or with `kind` an aggregate or window function by its class."""
        new = self._new(function)
        what = ffi.NULL if new is None else new.described()
        rc = int(
            lib.nl_db_create_function(
                self._db, name, arguments, kind, deterministic, what, self._err
            )
        )
        if rc == REFUSED and new is not None:
            new.forget()
        return rc

    def create_collation(self, name: bytes, function: Any) -> int:
        """Define a collation by its comparison of two strings."""
        new = self._new(function)
        what = ffi.NULL if new is None else new.described()
        rc = int(lib.nl_db_create_collation(self._db, name, what, self._err))
        if rc == REFUSED and new is not None:
            new.forget()
        return rc

    def set_authorizer(self, function: Any) -> int:
        """Whom to ask about each action while statements are compiled."""
        new = self._new(function)
        rc = int(lib.nl_db_set_authorizer(self._db, 0 if new is None else new.number, self._err))
        old, self._authorizer = (self._authorizer, new) if rc == 0 else (new, self._authorizer)
        if old is not None:
            old.forget()
        return rc

    def set_progress(self, function: Any, steps: int) -> int:
        """What to call every so many steps of SQLite's virtual machine."""
        new = self._new(function if steps > 0 else None)
        number = 0 if new is None else new.number
        rc = int(lib.nl_db_set_progress(self._db, number, steps, self._err))
        old, self._progress = (self._progress, new) if rc == 0 else (new, self._progress)
        if old is not None:
            old.forget()
        return rc

    @property
    def traces(self) -> bool:
        """Whether somebody wants to hear of each statement that is run."""
        return self._trace is not None

    def set_trace(self, function: Any) -> int:
        """What to tell of each statement that is run."""
        new = self._new(function)
        rc = int(lib.nl_db_set_trace(self._db, 0 if new is None else new.number, self._err))
        old, self._trace = (self._trace, new) if rc == 0 else (new, self._trace)
        if old is not None:
            old.forget()
        return rc


REFUSED: Final[int] = lib.NL_CALLS_REFUSED

# ---------------------------------------------------------------- arguments and results


def _elsewhere(n: int) -> Any:
    """Arguments that do not lie in the connection's area: -n bytes."""
    return ffi.buffer(lib.nl_call_args(), -n)


def _undecodable(data: bytes) -> Exception:
    """What decoding arguments failed with, as the standard library would have it."""
    for raw in _decode_raw(data):
        value = bytes(raw)
        if value[0] in (0xD9, 0xDA, 0xDB) or value[0] & 0xE0 == 0xA0:
            head = 1 if value[0] < 0xC0 else 1 + (1, 2, 4)[value[0] - 0xD9]
            try:
                value[head:].decode()
            except UnicodeDecodeError as error:
                return error
    return MemoryError()


def _arguments(callback: Callback, n: int) -> list[Any]:
    data = callback.area[:n] if n >= 0 else _elsewhere(n)
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _undecodable(bytes(data)) from None


def _answer(result: Any) -> int:
    """Give C a result that is not simply an integer."""
    if result is None:
        return _NULL
    if isinstance(result, int):
        value = int.__index__(result)
        if _LOW < value < _HIGH:
            return value
        if not _BASE <= value < _HIGH:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        lib.nl_result_int(value)
    elif isinstance(result, float):
        lib.nl_result_float(result)
    elif isinstance(result, str):
        data = str.encode(result)
        lib.nl_result_text(data, len(data))
    else:
        try:
            view = memoryview(result)
        except TypeError:
            raise errors.ProgrammingError(
                f"User-defined functions cannot return '{type(result).__name__}' values to SQLite"
            ) from None
        if not view.c_contiguous:
            raise BufferError("memoryview: underlying buffer is not C-contiguous")
        data = bytes(view)
        lib.nl_result_blob(data, len(data))
    return _PUT


def _show(function: Any, error: BaseException) -> None:
    """Tell sys.unraisablehook, if the program wants that; the traceback begins with its own function."""
    if not _tracebacks:
        return
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    error = error.with_traceback(trace)
    hook = sys.unraisablehook
    try:
        hook(_UnraisableArgs((type(error), error, trace, None, function)))
    except BaseException as failure:  # noqa: BLE001 - as the interpreter itself
        if hook is not sys.__unraisablehook__:
            sys.__unraisablehook__(
                _UnraisableArgs((type(failure), failure, failure.__traceback__, None, hook))
            )


def _keep(error: BaseException) -> int:
    carried[threading.get_ident()] = error
    return _CARRY


def _failed(callback: Callback | None, error: BaseException) -> int:
    """The answer for an exception in a callback."""
    if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit: not for SQLite to swallow
        return _keep(error)
    _show(None if callback is None else callback.function, error)
    if isinstance(error, MemoryError):
        return _NOMEM
    return _TOO_BIG if isinstance(error, OverflowError) else _RAISED


def _judge(callback: Callback, result: Any) -> int:
    """The answer for what a function returned to C directly."""
    try:
        return _answer(result)
    except BaseException as error:  # noqa: BLE001
        return _failed(callback, error)


def _kept(_callback: Callback, error: BaseException) -> int:
    """The answer for an exception in a collation."""
    return _keep(error)


def _interrupted(_kind: Any, value: BaseException, _trace: Any) -> int:
    """A signal handler raised before the function below had begun, or when it had ended."""
    return _failed(None, value)


# ---------------------------------------------------------------- what C calls


@ffi.def_extern(name="nl_on_call", error=_RAISED, onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_call(number: int, n: int) -> int:
    callback = _live[number]()
    try:
        result = callback.function(*_decode(callback.area[:n] if n >= 0 else _elsewhere(n)))  # type: ignore[union-attr]
        if type(result) is int and _LOW < result < _HIGH:
            return result
        return _answer(result)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _failed_to_decode(callback, n, error)
    except BaseException as error:  # noqa: BLE001 - nothing may get into C
        return _failed(callback, error)


def _failed_to_decode(callback: Any, n: int, error: Exception) -> int:
    """It may have been the program's function that decoded something."""
    try:
        _arguments(callback, n)
    except Exception as own:  # noqa: BLE001
        return _failed(callback, own)
    return _failed(callback, error)


@ffi.def_extern(name="nl_on_call_int", error=_RAISED, onerror=_interrupted)  # type: ignore[untyped-decorator]
@ffi.def_extern(name="nl_on_call_float", error=_RAISED, onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_call_number(number: int, value: float) -> int:
    callback = _live[number]()
    try:
        result = callback.function(value)  # type: ignore[union-attr]
        if type(result) is int and _LOW < result < _HIGH:
            return result
        return _answer(result)
    except BaseException as error:  # noqa: BLE001
        return _failed(callback, error)


@ffi.def_extern(name="nl_on_group", error=_RAISED, onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_group(number: int, group: int, what: int, n: int) -> int:
    callback = _live[number]()
    try:
        groups = callback.groups  # type: ignore[union-attr]
        if what in (_STEP, _INVERSE):
            instance = groups.get(group)
            if instance is None:
                return _first_step(callback, group, n)  # type: ignore[arg-type]
            return _take(callback, instance, what, n)  # type: ignore[arg-type]
        instance = groups.get(group) if what == _VALUE else groups.pop(group, None)
        if instance is None:  # it could not be made
            return _NULL
        return _answer((instance.value if what == _VALUE else instance.finalize)())
    except BaseException as error:  # noqa: BLE001
        answer = _failed(callback, error)
        # For rows, what the method itself raised was seen to in _take.
        missing = what in (_STEP, _INVERSE) or isinstance(error, AttributeError)
        return _UNDEFINED if missing and answer == _RAISED else answer


def _first_step(callback: Callback, group: int, n: int) -> int:
    try:
        instance = callback.function()
    except BaseException as error:  # noqa: BLE001
        answer = _failed(callback, error)
        return _NO_GROUP if answer == _RAISED else answer
    callback.groups[group] = instance
    return _take(callback, instance, _STEP, n)


def _take(callback: Callback, instance: Any, what: int, n: int) -> int:
    """A row for a group, or away from it."""
    method = instance.step if what == _STEP else instance.inverse  # AttributeError: not defined
    try:
        method(*_arguments(callback, n))
    except BaseException as error:  # noqa: BLE001
        return _failed(callback, error)
    return _NULL


@ffi.def_extern(name="nl_on_compare", error=_CARRY, onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_compare(number: int, n: int) -> int:
    callback = _live[number]()
    try:
        result = callback.function(*_arguments(callback, n))  # type: ignore[union-attr,arg-type]
    except BaseException as error:  # noqa: BLE001 - whatever it is, the statement ends with it
        return _keep(error)
    try:
        order = int.__index__(result) if isinstance(result, int) else result.__index__()
        return 1 if order > 0 else -1 if order < 0 else 0
    except Exception:  # noqa: BLE001 - as the standard library: equal
        return 0


@ffi.def_extern(name="nl_on_authorize", error=_RAISED, onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_authorize(number: int, n: int) -> int:
    callback = _live[number]()
    try:
        result = callback.function(*_arguments(callback, n))  # type: ignore[union-attr,arg-type]
        if not isinstance(result, int):
            return _DENY
        answer = int.__index__(result)
        if not -(2**31) <= answer < 2**31:
            raise OverflowError("Python int too large to convert to C int")
        return answer
    except BaseException as error:  # noqa: BLE001
        return _failed(callback, error)


@ffi.def_extern(name="nl_on_progress", error=_RAISED, onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_progress(number: int) -> int:
    callback = _live[number]()
    try:
        return 1 if callback.function() else 0  # type: ignore[union-attr]
    except BaseException as error:  # noqa: BLE001
        return _failed(callback, error)


@ffi.def_extern(name="nl_on_trace", error=_RAISED, onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_trace(number: int, n: int) -> int:
    callback = _live[number]()
    try:
        too_long, text = _arguments(callback, n)  # type: ignore[arg-type]
        if too_long:
            _show(
                callback.function,  # type: ignore[union-attr]
                errors.DataError("Expanded SQL string exceeds the maximum string length"),
            )
        callback.function(text)  # type: ignore[union-attr]
    except BaseException as error:  # noqa: BLE001
        return _failed(callback, error)
    return _NULL


@ffi.def_extern(name="nl_on_forget", onerror=_interrupted)  # type: ignore[untyped-decorator]
def _on_forget(number: int) -> None:
    reference = _live.pop(number, None)
    callback = None if reference is None else reference()
    if callback is not None:
        callback.forget()


_trampolines: Final = ffi.new(
    "nl_trampolines *",
    {name: getattr(lib, f"nl_on_{name}") for name, _ in ffi.typeof("nl_trampolines").fields},
)
lib.nl_set_trampolines(_trampolines)
if _DIRECT:
    lib.nl_set_direct(id(_judge), id(_failed), id(_kept))
# Other threads may still be in SQLite when the interpreter ends: they must not come back into it.
atexit.register(lib.nl_callbacks_end)
