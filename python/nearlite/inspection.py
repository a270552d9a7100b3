"""What a file or a primary says about itself, and whether it is true; and copies of it."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nearlite
from nearlite import wire
from nearlite._native._lib import NotReplicaError
from nearlite._native.applier import Applier, State
from nearlite._native.frames import SET_HEADER_SIZE, SetHeader
from nearlite._native.sealing import Key
from nearlite.ahead import NONE_MISSING, Ahead, Lag, ask_status
from nearlite.bootstrap import Folder
from nearlite.errors import AnswerError, Error, OperationalError, SyncError
from nearlite.failing import unwritable
from nearlite.http import Deadline, Response, Token, Transport
from nearlite.network import DEFAULT, Network
from nearlite.position import Position
from nearlite.pulling import SyncResult
from nearlite.replica import Replica
from nearlite.sync import Local, Pull, refusal
from nearlite.tally import frames_between

# Of the numbers that a syncing process leaves, what tells something to somebody else.
_TOLD = (
    "primary_position",
    "follows",
    "answers",
    "page_sets",
    "transactions",
    "pages_received",
    "page_bytes",
    "wire_bytes",
    "sync_count",
    "sync_p50",
    "sync_p99",
    "sync_longest",
    "sync_histogram",
    "visible_count",
    "visible_p50",
    "visible_p99",
    "visible_longest",
    "visible_histogram",
    "last_error",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was verified.

    Attributes:
      name: what was looked at.
      passed: whether it holds.
      text: what was found.

    """

    name: str
    passed: bool
    text: str


def file_status(path: Path, key: Key | None = None) -> dict[str, Any]:
    """What the file is: a replica with its position and state hash, or an ordinary database.

    Raises:
      Error: it is no SQLite database, or cannot be read.

    """
    state = _replica_state(path, key)
    if state is None:
        with closing(_reader(path, key)) as database:
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            (page_size,) = database.execute("PRAGMA page_size").fetchone()
        return {"kind": "database", "page_size": page_size, "pages": pages}
    return {
        "kind": "replica",
        "position": str(state.position),
        "hash": f"{state.hash:016x}",
        "page_size": state.page_size,
        "pages": state.pages,
        "wal_frames": state.wal_frames,
        **_replication(path, state),
    }


def _replication(path: Path, state: State) -> dict[str, Any]:
    """What is known of its syncs: by the time of a file, and the numbers that the syncing process left."""
    folder = Folder(os.path.realpath(path))
    told = folder.published()
    found: dict[str, Any] = {"lag": folder.seconds_since_equal()}
    if told:
        named = told.get("primary_position")
        primary = Position.parse(named) if isinstance(named, str) else None
        told["pages_received"] = told.pop("pages", None)  # "pages" is the size of the file
        found |= {name: told[name] for name in _TOLD if name in told}
        found["frames_behind"] = frames_between(state.position, primary)
        found |= _told_lag(told, state.position, primary)
        found["counted"] = max(0.0, time.time() - float(told["at"]))
    return found


def compare(found: dict[str, Any], primary: dict[str, Any]) -> dict[str, Any]:
    """A replica's status with what its primary says of itself: how far it is behind.

    Args:
      found: `file_status` of the replica.
      primary: `primary_status`, asked about the position in `found`.
    """
    here, there = Position.parse(found["position"]), Position.parse(primary["position"])
    ahead = Ahead()
    ahead.status(here, wire.Status.decode(json.dumps(primary).encode()), time.monotonic())
    return {
        **found,
        "primary_position": primary["position"],
        "frames_behind": frames_between(here, there),
        **_named(ahead.lag(here, there)),
    }


def _named(lag: Lag) -> dict[str, Any]:
    return {
        "transactions_behind": lag.transactions,
        "bytes_behind": lag.bytes,
        "seconds_behind": lag.seconds,
    }


def _told_lag(told: dict[str, Any], here: Position, there: Position | None) -> dict[str, Any]:
    """What the process that syncs said, as far as it is still true of the file."""
    if there is not None and there.lineage == here.lineage and there <= here:
        return _named(NONE_MISSING)
    names = _named(Lag())
    return {name: told.get(name) for name in names} if told.get("position") == str(here) else names


def primary_status(
    url: str, *, token: Token, timeout: float, network: Network = DEFAULT, since: str | None = None
) -> dict[str, Any]:
    """What the primary answers to `GET nl/v1/status`; `since`: and how far it is ahead of there.

    Raises:
      SyncError: it cannot be reached, refuses the token, or is not a nearlite primary.

    """
    transport = Transport(url, token=token, timeout=timeout, network=network)
    start = None if since is None else Position.parse(since)
    try:
        _, body = ask_status(transport, Deadline(timeout), start)
    finally:
        transport.close()
    return {"kind": "primary", **json.loads(body)}


