"""Upstreams that are put back to a backup, replaced, or hostile: what was applied stays what it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_background import eventually
from test_foreign_frames import (
    BASE,
    EMPTY,
    FINE,
    FIRST,
    GRPC,
    Liar,
    Log,
    first_page,
    framed,
    greeting,
    in_wal,
    logged,
    message,
    replica,
    whole,
)

from nearlite import errors
from nearlite.foreign import ForeignReplica
from nearlite.gathering import PAGE_SIZE

OTHER = in_wal(2, 2, b"\x0d" + b"other" + bytes(PAGE_SIZE - 6))
FAILED = message(b"grpc-status:9\r\ngrpc-message:NO_HELLO\r\n", 0x80)


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.close()


@pytest.fixture
def log(liar: Liar) -> Log:
    """Of a server that names no lineage, with two commits."""
    made = Log(BASE)
    made.generations[0][1].extend([FINE, FINE])
    liar.says = made.says
    return made


# ---------------------------------------------------------------- libSQL's sync


def test_a_backup_that_has_grown_since_is_noticed_before_it_is_applied(
    liar: Liar, log: Log, tmp_path: Path
) -> None:
    """No request failed meanwhile, and it has more frames than the replica."""
    with replica(liar, tmp_path) as here:
        here.sync()
        before = here.state()
        assert before.position.frame == 2
        log.generations[0][1][:] = [FINE, OTHER, OTHER, OTHER]
        for _ in range(2):
            with pytest.raises(errors.LineageError):
                here.sync()
            whole(here, before)
        assert here.estranged
        log.generations[0][1][:] = [FINE, FINE, OTHER]
        here.sync()
        assert here.state().position.frame == 3
        assert not here.estranged


def test_a_backup_whose_generation_has_ended_since_is_noticed(
    liar: Liar, log: Log, tmp_path: Path
) -> None:
    """Whether it ended with as many frames as the replica has seen of it, or with fewer."""
    with replica(liar, tmp_path) as here:
        here.sync()
        before = here.state()
        log.generations += [(BASE, [])]
        for frames, following in (
            ([FINE, OTHER], []),
            ([FINE, OTHER], [OTHER]),
            ([FINE], []),
            ([FINE], [OTHER]),
        ):
            log.generations[0][1][:], log.generations[1][1][:] = frames, following
            for _ in range(2):
                with pytest.raises((errors.LineageError, errors.PrimaryRestoredError)):
                    here.sync()
                whole(here, before)
            log.generations.pop()
            log.generations[0][1][:] = [FINE, FINE]
            here.sync()  # nothing is doubtful
            log.generations += [(BASE, [])]
        here.sync()
        assert here.state().position.generation == 2


def test_what_led_here_is_looked_at_by_one_small_request_only_when_there_is_more(
    liar: Liar, log: Log, tmp_path: Path
) -> None:
    with replica(liar, tmp_path) as here:
        here.sync()
        asked: list[str] = []

        def says(path: str) -> Any:
            asked.append(path)
            return (200, {}, [b'{"results": []}']) if "pipeline" in path else log.says(path)

        liar.says = says
        here.sync()
        assert asked == ["/sync/1/3/131"]
        asked.clear()
        log.generations[0][1].append(FINE)
        here.sync()
        assert asked == ["/sync/1/3/131", "/sync/1/2/3", "/sync/1/4/132"]
        asked.clear()
        here.forward(b'{"requests": []}', visible=True)  # which expects more: it comes by the way
        assert [path for path in asked if "sync" in path] == ["/sync/1/3/131", "/sync/1/4/132"]


def test_a_restored_upstream_that_does_not_tell_its_last_frame(
    liar: Liar, log: Log, tmp_path: Path
) -> None:
    def plainly(path: str) -> Any:
        status, headers, pieces = log.says(path)
        if status == 400:
            told = json.loads(pieces[0])
            del told["max_frame_no"]
            pieces = [json.dumps(told).encode()]
        return status, headers, pieces

    liar.says = plainly
    with replica(liar, tmp_path) as here:
        here.sync()
        before = here.state()
    log.generations[0][1].pop()  # while nobody looked
    with replica(liar, tmp_path) as here:
        with pytest.raises(errors.PrimaryRestoredError):
            here.sync()
        whole(here, before)
        log.generations[0][1].append(FINE)
        here.sync()


def test_nothing_is_written_into_another_history(liar: Liar, log: Log, tmp_path: Path) -> None:
    """Neither when that is known, nor by the first write after a start."""
    with replica(liar, tmp_path):
        pass
    right = list(log.generations[0][1])
    log.generations[0][1][:] = [FINE, OTHER, OTHER]
    ran: list[str] = []

    def says(path: str) -> Any:
        if "pipeline" in path:
            ran.append(path)
            return 200, {}, [b'{"results": []}']
        return log.says(path)

    liar.says = says
    with replica(liar, tmp_path) as here:
        for _ in range(2):
            with pytest.raises(errors.LineageError) as refused:
                here.forward(b'{"requests": []}', visible=True)
            assert refused.value.state.startswith("nothing was carried out")
        assert ran == []
        log.generations[0][1][:] = right
        here.forward(b'{"requests": []}', visible=True)
        assert ran == ["/v3/pipeline"]


@pytest.mark.parametrize("size", [1, 3])
def test_a_commit_that_page_1_contradicts(liar: Liar, log: Log, tmp_path: Path, size: int) -> None:
    """The file would not be what its own header says."""
    frames = log.generations[0][1]
    with replica(liar, tmp_path) as here:
        here.sync()
        before = here.state()
        more = [in_wal(3, 0, BASE[PAGE_SIZE:]), in_wal(2, size, BASE[PAGE_SIZE:])]
        frames += more
        with pytest.raises(errors.AnswerError, match="page 1 says"):
            here.sync()
        whole(here, before)
        frames[2:] = [in_wal(1, 0, first_page(size)), *more]
        here.sync()
        assert here.state().pages == size
        whole(here, here.state())


@pytest.mark.parametrize("size", [512, 1024, 2048, 8192, 16384, 32768, 65536])
def test_other_page_sizes_are_refused_by_name(liar: Liar, tmp_path: Path, size: int) -> None:
    told = (1 if size == 65536 else size).to_bytes(2, "big")
    base = (EMPTY[:16] + told + EMPTY[18:] + bytes(65536))[: 2 * size]
    liar.says = Log(base.ljust(PAGE_SIZE, b"\0")).says
    with pytest.raises(errors.AnswerError, match="pages of 4096"), replica(liar, tmp_path):
        pass
    assert not (tmp_path / "replica.db").exists()


DEEP = [b"[" * 50000, b'{"x":' * 20000, b'{"x":' + b"[" * 50000]


@pytest.mark.parametrize("body", DEEP)
def test_answers_that_are_nested_too_deeply(
    liar: Liar, log: Log, tmp_path: Path, body: bytes
) -> None:
    """They are errors of ours wherever they come, or nothing."""
    with replica(liar, tmp_path) as here:
        here.sync()
        before = here.state()
        for status in (200, 400, 403, 500):
            liar.says = lambda _, status=status: (status, {}, [body])  # type: ignore[misc]
            with pytest.raises(errors.SyncError):
                here.sync()
        rows = b'{"results":[{"response":{"result":{"step_results":[' + b'{"step_results":[' * 20000
        for answer in (body, rows):
            liar.says = lambda path, answer=answer: (  # type: ignore[misc]
                (200, {}, [answer]) if "pipeline" in path else log.says(path)
            )
            assert here.forward(b'{"requests": []}', visible=True) == answer
        whole(here, before)
    liar.says = lambda _: (200, {}, [body])
    for protocol in ("auto", "libsql"):
        with (
            pytest.raises(errors.SyncError),
            closing(ForeignReplica(str(tmp_path / "n.db"), liar.url, protocol=protocol)) as made,
        ):
            made.open()


def test_what_a_server_repeats_of_the_token_is_in_no_error(liar: Liar, tmp_path: Path) -> None:
    def made(protocol: Any) -> ForeignReplica:
        return ForeignReplica(
            str(tmp_path / "r.db"), liar.url, protocol=protocol, token="s3cret.ey"
        )

    words = json.dumps({"error": "no such token: s3cret.ey"}).encode()
    grpc = {**GRPC, "grpc-status": "16", "grpc-message": "bad%20s3cret.ey"}
    trailers = message(b"grpc-status:16\r\ngrpc-message:bad s3cret%2Eey\r\n", 0x80)
    for says in (
        lambda _: (401, {}, [words]),
        lambda _: (403, {}, [words]),
        lambda _: (200, dict(grpc), []),
        lambda _: (200, dict(GRPC), [trailers]),
    ):
        liar.says = says  # type: ignore[assignment]
        for protocol in ("auto", "libsql", "sqld"):
            with closing(made(protocol)) as here, pytest.raises(errors.SyncError) as refused:
                here.open()
            assert "s3cret" not in str(refused.value)


def test_the_token_follows_no_redirect(liar: Liar, log: Log, tmp_path: Path) -> None:
    other = Liar()
    asked: list[str] = []
    other.says = lambda path: (asked.append(path), log.says(path))[1]
    try:
        with replica(liar, tmp_path) as here:
            before = here.state()
            for status in (301, 302, 303, 307, 308):
                liar.says = lambda path, status=status: (  # type: ignore[misc]
                    status,
                    {"location": other.url + path},
                    [],
                )
                with pytest.raises(errors.SyncError, match=str(status)):
                    here.sync()
                with pytest.raises(errors.SyncError, match=str(status)):
                    here.forward(b'{"requests": []}', visible=True)
            whole(here, before)
    finally:
        other.close()
    assert asked == []


def test_a_repair_is_no_silence(liar: Liar, log: Log, tmp_path: Path) -> None:
    """Nor is a first download: the upstream is not taken to be away because it is long."""
    with closing(ForeignReplica(str(tmp_path / "r.db"), liar.url, protocol="libsql")) as here:
        here.heard_at = -1.0
        here.open()
        assert here.heard_at > 0
        heard: list[float] = []

        def says(path: str) -> Any:
            if not path.startswith("/sync"):
                return log.says(path)
            heard.append(here.heard_at)
            return (410, {}, []) if len(heard) == 1 else log.says(path)

        liar.says = says
        log.generations.append((BASE[:-1] + b"x", [OTHER]))
        here.heard_at = -1.0
        here.sync()
        # It was refused; then the base had come; then frames had.
        assert [at > 0 for at in heard] == [False, True, True]
        assert heard[2] > heard[1]


# ---------------------------------------------------------------- what hangs, and what is killed


def test_what_hangs_ends_with_the_replica(liar: Liar, log: Log, tmp_path: Path) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def endless() -> Iterator[bytes]:
        hangs.set()
        goes_on.wait(60)
        yield b""

    with replica(liar, tmp_path) as here, ThreadPoolExecutor(1) as pool:
        here.timeout = 600.0
        liar.says = lambda _: (200, {"content-length": "4120"}, endless())
        try:
            syncs = pool.submit(here.sync)
            assert hangs.wait(20)
            here.halt()
            with pytest.raises(errors.SyncError):
                syncs.result(20)
        finally:
            goes_on.set()


def proxy(liar: Liar, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nearlite", "proxy", "--upstream", liar.url]
    return subprocess.Popen(
        [*command, "--upstream-protocol", "libsql", "--path", str(path), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "NEARLITE_SYNC_INTERVAL": "3600"},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_first_download_that_is_ended_or_killed(
    liar: Liar, log: Log, tmp_path: Path, number: int
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    path, part = tmp_path / "edge.db", tmp_path / "edge.db-nearlite" / "bootstrap.part"
    log.generations[0] = (first_page(2000) + bytes(1999 * PAGE_SIZE), [])

    def halves() -> Iterator[bytes]:
        base = log.generations[0][0]
        yield base[: len(base) // 2]
        hangs.set()
        goes_on.wait(60)

    def says(path: str) -> Any:
        if path.startswith("/export"):
            return 200, {"content-length": str(len(log.generations[0][0]))}, halves()
        return log.says(path)

    liar.says = says
    process = proxy(liar, path)
    try:
        assert hangs.wait(60)
        eventually(lambda: part.exists() and part.stat().st_size > 700 * PAGE_SIZE)
        process.send_signal(number)
        process.communicate(timeout=20)
    finally:
        process.kill()
        goes_on.set()
    assert not path.exists()
    if number == signal.SIGTERM:
        assert process.returncode == 0
        assert not part.exists()
    log.generations[0] = (BASE, [FINE])
    liar.says = log.says
    process = proxy(liar, path)
    try:
        assert process.stdout is not None
        assert "port " in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert path.stat().st_size == 2 * PAGE_SIZE
    assert not part.exists()


# ---------------------------------------------------------------- sqld


class SqldLog:
    """sqld with a log of frames, that forgets who has greeted it when it is started anew."""

    def __init__(self, liar: Liar, *frames: bytes) -> None:
        self.liar = liar
        self.frames = list(frames)
        self.greeted = False
        self.asked: list[str] = []

    def says(self, path: str) -> Any:
        method = path.rpartition("/")[2]
        self.asked.append(method)
        if method == "Hello":
            self.greeted = True
            return 200, dict(GRPC), [greeting(len(self.frames))]
        if not self.greeted:
            return 200, dict(GRPC), [FAILED]
        first = sum((byte & 127) << 7 * at for at, byte in enumerate(self.liar.body[6:]))
        return 200, dict(GRPC), [framed(*self.frames[first : first + 1024])]


@pytest.fixture
def sqld_log(liar: Liar) -> SqldLog:
    """With two frames, of one commit each."""
    first = logged(0, 1, 0, first_page(2)), logged(1, 2, 2, bytes(PAGE_SIZE))
    made = SqldLog(liar, *first)
    liar.says = made.says
    return made


@pytest.mark.parametrize("same", [True, False])
def test_a_log_after_a_start_is_looked_at(
    liar: Liar, sqld_log: SqldLog, tmp_path: Path, same: bool
) -> None:
    """The same log by its name, put back to a backup and grown since: what follows does not go on from here."""
    log = sqld_log
    with replica(liar, tmp_path, "sqld") as here:
        before = here.state()
        assert before.position.frame == 2
        log.greeted = False
        log.asked.clear()
        if not same:
            log.frames[1] = logged(1, 2, 2, b"x" * PAGE_SIZE)
        log.frames.append(logged(2, 2, 2, b"y" * PAGE_SIZE))
        if same:
            here.sync()
            assert here.state().position.frame == 3
            assert log.asked == ["BatchLogEntries", "Hello", "BatchLogEntries"]
        else:
            with pytest.raises(errors.LineageError):
                here.sync()
            whole(here, before)


def test_a_log_that_is_started_anew_in_the_middle(
    liar: Liar, sqld_log: SqldLog, tmp_path: Path
) -> None:
    """What came before is not joined with what comes now."""
    log = sqld_log

    def says(path: str) -> Any:
        told = log.says(path)
        log.greeted = False  # after each answer
        return told

    with replica(liar, tmp_path, "sqld") as here:
        before = here.state()
        log.frames += [logged(n, 2, 2, n.to_bytes(PAGE_SIZE, "big")) for n in range(2, 1100)]
        liar.says = says
        with pytest.raises(errors.OfflineError, match="started anew"):
            here.sync()
        assert log.asked[-2:] == ["BatchLogEntries", "BatchLogEntries"]
        whole(here, before)
        liar.says = log.says
        here.sync()
        assert here.state().position.frame == 1100


def test_messages_without_an_end(liar: Liar, tmp_path: Path) -> None:
    """They are received, and bring nothing: no deadline ends that."""
    ended = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while not ended.is_set():
                yield bytes(5) * 20000
        finally:
            ended.set()

    def says(path: str) -> Any:
        if path.endswith("Hello"):
            return 200, dict(GRPC), [greeting()]
        return 200, dict(GRPC), endless()

    liar.says = lambda path: (
        says(path) if path.endswith("Hello") else (200, dict(GRPC), [framed(FIRST)])
    )
    with replica(liar, tmp_path, "sqld") as here, ThreadPoolExecutor(1) as pool:
        before = here.state()
        liar.says = says
        try:
            with pytest.raises(errors.AnswerError, match="more than one message"):
                pool.submit(here.sync).result(30)
        finally:
            ended.set()
        whole(here, before)
