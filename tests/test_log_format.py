"""docs/formats.md, taken at its word: a reader of the log folder that imports nothing of nearlite."""

from __future__ import annotations

import json
import shutil
import struct
from functools import reduce
from operator import xor
from pathlib import Path

import pytest
from stock import dump
from test_primary import execute

from nearlite import logformat
from nearlite._native.frames import xxh3
from nearlite.log import Log
from nearlite.logformat import Commit, DamagedError, HashTable, Index, Journal
from nearlite.position import Position
from nearlite.primary import Primary


def read_folder(folder: Path) -> dict:
    """The independent reader."""
    state = json.loads((folder / "state.json").read_text())
    assert (state["format"], state["version"]) == ("nearlite-log", 1)
    out = {"state": state, "index": {}, "hashes": {}, "journal": {}}
    for path in folder.iterdir():
        data = path.read_bytes()
        if path.suffix == ".hashes":
            magic, lin, gen, frame, _, n, state_hash = struct.unpack_from(">8sIIIIIQ", data)
            assert magic == b"NLHASHES"
            assert path.stem == f"{lin:08x}.{gen:08x}.{frame:08x}"
            table = struct.unpack_from(f">{n}Q", data, 64)
            assert len(data) == 64 + 8 * n
            assert reduce(xor, table, 0) == state_hash
            out["hashes"][gen] = table
        elif path.suffix == ".index":
            magic, lin, gen, _, frame, _, _, _, n, m, digest = struct.unpack_from(
                ">8sIIIIIIQIIQ", data
            )
            assert magic == b"NLINDEX1"
            assert path.stem == f"{lin:08x}.{gen:08x}.{frame:08x}"
            assert xxh3(data[64:]) == digest
            commits = list(struct.iter_unpack(">IIQ", data[64 : 64 + 16 * n]))
            pairs = list(struct.iter_unpack(">II", data[64 + 16 * n :]))
            assert len(pairs) == m
            out["index"][gen] = (commits, pairs)
        elif path.suffix == ".journal":
            magic, lin, gen, start, _, _ = struct.unpack_from(">8sIIIIQ", data)
            assert magic == b"NLJOURN1"
            frames, commits, at = [], [], 32
            while at < len(data):
                magic, after, n, m, _, digest = struct.unpack_from(">4sIIIQQ", data, at)
                assert (magic, after) == (b"NLJR", start + len(frames))
                end = at + 32 + 4 * n + 16 * m
                assert xxh3(data[at : at + 24] + bytes(8) + data[at + 32 : end]) == digest
                frames += struct.unpack_from(f">{n}I", data, at + 32)
                commits += struct.iter_unpack(">IIQ", data[at + 32 + 4 * n : end])
                at = end
            out["journal"][gen] = (frames, commits)
    return out


def test_the_folder_can_be_read_from_its_description(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path, durability="normal") as primary:
        shutil.copy(path, tmp_path / "base.db")
        execute(primary, "CREATE TABLE t(a)")
        execute(primary, "INSERT INTO t VALUES(randomblob(20000))")
        closed = primary.state()
        assert primary.roll()
        execute(primary, "INSERT INTO t VALUES(1)")
        execute(primary, "INSERT INTO t VALUES(2)")
        state = primary.state()
        found = read_folder(tmp_path / "data.db-nearlite")
        (wal,) = (tmp_path / "data.db-nearlite").glob("*.wal")
    assert found["state"]["generation"] == state.position.generation == 2
    assert int(found["state"]["lineage"], 16) == state.position.lineage
    commits, pairs = found["index"][1]
    assert commits[0][0] == 0
    assert commits[-1] == (closed.position.frame, closed.pages, closed.hash)
    assert [page for page, _ in pairs] == sorted({page for page, _ in pairs})
    assert max(last for _, last in pairs) == closed.position.frame
    assert reduce(xor, found["hashes"][2]) == closed.hash
    frames, commits = found["journal"][2]
    assert len(frames) == state.position.frame
    assert commits[-1] == (state.position.frame, state.pages, state.hash)
    (archive,) = found["state"]["archived"]
    assert wal.stat().st_size == archive["bytes"] == 32 + closed.position.frame * 4120


def test_an_archived_wal_over_its_base_is_the_database(tmp_path):
    path = tmp_path / "data.db"
    with Primary.open(path, durability="normal") as primary:
        shutil.copy(path, tmp_path / "base.db")
        execute(primary, "CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(20000))")
        assert primary.roll()
        (wal,) = (tmp_path / "data.db-nearlite").glob("*.wal")
        shutil.copy(wal, tmp_path / "base.db-wal")
    assert dump(tmp_path / "base.db") == dump(path)


