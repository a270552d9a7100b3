"""Sessions: what a connection changes, recorded, applied elsewhere, undone."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nearlite
from nearlite._native import _lib  # these run with SQLite's asserts, too

assert _lib.sqlite_version

SCHEMA = "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE TABLE u(k TEXT PRIMARY KEY, v)"


def fresh() -> Any:
    made = nearlite.connect(":memory:")
    made.executescript(SCHEMA)
    return made


def content(connection: Any) -> list[Any]:
    return [
        connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in ("t", "u")
    ]


def read(changes: bytes) -> list[Any]:
    return list(nearlite.read_changeset(changes))


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    with closing(fresh()) as one, closing(fresh()) as other:
        yield one, other


def test_what_one_connection_changes_is_carried_out_on_another(pair: tuple[Any, Any]) -> None:
    one, other = pair
    with one.session() as session:
        assert session.is_empty
        one.execute("INSERT INTO t VALUES (1, 'x', 2.5), (2, NULL, x'00')")
        one.execute("INSERT INTO u VALUES ('k', 1)")
        one.execute("UPDATE t SET a = 'y' WHERE id = 1")
        assert not session.is_empty
        changes, patch = session.changeset(), session.patchset()
    one.commit()
    assert len(patch) <= len(changes)
    assert other.apply(changes) == (0, 0, 0, 0, 0)
    assert other.in_transaction  # begun as before an INSERT
    other.commit()
    assert content(other) == content(one)
    other.apply(nearlite.invert_changeset(changes))
    assert content(other) == [[], []]


@given(st.randoms())
def test_any_history_is_carried_out_and_undone(rng: random.Random) -> None:
    def change(connection: Any) -> None:
        for _ in range(rng.randrange(1, 25)):
            key, value = rng.randrange(8), rng.choice([None, 1, "text", b"\0", 2.5])
            connection.execute(
                rng.choice(
                    [
                        "INSERT OR IGNORE INTO t VALUES (?, ?, 0)",
                        "INSERT OR REPLACE INTO t VALUES (?, ?, 1)",
                        "UPDATE t SET b = ?2 WHERE id = ?1",
                        "DELETE FROM t WHERE id = ?1 OR ?2 IS 1",
                        "INSERT OR REPLACE INTO u VALUES (?1, ?2)",
                    ]
                ),
                (key, value),
            )

    with closing(fresh()) as one, closing(fresh()) as other:
        parts = []
        for _ in range(2):
            with one.session("t", "u") as session:
                change(one)
                parts.append(session.changeset())
        assert other.apply(nearlite.concat_changesets(*parts)) == (0, 0, 0, 0, 0)
        assert content(other) == content(one)
        for part in reversed(parts):
            other.apply(nearlite.invert_changeset(part))
        assert content(other) == [[], []]


def carried_out(connection: Any, changes: bytes) -> None:
    """What read_changeset() answers, as statements: an oracle for apply(), and the other way round."""
    for change in nearlite.read_changeset(changes):
        columns = [
            row[1] for row in connection.execute(f"PRAGMA table_info({change.table})").fetchall()
        ]
        if change.operation == "INSERT":
            assert change.old is None
            marks = ", ".join("?" * len(columns))
            connection.execute(f"INSERT INTO {change.table} VALUES ({marks})", change.new)
            continue
        assert change.old is not None
        keys = [name for name, is_key in zip(columns, change.key, strict=True) if is_key]
        where = " AND ".join(f"{name} IS ?" for name in keys)
        key = [value for value, is_key in zip(change.old, change.key, strict=True) if is_key]
        assert nearlite.ABSENT not in key
        if change.operation == "DELETE":
            assert change.new is None
            connection.execute(f"DELETE FROM {change.table} WHERE {where}", key)
            continue
        new = [(n, v) for n, v in zip(columns, change.new, strict=True) if v is not nearlite.ABSENT]
        sets = ", ".join(f"{name} = ?" for name, _ in new)
        connection.execute(
            f"UPDATE {change.table} SET {sets} WHERE {where}", [v for _, v in new] + key
        )


@given(st.randoms(), st.booleans())
def test_what_a_changeset_says_is_what_it_does(rng: random.Random, patch: bool) -> None:
    with closing(fresh()) as one, closing(fresh()) as other:
        for connection in (one, other):
            connection.execute("INSERT INTO t VALUES (1, 'text', 2.5), (2, x'00', NULL), (3, 3, 3)")
            connection.execute("INSERT INTO u VALUES ('k', -9000000000), ('ü', '')")
        with one.session() as session:
            for _ in range(rng.randrange(1, 15)):
                value = rng.choice(
                    [None, 0, -5, 40_000, 1 << 40, 2.5, "", "täxt", b"", b"\0" * 300]
                )
                sql = rng.choice(
                    [
                        "INSERT OR REPLACE INTO t VALUES (?1, ?2, ?2)",
                        "UPDATE t SET a = ?2 WHERE id = ?1",
                        "DELETE FROM t WHERE id = ?1 OR (id = 3 AND ?2 IS NULL)",
                        "UPDATE OR REPLACE t SET id = id + 10, b = ?2 WHERE id = ?1",
                        "INSERT OR REPLACE INTO u VALUES (?1, ?2)",
                        "UPDATE u SET v = ?2 WHERE k = 'k' OR ?1 > 2",
                    ]
                )
                one.execute(sql, (rng.randrange(5), value))
            carried_out(other, session.patchset() if patch else session.changeset())
        assert content(other) == content(one)


def test_changes_are_read_with_what_was_there(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    one.execute("INSERT INTO t VALUES (1, 'old', NULL)")
    one.executescript(
        "CREATE TRIGGER tr AFTER UPDATE ON t BEGIN INSERT INTO u VALUES ('by', 'trigger'); END"
    )
    with one.session() as session:
        one.execute("UPDATE t SET a = 'new' WHERE id = 1")
        changes, patch = session.changeset(), session.patchset()
    absent = nearlite.ABSENT
    assert list(nearlite.read_changeset(changes)) == [
        ("UPDATE", "t", (1, "old", absent), (absent, "new", absent), (True, False, False), False),
        ("INSERT", "u", None, ("by", "trigger"), (True, False), True),
    ]
    assert next(nearlite.read_changeset(patch)).old == (1, absent, absent)
    assert repr(absent) == "nearlite.ABSENT"
    assert list(nearlite.read_changeset(b"")) == []


def test_large_changesets_are_read_in_batches(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    with one.session() as session:
        one.executemany("INSERT INTO t VALUES (?, ?, ?)", ((i, "x" * 100, i) for i in range(5000)))
        changes = session.changeset()
    reading = nearlite.read_changeset(bytearray(changes))
    found = [next(reading)]
    gc.collect()
    found += reading
    assert sorted(change.new[0] for change in found) == list(range(5000))


def test_changes_before_the_damage_are_read(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    with one.session() as session:
        one.executemany("INSERT INTO t VALUES (?, ?, 0)", ((i, f"v{i}") for i in range(5)))
        changes = session.changeset()
    for cut in range(1, 15):  # within the last change
        found = []
        with pytest.raises(nearlite.DatabaseError, match="damaged behind the changes"):
            found.extend(nearlite.read_changeset(changes[:-cut]))
        assert len(found) == 4
    wide = b"T" + b"\x84\x80\x00" + bytes([1]) + bytes(65535) + b"t\0" + b"\x12\0"
    wide += b"\x01" + bytes(7) + b"\x05" + b"\x05" * 65535
    with pytest.raises(nearlite.DatabaseError, match="damaged"):
        list(nearlite.read_changeset(wide))


@pytest.mark.parametrize("act", ["apply", "invert", "concat", "read", "blob"])
def test_buffers_that_a_failure_keeps_in_a_cycle(act: str) -> None:
    """Before 3.12.6 the collector crashed the process over a memoryview whose buffer had been lent."""
    program = f"""
