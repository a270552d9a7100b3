"""A first download that is broken off goes on where it stopped, whatever has happened meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import primaries
import pytest
import stack
from sealing import reader, slot_size

from nearlite.bootstrap import Folder
from nearlite.errors import OfflineError
from nearlite.receiving import Progress
from nearlite.replica import Replica

EITHER = True

PAGE = 4096


class Cut:
    """A proxy that closes each connection after so many bytes of answers.

    Attributes:
      after: bytes; None: never.
    """

    def __init__(self, port: int) -> None:
        self.after: int | None = None
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    @staticmethod
    def _up(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        left = self.after
        with contextlib.suppress(OSError):
            while data := server.recv(65536 if left is None else min(65536, left)):
                client.sendall(data)
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        break
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[primaries.Served]:
    with primaries.primary(tmp_path) as here:
        remote = here.remote(isolation_level=None)
        remote.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        remote.executemany(
            "INSERT INTO t(b) VALUES(randomblob(?))", [(100_000,) for _ in range(200)]
        )
        yield here


@pytest.fixture
def proxy(served: primaries.Served) -> Iterator[Cut]:
    made = Cut(int(served.url.rpartition(":")[2]))
    yield made
    made.close()


def broken_off(proxy: Cut, path: Path, after: int) -> Path:
    """A download of `after` bytes; the file it left."""
    proxy.after = after
    with pytest.raises(OfflineError, match="goes on where it stopped") as caught:
        Replica(str(path), proxy.url, timeout=5.0).open()
    assert "no data is at risk" in str(caught.value)
    assert not path.exists()
    proxy.after = None
    return path.with_name(path.name + "-nearlite") / "bootstrap.part"


def whole(served: primaries.Served, path: Path, url: str) -> tuple[int, list[Progress]]:
    """The download goes on to its end; bytes that it received, and what it told."""
    told: list[Progress] = []
    replica = Replica(str(path), url, progress=told.append)
    replica.open()
    replica.sync()
    state, found = replica._applier.full_hash()
    assert state.hash == found
    replica.close()
    assert not (path.with_name(path.name + "-nearlite") / "bootstrap.part").exists()
    with closing(reader(path)) as stock, closing(reader(served.path)) as source:
        assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for sql in ("SELECT * FROM t", "SELECT * FROM sqlite_schema"):
            assert stock.execute(sql).fetchall() == source.execute(sql).fetchall()
    return told[-1].bytes, told


def test_it_goes_on_where_it_stopped_and_the_file_appears_when_it_is_whole(
    served: primaries.Served, proxy: Cut, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    part = broken_off(proxy, path, 15_000_000)
    held = part.stat().st_size
    assert 13_000_000 < held < 15_000_000
    received, told = whole(served, path, proxy.url)
    assert received < path.stat().st_size - held + 200_000
    assert told[0].pages == told[0].held == held // slot_size(PAGE)
    assert told[0].seconds_left is None
    assert abs(told[0].total_pages - path.stat().st_size // slot_size(PAGE)) <= 1
    assert told[-1].seconds_left == 0.0
    assert all(step.rate > 0 for step in told[1:])


def test_it_is_broken_off_again_and_again(
    served: primaries.Served, proxy: Cut, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    sizes = [broken_off(proxy, path, 5_000_000).stat().st_size for _ in range(3)]
    assert sizes == sorted(set(sizes))
    whole(served, path, proxy.url)


def test_what_was_written_meanwhile_is_in_it(
    served: primaries.Served, proxy: Cut, tmp_path: Path
) -> None:
    """Also when the log has forgotten where the first download began, and the database has shrunk."""
    path = tmp_path / "replica.db"
    broken_off(proxy, path, 12_000_000)
    remote = served.remote(isolation_level=None)
    remote.execute("UPDATE t SET b = randomblob(100000) WHERE a % 40 = 1")
    received, _ = whole(served, path, proxy.url)
    assert received < 12_000_000
    other = tmp_path / "other.db"
    broken_off(proxy, other, 12_000_000)
    remote.execute("DELETE FROM t WHERE a > 50")
    remote.execute("VACUUM")
    whole(served, other, proxy.url)


def test_nothing_of_what_was_left_is_believed(
    served: primaries.Served, proxy: Cut, tmp_path: Path
) -> None:
    """A loss of power leaves zeros and old blocks; somebody else's file has the name; half a page."""
    path = tmp_path / "replica.db"
    part = broken_off(proxy, path, 12_000_000)
    with part.open("r+b") as file:
        file.seek(40 * PAGE)
        file.write(bytes(100 * PAGE))
        file.seek(900 * PAGE)
        file.write(random.Random(5).randbytes(3 * PAGE))
    os.truncate(part, part.stat().st_size - 100)
    whole(served, path, proxy.url)
    for n, content in enumerate([b"", b"SQLite format 3\0", b"x" * 100_000, bytes(9000)]):
        path = tmp_path / f"replica{n}.db"
        folder = tmp_path / f"replica{n}.db-nearlite"
        folder.mkdir()
        (folder / "bootstrap.part").write_bytes(content)
        whole(served, path, proxy.url)


def test_a_killed_client_goes_on(served: primaries.Served, tmp_path: Path) -> None:
    path = tmp_path / "replica.db"
    child = stack.Process(stack.run_replica, str(path), served.url, [("bootstrap.write", 10)])
    assert child.messages() == []
    assert child.join() == -9
    part = tmp_path / "replica.db-nearlite" / "bootstrap.part"
    held = part.stat().st_size
    assert held > PAGE
    received, _ = whole(served, path, served.url)
    assert received < path.stat().st_size - held + 200_000


def test_impossible_pages_are_refused(served: primaries.Served) -> None:
    import urllib.error
    import urllib.request

    padded = "00000000001"  # harmless in its first digits
    for text in ("0", "-1", "x", "4294967296", "%C2%B2", padded + "0" * 9, padded + "0" * 5000):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{served.url}/nl/v1/snapshot?from={text}", timeout=10)
        assert caught.value.code == 400
        caught.value.close()


def test_a_file_that_has_its_name_already_is_not_written_again(
    served: primaries.Served, tmp_path: Path
) -> None:
    """The process was killed between the two names: later the replica is moved away and made anew."""
    path, moved = tmp_path / "replica.db", tmp_path / "moved.db"
    replica = Replica(str(path), served.url)
    replica.open()
    replica.sync()
    replica.close()
    part = tmp_path / "replica.db-nearlite" / "bootstrap.part"
    os.link(path, part)
    path.rename(moved)
    before = moved.read_bytes()
    served.remote(isolation_level=None).execute("UPDATE t SET b = randomblob(100) WHERE a % 40 = 2")
    whole(served, path, served.url)
    assert moved.read_bytes() == before


def test_who_waits_while_another_process_creates_the_file_sees_its_part_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path / "replica.db"))
    folder.make()
    folder.part.write_bytes(b"x")
    with folder.creating(1.0):
        stat = Path.stat

        def just_gone(path: Path, **options: bool) -> os.stat_result:
            found = stat(path, **options)
            if path == folder.part:
                path.unlink()  # the other process has placed it
            return found

        monkeypatch.setattr(Path, "stat", just_gone)
        with pytest.raises(OfflineError), folder.creating(0.1):
            pass
