"""Cutting a script into statements, against SQLite's own sqlite3_complete()."""

from __future__ import annotations

from sqlite3 import complete_statement

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nearlite.script import statements_of

PIECES = [
    ";", " ", "\n", "\t", "\r", "\f", "\v", "\xa0", "'", '"', "`", "[", "]", "-", "--", "/", "/*", "*", "*/",
    "create", "CREATE", "trigger", "temp", "Temporary", "end", "END", "explain", "begin", "select", "case",
    "x", "_end", "end1", "é", "$", ":a", "@", "\U0001f600", "\u017f", "\u212a",
]  # fmt: skip
SCRIPTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def by_asking_sqlite(script):
    """What the stock library makes of it: asked at every semicolon."""
    found = []
    start = end = 0
    while (end := script.find(";", end) + 1) > 0:
        if complete_statement(script[start:end]):
            found.append(script[start:end])
            start = end
    if script[start:].strip():
        found.append(script[start:])
    return found


@given(SCRIPTS)
@example("create trigger t after insert on x begin select ';'; end; select 1")
@example("create temp trigger t begin end;; end;select 1;")
@example("explain create trigger x begin select 1; end ; select 1;")
@example("create table trigger(a); end; select 1;")
@example("select 1 -- ; \n; /*;*/ select 2; /*/;*/; -- ;")
@example("temporary end; create Kend;")
def test_statements_end_where_sqlite_says(script):
    assert by_asking_sqlite(script) == list(statements_of(script))


@pytest.mark.parametrize(
    "around",
    ["select '%s';", "/* %s */ select 1;", "select 1 -- %s", "create trigger t begin %s", "'%s"],
)
def test_a_megabyte_of_semicolons_that_end_nothing_is_read_once(around):
    script = around % (";" * (1 << 20))
    # Asking SQLite at each of them would read half a terabyte: that would not end.
    assert list(statements_of(script)) == [script]


def test_a_script_of_many_statements_is_cut_into_all_of_them():
    script = "insert into t values(1, 'a;b'); -- one; two\n" * 20_000
    found = list(statements_of(script))
    assert "".join(found) == script
    assert len(found) == 20_001