import gc, nearlite
connection = nearlite.connect(":memory:", isolation_level=None)
connection.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
connection.execute("INSERT INTO t VALUES (1, zeroblob(10))")
blob = connection.blobopen("t", "b", 1, readonly=True)
acts = dict(
    apply=connection.apply,
    invert=nearlite.invert_changeset,
    concat=lambda data: nearlite.concat_changesets(b"", data),
    read=lambda data: next(nearlite.read_changeset(data)),
    blob=blob.write,
)
def fail():
    lent = memoryview(bytearray(b"garbage"))
    try:
        acts["{act}"](lent)
    except nearlite.Error as error:
        error.cycle = [error]
        return 1
print(sum(fail() + 0 * gc.collect() for _ in range(3)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "3\n"), run.stderr


def test_text_in_a_changeset_that_is_no_utf8(pair: tuple[Any, Any]) -> None:
    one, other = pair
    with one.session() as session:
        one.execute("INSERT INTO t VALUES (1, CAST(x'ff' AS TEXT), 0)")
        changes = session.changeset()
    with pytest.raises(nearlite.OperationalError, match="decode to UTF-8"):
        list(nearlite.read_changeset(changes))
    other.apply(changes)
    assert other.execute("SELECT hex(a) FROM t").fetchone() == ("FF",)


def test_a_changeset_is_that_of_stock_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(nearlite.connect(path)) as one:
        one.executescript(SCHEMA)
        with one.session("u") as session:
            one.execute("INSERT INTO u VALUES ('k', 7)")
            changes = session.changeset()
        one.commit()
    # https://sqlite.org/session/changeset.html: 'T', columns, which are the key, the name; then the row.
    assert (
        changes == b"T\x02\x01\x00u\x00" + b"\x12\x00" + b"\x03\x01k" + b"\x01" + bytes(7) + b"\x07"
    )


@pytest.mark.parametrize(
    ("on_conflict", "expected", "conflicts"),
    [
        ("omit", [(1, "theirs", 0), (3, "new", 0)], (1, 1, 1, 0, 0)),
        ("replace", [(1, "mine", 0), (3, "new", 0), (4, "changed", 0)], (1, 1, 1, 0, 0)),
    ],
)
def test_changes_that_do_not_fit(
    pair: tuple[Any, Any], on_conflict: str, expected: Any, conflicts: Any
) -> None:
    one, other = pair
    for connection in pair:
        connection.execute("INSERT INTO t VALUES (2, 'gone', 0), (4, 'old', 0)")
        connection.commit()
    with one.session() as session:
        one.execute("INSERT INTO t VALUES (1, 'mine', 0), (3, 'new', 0)")
        one.execute("DELETE FROM t WHERE id = 2")
        one.execute("UPDATE t SET a = 'changed' WHERE id = 4")
        changes = session.changeset()
    other.execute("INSERT INTO t VALUES (1, 'theirs', 0)")  # the key is taken
    other.execute("DELETE FROM t WHERE id = 2")  # the row is missing
    other.execute("UPDATE t SET a = 'theirs' WHERE id = 4")  # it has another content
    before = content(other)
    with pytest.raises(nearlite.IntegrityError, match="nothing was changed"):
        other.apply(changes)
    assert content(other) == before
    assert other.apply(changes, on_conflict=on_conflict) == conflicts
    rows = content(other)[0]
    if on_conflict == "omit":
        expected = [*expected, (4, "theirs", 0)]
    assert rows == expected


def test_foreign_keys_count(pair: tuple[Any, Any]) -> None:
    one, other = pair
    for connection in pair:
        connection.execute("CREATE TABLE c(id INTEGER PRIMARY KEY, t REFERENCES t(id))")
    other.commit()
    other.execute("PRAGMA foreign_keys = ON")
    with one.session() as session:
        one.execute("INSERT INTO c VALUES (1, 99)")
        changes = session.changeset()
    with pytest.raises(nearlite.IntegrityError):
        other.apply(changes)
    assert other.execute("SELECT count(*) FROM c").fetchone() == (0,)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_changeset(data: bytes) -> None:
    with closing(fresh()) as one:
        before = content(one)
        for act in (one.apply, nearlite.invert_changeset, read):
            try:
                act(data)
            except nearlite.DatabaseError:
                pass
        assert content(one) == before or data[:1] in b"TP"


@given(st.randoms())
def test_a_damaged_changeset_is_an_error_at_worst(rng: random.Random) -> None:
    with closing(fresh()) as one, closing(fresh()) as other:
        with one.session() as session:
            one.execute("INSERT INTO t VALUES (1, 'some text', 2.5), (2, x'0102', NULL)")
            one.execute("UPDATE t SET b = 1")
            data = bytearray(session.changeset())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randrange(len(data)) :]
        for act in (other.apply, nearlite.invert_changeset, read):
            try:
                act(bytes(data))
            except (nearlite.DatabaseError, MemoryError):
                pass
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_sessions_of_files_under_any_name(tmp_path: Path) -> None:
    with closing(nearlite.connect(":memory:")) as one:
        one.text_factory = bytes
        one.execute("ATTACH ? AS Aux", (str(tmp_path / "aux.db"),))
        one.execute("CREATE TABLE aux.t(id INTEGER PRIMARY KEY, a)")
        for name in ("main", "Aux", "aux", "AUX", "temp"):
            with one.session(name=name) as session:
                one.execute("INSERT INTO aux.t(a) VALUES (1)")
                assert session.is_empty is (name.lower() != "aux")
        with pytest.raises(nearlite.OperationalError, match="unknown database 'nowhere'"):
            one.session(name="nowhere")


