"""The shared object loads, names its parts, and turns failures into the right exceptions."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

import nearlite
from nearlite._native import _lib, codes
from nearlite._native._lib import SQLITE_NAMES
from nearlite.dbapi import constants

HEADER = Path(__file__).parent.parent / "csrc" / "vendor" / "sqlite3.h"


def test_the_pinned_sqlite_is_inside() -> None:
    assert _lib.sqlite_version == "3.54.1"
    assert _lib.openssl_version.startswith("OpenSSL 3.")


def test_every_result_code_of_the_header_is_named() -> None:
    text = HEADER.read_text()
    extended = re.findall(r"#define (SQLITE_\w+)\s+\(SQLITE_\w+\s*\|\s*\(\d+<<8\)\)", text)
    known = set(SQLITE_NAMES.values())
    assert {
        name for name in extended if not name.startswith(("SQLITE_OPEN", "SQLITE_TRACE"))
    } <= known


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, sqlite3.OperationalError),
        (5, sqlite3.OperationalError),
        (2, sqlite3.InternalError),
        (11, sqlite3.DatabaseError),
        (18, sqlite3.DataError),
        (2067, sqlite3.IntegrityError),
        (21, sqlite3.InterfaceError),
        (26, sqlite3.DatabaseError),
    ],
)
def test_a_result_code_becomes_the_class_of_the_standard_library(
    code: int, expected: type[sqlite3.Error]
) -> None:
    error = _lib.sqlite_exception(code, "text")
    assert isinstance(error, expected)
    assert isinstance(error, _lib.errors.Error)
    assert error.sqlite_errorcode == code
    assert error.sqlite_errorname == SQLITE_NAMES[code]


def test_out_of_memory_is_a_memory_error() -> None:
    assert isinstance(_lib.sqlite_exception(7, ""), MemoryError)


def test_constants_are_those_of_the_header_and_of_the_standard_library() -> None:
    defined = dict(re.findall(r"#define (SQLITE_\w+)\s+(-?\d+)\b", HEADER.read_text()))
    for name in constants.__all__:
        assert getattr(nearlite, name) == int(defined[name]), name
    theirs = {name for name in dir(sqlite3) if name.startswith("SQLITE_")}
    assert {name: getattr(nearlite, name) for name in theirs} == {
        name: getattr(sqlite3, name) for name in theirs
    }
    assert set(nearlite.__all__) >= set(codes.__all__) | set(constants.__all__)
