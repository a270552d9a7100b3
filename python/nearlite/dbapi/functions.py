"""What a program gives a connection to call: functions, aggregates, collations and hooks."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import index
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from nearlite._native.callbacks import AGGREGATE, REFUSED, SCALAR, WINDOW, Callbacks
from nearlite._native.callbacks import show_tracebacks as _show_tracebacks
from nearlite._native.database import Database
from nearlite.dbapi.binding import OUTSIDE
from nearlite.errors import OperationalError, ProgrammingError

if TYPE_CHECKING:
    from typing import Protocol, SupportsIndex, TypeAlias

    SqliteData: TypeAlias = str | bytes | bytearray | memoryview | int | float | None
    """What a function of a program may answer; any other contiguous buffer is taken, too."""

    class Aggregate(Protocol):
        """An instance collects the rows of one group."""

        @property
        def step(
            self,
        ) -> Callable[..., object]: ...  # a method takes as many arguments as the function
        def finalize(self) -> SqliteData: ...

    class WindowAggregate(Protocol):
        """An instance goes through a window: rows come and leave."""

        @property
        def step(self) -> Callable[..., object]: ...
        @property
        def inverse(self) -> Callable[..., object]: ...
        def value(self) -> SqliteData: ...
        def finalize(self) -> SqliteData: ...


F = TypeVar("F", bound=Callable[..., Any])


def enable_callback_tracebacks(enable: bool, /) -> None:
    """Whether exceptions in callbacks are told to ``sys.unraisablehook``, for the whole process."""
    _show_tracebacks(bool(enable))


def _positional(*names: str) -> Callable[[F], F]:
    """Of a method: since 3.13 the standard library warns of these arguments when they are given by name."""
    some = [f"'{name}'" for name in names]
    listed = some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"
    argument, parameter = (
        ("argument", "Parameter") if len(some) == 1 else ("arguments", "Parameters")
    )

    def decorate(method: F) -> F:
        if sys.version_info < (3, 13):
            return method
        message = (
            f"Passing keyword {argument} {listed} to _sqlite3.Connection.{method.__name__}() is "
            f"deprecated. {parameter} {listed} will become positional-only in Python 3.15."
        )

        @functools.wraps(method)
        def wrapper(*args: Any, **options: Any) -> Any:
            if any(name in options for name in names):
                warnings.warn(message, DeprecationWarning, **OUTSIDE)
            return method(*args, **options)

        return cast("F", wrapper)

    return decorate


def _encoded(argument: str, name: Any) -> bytes:
    if not isinstance(name, str):
        kind = "None" if name is None else type(name).__name__
        raise TypeError(f"{argument} must be str, not {kind}")
    if "\0" in str.__str__(name):
        raise ValueError("embedded null character")
    return str.encode(name)


def _c_int(value: SupportsIndex) -> int:
    number = index(value)
    if not -(2**31) <= number < 2**31:
        raise OverflowError("Python int too large to convert to C int")
    return number


class Functions:
    """What SQLite calls on a connection. `Connection` has what this only names.

    A callback may use its connection where SQLite allows it: in functions, aggregates and the trace, not
    in collations, authorizers and progress handlers. Closing it, or using a cursor that is running, is
    refused. What a callback refers to, the connection itself as well, is given back with the connection.
    """

    _database: Database

    def _check(self) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        raise NotImplementedError

    def _guard(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def _callbacks(self) -> Callbacks:
        """Of the database in this process."""
        return self._database.callbacks

    def _renamed(self) -> None:
        """Statements may mean something else now, or be forbidden."""

    # ------------------------------------------------------------ functions

    @_positional("name", "narg", "func")
    def create_function(
        self,
        name: str,
        narg: int,
        func: Callable[..., SqliteData] | None,
        *,
        deterministic: bool = False,
    ) -> None:
        """Define an SQL function.

        Args:
          name: it takes the place of any other function of this name and number of arguments.
          narg: how many arguments it takes; -1: any number.
          func: called with str, bytes, int, float or None; None: there is no such function any more.
          deterministic: equal arguments have equal results, so that it may be used in indexes.

        Raises:
          OperationalError: SQLite does not take it, say because statements that use it are running.
        """
        self._define("create_function", name, narg, func, SCALAR, deterministic=bool(deterministic))

    @_positional("name", "n_arg", "aggregate_class")
    def create_aggregate(
        self, name: str, n_arg: int, aggregate_class: Callable[[], Aggregate] | None
    ) -> None:
        """Define an aggregate function: of each group an instance gets the rows by `step`.

        Its `finalize` answers the result. See `create_function` for the arguments.
        """
        self._define("create_aggregate", name, n_arg, aggregate_class, AGGREGATE)

    def create_window_function(
        self,
        name: str,
        num_params: int,
        aggregate_class: Callable[[], WindowAggregate] | None,
        /,
    ) -> None:
        """Define an aggregate window function: `inverse` takes a row away, `value` is the result so far.

        See `create_function` for the arguments.

        Raises:
          ProgrammingError: SQLite does not take it.
        """
        self._define("create_window_function", name, num_params, aggregate_class, WINDOW)

    def _define(
        self,
        method: str,
        name: str,
        arguments: int,
        function: Any,
        kind: int,
        *,
        deterministic: bool = False,
    ) -> None:
        place = "1" if kind == WINDOW else "'name'"
        text, arguments = _encoded(f"{method}() argument {place}", name), _c_int(arguments)
        self._check()
        self._settle()
        with self._guard():
            rc = self._callbacks().create_function(
                text, arguments, function, kind, deterministic=deterministic
            )
            if rc == REFUSED:
                self._database.fail()
            if rc and kind == WINDOW:
                raise ProgrammingError("bad parameter or other API misuse")
            if rc:
                what = "function" if kind == SCALAR else "aggregate"
                raise OperationalError(f"Error creating {what}")
            self._renamed()

    def create_collation(
        self, name: str, callback: Callable[[str, str], int | SupportsIndex] | None, /
    ) -> None:
        """Define an order of texts.

        Args:
          name: what COLLATE names.
          callback: called with two strings; negative, zero or positive as the first one comes before, with
            or after the second. None: there is no such collation any more.

        Raises:
          OperationalError: SQLite does not take it, say because statements are running.
        """
        text = _encoded("create_collation() argument 1", name)
        self._check()
        if callback is not None and not callable(callback):
            raise TypeError("parameter must be callable")
        self._settle()
        with self._guard():
            if self._callbacks().create_collation(text, callback):
                self._database.fail()
            self._renamed()

    # ------------------------------------------------------------ extensions

    def enable_load_extension(self, enable: bool, /) -> None:
        """Allow, or forbid again, that shared libraries are loaded: by `load_extension`, and by SQL of that name.

        Forbidden unless a program says otherwise: a library can do whatever the process can.
        """
        self._check()
        self._settle()
        sys.audit("sqlite3.enable_load_extension", self, enable)
        with self._guard():
            self._database.enable_extensions(bool(enable))

    def load_extension(self, name: str, /, *, entrypoint: str | None = None) -> None:
        """Load an extension of SQLite, for this connection.

        On a replica what it defines serves statements that run here.

        Args:
          name: path of a shared library, also without its suffix.
          entrypoint: the function in it to call; None: what SQLite makes of the name.

        Raises:
          OperationalError: loading is not allowed, or failed.
        """
        self._check()
        self._settle()
        sys.audit("sqlite3.load_extension", self, name)
        path = os.fsencode(name)
        if b"\0" in path:
            raise ValueError("embedded null character")
        entry = None if entrypoint is None else str.encode(entrypoint)
        with self._guard():
            self._database.load_extension(path, entry)
            self._renamed()

    # ------------------------------------------------------------ hooks

    @_positional("authorizer_callback")
    def set_authorizer(
        self,
        authorizer_callback: Callable[[int, str | None, str | None, str | None, str | None], int]
        | None,
    ) -> None:
        """Ask a callback about each thing that a statement is about to do, when it is compiled.

        Args:
          authorizer_callback: called with a code (SQLITE_READ, SQLITE_INSERT ...), two texts that depend on
            it, the database's name, and the trigger or view that is behind it; answers SQLITE_OK,
            SQLITE_DENY, or SQLITE_IGNORE. None: everything is allowed.
        """
        self._hook(lambda hooks: hooks.set_authorizer(authorizer_callback))

    @_positional("progress_handler")
    def set_progress_handler(
        self, progress_handler: Callable[[], int | None] | None, n: int
    ) -> None:
        """Call something again and again while a statement runs.

        Args:
          progress_handler: what is true of its answer stops the statement. None: nothing is called.
          n: steps of SQLite's virtual machine between calls.
        """
        steps = _c_int(n)
        self._hook(lambda hooks: hooks.set_progress(progress_handler, steps))

    @_positional("trace_callback")
    def set_trace_callback(self, trace_callback: Callable[[str], object] | None) -> None:
        """Tell a callback each statement that is run, with its parameters in place. None: nothing."""
        self._hook(lambda hooks: hooks.set_trace(trace_callback))

    def _hook(self, change: Callable[[Callbacks], int]) -> None:
        self._check()
        self._settle()
        with self._guard():
            if change(self._callbacks()):
                self._database.fail()
            self._renamed()


__all__: Final = ["Functions", "enable_callback_tracebacks"]