def test_a_session_is_not_closed_by_a_hook_that_it_waits_for(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    session, refused = one.session(), []

    def trace(sql: str) -> None:
        if "table_xinfo" in sql:  # SQLite's own, in the middle of the change
            with pytest.raises(nearlite.ProgrammingError, match="by a callback"):
                session.close()
            refused.append(sql)

    one.set_trace_callback(trace)
    one.execute("INSERT INTO t VALUES (1, 2, 3)")
    one.set_trace_callback(None)
    assert refused
    assert not session.is_empty
    session.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed session"):
        session.changeset()


def test_a_session_that_is_paused_records_nothing(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    session = one.session()
    session.enabled = False
    assert not session.enabled
    one.execute("INSERT INTO t VALUES (1, 2, 3)")
    assert session.is_empty
    session.enabled, session.indirect = True, True
    assert session.indirect
    one.execute("INSERT INTO t VALUES (2, 2, 3)")
    assert not session.is_empty
    session.close()
    session.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed session"):
        session.changeset()


def test_a_session_ends_with_its_connection_and_with_its_owner(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    one.session()
    gc.collect()
    kept = one.session()
    one.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed database"):
        kept.changeset()
    del kept
    gc.collect()


def test_what_is_refused(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    with pytest.raises(ValueError, match="on_conflict"):
        one.apply(b"", on_conflict="perhaps")
    with pytest.raises(TypeError):
        one.apply("text")
    assert one.apply(b"") == (0, 0, 0, 0, 0)
    with pytest.raises(nearlite.OperationalError, match="unknown database 'nobody'"):
        one.session(name="nobody")
