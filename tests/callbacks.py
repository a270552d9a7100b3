"""Scenarios of callbacks: each runs on the standard library and on nearlite, and has to come to the same."""

from __future__ import annotations

import contextlib
import sqlite3
import sys


def outcome(function, *arguments):
    try:
        return ("value", function(*arguments))
    except Exception as error:
        name = type(error).__name__
        if isinstance(error, sqlite3.Error):
            return ("error", name, str(error), getattr(error, "sqlite_errorname", None))
        return ("error", name, str(error))


def fetch(connection, sql, parameters=()):
    return outcome(lambda: connection.execute(sql, parameters).fetchall())


@contextlib.contextmanager
def reported(module):
    """What callbacks raised, as sys.unraisablehook is told."""
    found = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda u: found.append(
        (u.exc_type.__name__, str(u.exc_value), getattr(u.object, "__name__", None))
    )
    module.enable_callback_tracebacks(True)
    try:
        yield found
    finally:
        module.enable_callback_tracebacks(False)
        sys.unraisablehook = before


def scenarios(namespace):
    """The functions of a module that take `m`, the module to try."""
    return [
        value
        for value in namespace.values()
        if callable(value)
        and getattr(value, "__code__", None) is not None
        and value.__code__.co_varnames[:1] == ("m",)
    ]
