"""executemany whose iterator uses the connection: as if every set were run before the next is asked for.

Each case runs on the standard library with a local file, and on a local, a replica and a remote connection.
"""

from __future__ import annotations

import sqlite3
import sys

import pytest
from primaries import primary

import nearlite

MODES = [{"isolation_level": level} for level in ("", "IMMEDIATE", "EXCLUSIVE", None)]
if sys.version_info >= (3, 12):
    MODES += [{"autocommit": True}, {"autocommit": False}]

# What the iterator does before its third set.
USES = {
    "commit": lambda con, _: con.commit(),
    "rollback": lambda con, _: con.rollback(),
    "commit, then write": lambda con, _: (con.commit(), con.execute("insert into log values(1)")),
    "begin": lambda con, _: con.execute("begin"),
    "savepoint": lambda con, _: con.execute("savepoint x"),
    "write": lambda con, _: con.execute("insert into log values(1)"),
    "the same text": lambda con, _: con.execute("insert into t values(?)", (50,)),
    "read": lambda con, _: con.execute("select count(*), max(a) from t").fetchall(),
    "count": lambda con, _: con.total_changes,
    "fail": lambda con, _: con.execute("bad"),
    "executemany": lambda con, _: con.executemany(
        "insert into t values(?)",
        ((con.execute("select 100 + count(*) from t").fetchone()[0],) for _ in range(2)),
    ),
    "executescript": lambda con, _: con.executescript("insert into log values(2)"),
    "isolation_level = None": lambda con, _: setattr(con, "isolation_level", None),
    "close the cursor": lambda _, cur: cur.close(),
    "fetch from the cursor": lambda _, cur: cur.fetchone(),
    "create the table anew": lambda con, _: (
        con.execute("drop table t") and con.execute("create table t(a unique)")
    ),
}


def attempt(call):
    """What a call comes to: a value that can be compared, or what it raises."""
    try:
        value = call()
    except Exception as error:
        return type(error).__name__, str(error)
    return value if isinstance(value, (int, list)) else None


def run(con, use):
    """What the iterator sees at every set, and what is there in the end."""
    con.execute("create table t(a unique)")
    con.execute("create table log(x)")
    con.commit()
    cur = con.cursor()
    seen = []

    def sets():
        for i in range(5):
            seen.append(con.in_transaction)
            if i == 2:
                seen.append(attempt(lambda: use(con, cur)))
            yield (i,)
        seen.append(con.in_transaction)

    found = [attempt(lambda: cur.executemany("insert into t values(?)", sets())), seen]
    found += [cur.rowcount, con.in_transaction, con.total_changes]
    tables = "select a from t union all select 'log ' || x from log"
    found.append(con.execute(tables).fetchall())
    con.rollback()
    return [*found, con.execute(tables).fetchall()]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with primary(tmp_path_factory.mktemp("primary")) as found:
        yield found


def connect(kind, served, folder, **options):
    if kind == "local":
        return nearlite.connect(folder / "local.db", **options)
    return getattr(served, kind)(**options)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_an_iterator_may_use_its_connection(mode, use, served, tmp_path):
    oracle = sqlite3.connect(tmp_path / "oracle.db", **mode)
    expected = run(oracle, use)
    oracle.close()
    local = nearlite.connect(tmp_path / "local.db", **mode)
    assert run(local, use) == expected
    local.close()
    for con in (served.replica(**mode), served.remote(**mode)):
        assert run(con, use) == expected
        con.rollback()
        con.executescript("drop table t; drop table log")
        con.close()


@pytest.mark.parametrize("kind", ["local", "replica", "remote"])
@pytest.mark.parametrize("level", ["", None])
def test_what_has_been_taken_is_in_what_the_iterator_commits(kind, level, served, tmp_path):
    """Far behind the first batch, and with all that came after it in autocommit mode."""
    con = connect(kind, served, tmp_path, isolation_level=level)
    if kind == "local":
        con.execute("pragma synchronous=off")  # thousands of commits
    con.executescript("drop table if exists many; create table many(a)")

    def sets():
        for i in range(12_000):
            if i == 11_000:
                con.commit()
                assert con.execute("select count(*) from many").fetchone() == (11_000,)
            yield (i,)

    assert con.executemany("insert into many values(?)", sets()).rowcount == 12_000
    assert not con.in_transaction
    con.rollback()
    assert con.execute("select count(*), count(distinct a) from many").fetchone() == (12_000,) * 2
    con.close()


@pytest.mark.parametrize("kind", ["local", "replica", "remote"])
@pytest.mark.parametrize("level", ["", None])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_set_that_fails_ends_it_where_the_iterator_looks(
    kind, level, swallowed, served, tmp_path
):
    con = connect(kind, served, tmp_path, isolation_level=level)
    con.executescript("drop table if exists few; create table few(a unique)")
    raised = []

    def sets():
        yield from ((1,), (2,), (1,))
        try:
            con.commit()
        except nearlite.IntegrityError as error:
            raised.append(error)
            if not swallowed:
                raise
        yield (3,)

    cur = con.cursor()
    with pytest.raises(nearlite.IntegrityError) as caught:
        cur.executemany("insert into few values(?)", sets())
    # Locally each set is run before the next one is asked for: the iterator is not asked again.
    assert raised == ([] if kind == "local" else [caught.value])
    assert (cur.rowcount, con.in_transaction) == (-1, level == "")
    assert con.execute("select a from few").fetchall() == [(1,), (2,)]
    con.close()


@pytest.mark.parametrize("kind", ["replica", "remote"])
def test_an_iterator_that_only_fetches_costs_no_request(kind, served):
    con = getattr(served, kind)(isolation_level=None)
    con.executescript(
        "drop table if exists source; create table source(a);"
        "drop table if exists target; create table target(a)"
    )
    con.executemany("insert into source values(?)", [(i,) for i in range(3000)])
    cursor = con.execute("select a from source")
    served.seen.clear()
    con.executemany("insert into target values(?)", cursor)
    assert len(served.seen) == 1
    assert con.execute("select count(*) from target").fetchone() == (3000,)
    con.close()


@pytest.mark.parametrize("kind", ["replica", "remote"])
@pytest.mark.parametrize("level", ["", None])
def test_what_does_not_compile_leaves_no_transaction_open(kind, level, served):
    con = getattr(served, kind)(isolation_level=level)
    for sets in ([(1,)], []):
        with pytest.raises(nearlite.OperationalError, match="no such table: nowhere"):
            con.executemany("insert into nowhere values(?)", sets)
        assert not con.in_transaction
    con.close()


def test_another_thread_runs_nothing_of_a_waiting_executemany(served):
    from concurrent.futures import ThreadPoolExecutor

    con = served.remote(check_same_thread=False)
    con.executescript("drop table if exists waiting; create table waiting(a)")
    with ThreadPoolExecutor(1) as pool:

        def sets():
            yield (1,)
            assert pool.submit(lambda: con.in_transaction).result() is False
            assert con.in_transaction
            yield (2,)

        con.executemany("insert into waiting values(?)", sets())
        assert con.execute("select a from waiting").fetchall() == [(1,), (2,)]
    con.close()