INDEX = Index(7, 3, 0, 9, 4096, 5, 0xABCDEF, bytes(range(16)) * 2, struct.pack(">4I", 1, 9, 4, 2))


def test_an_index_survives_the_round_trip_and_no_flipped_byte():
    data = INDEX.encode()
    assert Index.decode(data) == INDEX
    for at in [0, 50, 64, len(data) - 1]:
        with pytest.raises(DamagedError):
            Index.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for cut in range(len(data)):
        with pytest.raises(DamagedError):
            Index.decode(data[:cut])


def test_an_index_knows_its_commits_and_takes_foreign_changes():
    commits = b"".join(logformat.encode_commit(Commit(f, 5, f * 100)) for f in [0, 2, 9])
    index = Index(7, 3, 0, 9, 4096, 5, 900, commits, INDEX.pairs)
    assert [index.lookup(f) for f in range(11)] == [0, None, 200, *[None] * 6, 900, None]
    changed = index.with_changes({2, 4})
    assert list(logformat.u32(changed.pairs)) == [1, 9, 2, logformat.VOID, 4, logformat.VOID]
    assert changed.touched() == {1, 2, 4}
    assert Index.decode(changed.encode()) == changed


def test_a_table_is_checked_by_its_own_state_hash():
    table = HashTable(7, 3, 0, 4096, struct.pack(">5Q", 1, 2, 4, 8, 1 << 63))
    data = table.encode()
    assert HashTable.decode(data) == table
    assert int.from_bytes(data[28:36], "big") == 15 | 1 << 63
    with pytest.raises(DamagedError):
        HashTable.decode(data[:-1] + b"\x01")
    with pytest.raises(DamagedError):
        HashTable.decode(data[:-8])
    assert HashTable.decode(HashTable(1, 1, 0, 512, b"").encode()).table == b""


@pytest.mark.parametrize("entries", [0, 1, 2, 3, 7, 64, 1001])
def test_xor_of_a_table_is_that_of_its_entries(entries):
    values = [(i * 0x9E3779B97F4A7C15 + 1) & (1 << 64) - 1 for i in range(entries)]
    assert logformat.xor(struct.pack(f">{entries}Q", *values)) == reduce(xor, values, 0)


def test_differences_names_changed_grown_and_cut_off_pages():
    old = struct.pack(">2000Q", *range(1, 2001))
    new = struct.pack(">2000Q", *[7 if i in (3, 1500) else i for i in range(1, 2001)])
    assert logformat.differences(old, new) == {3, 1500}
    assert logformat.differences(old, old + bytes(16)) == {2001, 2002}
    assert logformat.differences(old, old[:-8]) == {2000}
    assert logformat.differences(old, old) == set()


def test_a_torn_journal_ends_at_its_last_whole_record():
    head = logformat.journal_header(7, 3, 4, 512, "00000001ffffffff")
    commits = [logformat.encode_commit(Commit(f, 5, f)) for f in (6, 7)]
    first = logformat.journal_record(4, struct.pack(">2I", 1, 3), commits[0], "a" * 16)
    second = logformat.journal_record(6, struct.pack(">I", 3), commits[1], "b" * 16)
    whole = Journal.decode(head + first + second)
    assert (whole.frame, whole.checksum, whole.salt) == (7, "b" * 16, "00000001ffffffff")
    index = whole.index(Commit(4, 2, 1))
    assert list(logformat.u32(index.pairs)) == [1, 5, 3, 7]
    assert (index.start, index.frame, index.pages, index.hash) == (4, 7, 5, 7)
    for cut in range(len(second)):
        assert Journal.decode(head + first + second[:cut]).frame == 6
    damaged = bytearray(head + first + second)
    damaged[len(head) + 40] ^= 1
    assert Journal.decode(bytes(damaged)).frame == 4
    with pytest.raises(DamagedError):
        Journal.decode(head[:31])


def test_of_two_indexes_that_a_kill_left_the_newest_counts(tmp_path):
    """A postponed roll's, and that of the next attempt, killed before it removed the first."""
    log = Log(str(tmp_path / "data.db"))
    try:
        for frame in (5, 9):
            index = Index(7, 1, 0, frame, 4096, 2, 3, b"", b"")
            log.write(f"{Position(7, 1, frame)}.index", index.encode())
        found = log.found_index(7, 1)
        assert found is not None
        assert found.frame == 9
        newest = log.folder / f"{Position(7, 1, 9)}.index"
        newest.write_bytes(newest.read_bytes()[:-1])
        found = log.found_index(7, 1)
        assert found is not None
        assert found.frame == 5
    finally:
        log.close()