def verify(
    path: Path,
    against: str | None,
    *,
    token: Token,
    timeout: float,
    network: Network = DEFAULT,
    key: Key | None = None,
) -> Iterator[Check]:
    """Check a file from the inside, and a replica against its own header and its primary.

    Nothing is changed. Memory stays small whatever the size: SQLite and C read page by page.

    Args:
      path: any SQLite database.
      against: URL of the primary to compare with, or None.
      token: what that primary wants.
      timeout: seconds for the exchange with it.
      key: of a sealed file.

    """
    with closing(_reader(path, key)) as database:
        found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(10)")]
    yield Check("integrity_check", found == ["ok"], "; ".join(found))
    state = _replica_state(path, key)
    if state is None:
        if against is not None:
            yield Check("replica", False, "an ordinary database: it holds no position to compare")
        return
    with closing(Applier(str(path), key=key)) as applier:
        state, pages = applier.full_hash()
    text = f"header {state.hash:016x}, pages {pages:016x}, at {state.position}"
    yield Check("state hash", state.hash == pages, text)
    if against is not None:
        yield _compared(state, against, token, timeout, network)


def repair(
    path: Path,
    url: str,
    *,
    token: Token,
    timeout: float,
    network: Network = DEFAULT,
    key: Key | None = None,
) -> SyncResult:
    """Make every page of a replica what the primary has, as one transaction.

    Raises:
      SyncError: one of its subclasses; the file is as it was. A replica of another history than the
        primary's is refused: `nearlite sync --repair` overwrites it.

    """
    replica = Replica(str(path), url, token=token, timeout=timeout, network=network, key=key)
    with closing(replica):
        replica.open()
        return replica.repair("it was asked for")


def backup_file(source: Path, out: Path, key: Key | None = None) -> None:
    """Write one consistent state of a database to `out`, which must not exist.

    VACUUM INTO reads in one transaction, drops a replica's header and leaves no -wal to lose. That of a
    sealed database is sealed with the same key.

    Raises:
      FileExistsError: `out` appeared meanwhile; it was not touched.
      Error: the database cannot be read, or the disk is full; `out` does not exist.

    """
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        with closing(_reader(source, key)) as database:
            database.execute("VACUUM INTO ?", (str(part),))
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # Rule C3: a -wal that outlived its database would be replayed over the new file.
        for suffix in ("-wal", "-nlwal", "-shm", "-journal"):
            if not out.exists():
                out.with_name(out.name + suffix).unlink(missing_ok=True)
        os.link(part, out)  # unlike rename, fails when the name is taken
    finally:
        part.unlink(missing_ok=True)


def backup_primary(
    url: str,
    out: Path,
    *,
    token: Token,
    timeout: float,
    network: Network = DEFAULT,
    key: Key | None = None,
) -> None:
    """As `backup_file`, of a primary: its pages are downloaded beside `out` first."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
        replica = Replica(
            str(Path(folder) / "replica.db"),
            url,
            token=token,
            timeout=timeout,
            network=network,
            key=key,
        )
        with closing(replica):
            replica.open()
            replica.sync()
        backup_file(Path(folder) / "replica.db", out, key)


def _compared(state: State, url: str, token: Token, timeout: float, network: Network) -> Check:
    """Ask the primary for changes since the replica's position: it answers only if hashes agree."""
    local = Local(state.position, state.hash)
    ask = f"nl/v1/changes/{state.position}?hash={state.hash:016x}&wait=0&z=0"
    transport = Transport(url, token=token, timeout=timeout, network=network)
    try:
        with transport.request("GET", ask, deadline=Deadline(timeout)) as response:
            if response.status == 204:
                Pull(local, compress=False).nothing_new(response.header("nearlite-position"))
                return Check("against the primary", True, f"equal at {state.position}")
            if response.status != 200:
                if response.status != 409:
                    raise _refused(response, local)
                return Check("against the primary", False, _refused(response, local).message)
            header = SetHeader.decode(_first_bytes(response, SET_HEADER_SIZE))
    finally:
        transport.close()
    same = header.start == state.position and header.hash_start == state.hash
    text = f"equal at {state.position}, {header.count:,} pages behind {header.target}"
    return Check("against the primary", same, text if same else f"differs at {state.position}")


def _first_bytes(response: Response, size: int) -> bytearray:
    data = bytearray(size)
    have = 0
    while have < size:
        count = response.readinto(memoryview(data)[have:])
        if count == 0:
            raise AnswerError("the primary's answer was cut off", state="nothing was changed")
        have += count
    return data


def _refused(response: Response, local: Local | None) -> SyncError:
    code, message = wire.decode_error(response.error_body())
    return refusal(response.status, code, message, local)


def _replica_state(path: Path, key: Key | None) -> State | None:
    """Header of a replica; None when the file is another SQLite database."""
    # Read as any database first: what is none then fails in SQLite's own words.
    try:
        with closing(_reader(path, key)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except Error as error:
        shut = unwritable(str(path))
        if shut is None:
            raise
        raise OperationalError(
            f"{path} could not be read: SQLite shares memory with whoever writes a database, and this process "
            f"may not write {shut} ({error})"
        ) from error
    with closing(Applier(str(path), key=key)) as applier:
        try:
            return applier.state()
        except NotReplicaError:
            return None


def _reader(path: Path, key: Key | None) -> Any:
    """A connection that reads `path` and creates nothing."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return nearlite.connect(uri, uri=True, encryption_key=key)
