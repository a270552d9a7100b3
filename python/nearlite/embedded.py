"""An embedded replica's connection: reads on the local file, writes on the primary.

Where a statement runs (placing.py):

* it only reads: here; inside a write transaction on the primary, whose rows only it can see.
* it writes the main database: on the primary.
* TEMP tables and ATTACHed files: here, they belong to this connection.
* it does not compile here: the primary judges (its schema may be newer).
* BEGIN and SAVEPOINT are run here and remembered; the first write carries them to the primary. A
  transaction that never writes the main database never leaves this process. BEGIN IMMEDIATE and
  EXCLUSIVE want the primary's write lock: there, at once.
* of a script, the statements that lie between two that must run here go there as one request.

Before every request, rows that are still to be fetched are read ahead (dbapi/ahead.py): a statement that
is half read would keep the connection on its old snapshot (rule B8).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Literal

from nearlite._native import database as flags
from nearlite._native.codes import SQLITE_INTERRUPT
from nearlite._native.database import NO_PARAMETERS, Database, is_dml
from nearlite.asking import NOTHING
from nearlite.background import check_interval
from nearlite.batches import Names
from nearlite.dbapi.binding import encode
from nearlite.dbapi.connection import LEGACY_TRANSACTION_CONTROL, warns_of_positions
from nearlite.dbapi.constants import (
    SQLITE_DBCONFIG_ENABLE_FKEY,
    SQLITE_DBCONFIG_ENABLE_TRIGGER,
    SQLITE_LIMIT_SQL_LENGTH,
)
from nearlite.dbapi.cursor import Cursor
from nearlite.durations import busy_ms, duration
from nearlite.errors import (
    DatabaseError,
    DataError,
    Error,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    SyncError,
)
from nearlite.freshness import Freshness, checked
from nearlite.http import Token, normalise_url
from nearlite.keys import EncryptionKey, key_of
from nearlite.network import Certificate, Network, Verify
from nearlite.placing import Place, Route, place_in_script
from nearlite.position import Position
from nearlite.receiving import ProgressCallback
from nearlite.remote import _token_of_environment
from nearlite.replica import Replica
from nearlite.replicating import ReplicatingConnection
from nearlite.script import statements_of
from nearlite.sharing import abandon, acquire, release
from nearlite.upstream import SEND_BYTES, Notes, Stream

_KEPT_ROUTES: Final = 512

# What SQLite says of names that may be those of callbacks of this connection.
_UNKNOWN: Final = ("no such function: ", "no such collation sequence: ")
_NOT_THERE: Final = "where what this connection defines does not exist"

# What it says of limits, which are the connection's.
_TOO_MUCH: Final = ("too many ", "Expression tree is too large", "at most ")
_COUNTERS: Final = "SELECT last_insert_rowid(), changes(), total_changes()"


class ReplicaConnection(ReplicatingConnection):
    """A connection to an embedded replica; see ``nearlite.connect``.

    Args:
      database: path of the replica; created from the primary when it does not exist.
      sync_url: the primary's URL.
      auth_token: bearer token, or a callable that answers one; default: NEARLITE_AUTH_TOKEN.
      sync_interval: seconds between syncs in the background; "live": every change as it happens; None:
        only `sync()` and writes sync.
      read_your_writes: a write returns when this file holds it; False: it arrives with a later sync.
      freshness: how old what is read may be: "local", "primary" or seconds; see the property.
      network_timeout: seconds for any one call; in a long download, for any 64 KiB of it.
      verify, cert, proxy, headers: how the primary is reached; see :class:`nearlite.network.Network`.
      progress: called with a `Progress` during long downloads.
      adopt: a file that is no replica, a copy of the primary's database say, becomes one: what it
        holds that the primary does not is overwritten.
      encryption_key: the file is sealed, and created so (docs/encryption.md): see
        :func:`nearlite.keys.key_of` for what may be given.

    Raises:
      NotAReplicaError: there is a file, and it is not a replica; it was not touched.
      OfflineError: there is no file and the primary cannot be reached.
      ProgrammingError: a path that cannot hold a replica, or no such URL.
      WrongKeyError: the file is sealed with another key, or not sealed at all, or is and no key was given.
    """

    @warns_of_positions
    def __init__(
        self,
        database: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        timeout: float = 5.0,
        detect_types: int = 0,
        isolation_level: Literal["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None = "",
        check_same_thread: bool = True,
        factory: Any = None,  # noqa: ARG002
        cached_statements: int = 128,
        uri: bool = False,
        *,
        sync_url: str,
        autocommit: bool | int = LEGACY_TRANSACTION_CONTROL,
        auth_token: Token = None,
        sync_interval: float | Literal["live"] | None = None,
        read_your_writes: bool = True,
        freshness: Freshness = "local",
        network_timeout: float = 30.0,
        verify: Verify = True,
        cert: Certificate | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
        adopt: bool = False,
        encryption_key: EncryptionKey | None = None,
    ) -> None:
        self._prepare_state(
            detect_types, isolation_level, check_same_thread, cached_statements, autocommit
        )
        checked(freshness)
        check_interval(sync_interval)
        path = _checked_path(database, uri=uri)
        token = auth_token or _token_of_environment
        busy = busy_ms(timeout)
        # The replica is shared with other connections of this process; these are this one's own.
        self._network_timeout = duration("network_timeout", network_timeout)
        self._progress = progress
        network = Network.of(verify, cert, proxy, headers)
        shared = acquire(
            (path, normalise_url(sync_url), token, network),
            None if encryption_key is None else key_of(encryption_key),
            lambda key: Replica(
                path,
                sync_url,
                token=token,
                timeout=self._network_timeout,
                progress=progress,
                network=network,
                adopt=adopt,
                key=key,
            ),
        )
        assert shared.replica is not None
        self._replica = shared.replica
        self._key = self._replica.key
        self._let_go = weakref.finalize(self, abandon, shared, os.getpid())
        self._let_go.atexit = False  # sharing.py sees to the end of the process
        self._visible = read_your_writes
        self._routes: dict[str, Route] = {}
        self._local_statements = self._statements
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()  # with a half-read statement
        self._prepare_forwarding(Stream(self._send))
        try:
            self._replica.check_place()
            # The file exists; with create=False ATTACH could not create others either.
            self._database = Database(path, checkpoint=False, busy_ms=busy, key=self._key)
            self._counting = self._database.prepare(_COUNTERS, own=True)
            self._opened()
            self._set_freshness(freshness)
            self._replica.background.at(sync_interval)
        except BaseException:
            self._open = False
            self._release()
            raise

    def __repr__(self) -> str:
        return f"<nearlite.ReplicaConnection {self._replica.path} of {self._replica.transport.url}>"

    # ------------------------------------------------------------ requests

    def _send(self, body: bytes, visible: bool, notes: Notes) -> bytes:
        # TEMP tables and attached files count here, too.
        notes.counters = self._counting.run(NO_PARAMETERS)[0]
        if self._database.has_snapshot and not self._stream.in_transaction:
            notes.read = self._snapshot()
        try:
            answer = self._replica.forward(
                body, visible=visible, network_timeout=self._network_timeout, notes=notes
            )
            self._wrote(notes)
            return answer
        except SyncError as error:
            if error.code == "SNAPSHOT_STALE":
                with contextlib.suppress(Error):  # the next attempt shall read what is there now
                    self._replica.sync(network_timeout=self._network_timeout)
            raise
        finally:
            self._database.set_counters(*notes.counters)

    def _snapshot(self) -> str:
        """Position and state hash of the snapshot that the open transaction reads."""
        lineage, generation, frame, state_hash = self._header_read()
        return f"{Position(lineage, generation, frame)} {state_hash:016x}"

    # ------------------------------------------------------------ state

    def _in_transaction(self) -> bool:
        return self._stream.in_transaction or self._database.in_transaction

    def _total_changes(self) -> int:
        return self._database.total_changes

    def _before_forward(self) -> None:
        """Rows that are still to be fetched are read ahead: the snapshot is given up."""
        for cursor in list(self._cursors):
            if cursor._statement is not None:
                if cursor._statement.running:
                    continue  # one of its functions is what writes; it goes on in its snapshot
                cursor._read_ahead()
            self._cursors.discard(cursor)

    def _after_forward(self) -> None:
        self._last_rowid = self._database.last_insert_rowid
        inside = self._stream.in_transaction
        if inside:
            self._opening.clear()
        # Inside a transaction there, texts that were compiled for reading here are not at hand.
        if inside == (self._statements is self._local_statements):
            self._statements = {} if inside else self._local_statements

    def _reading(self, cursor: Cursor) -> None:
        self._cursors.add(cursor)

    def _traces(self) -> bool:
        return self._database.traces

    def _tell(self, sql: str, values: Sequence[Any] = ()) -> None:
        if self._database.traces:
            self._database.trace(sql, encode(values))

    # ------------------------------------------------------------ routes

    def _forget_routes(self) -> None:
        """Names may mean something else now: a TEMP table, an attached file."""
        self._routes.clear()
        self._local_statements.clear()
        self._statements.clear()

    def _renamed(self) -> None:
        self._forget_routes()

    def _route(self, sql: str) -> Route:
        """Where a text runs. Raises what compiling it here raises."""
        route = self._routes.get(sql)
        if route is None:
            statement = self._compile(sql)
            route = self._routes[sql] = Route(self._database, sql, statement)
            if len(self._routes) > _KEPT_ROUTES:
                del self._routes[next(iter(self._routes))]
            if route.place is Place.HERE and not self._stream.in_transaction:
                self._give(statement)
        return route

    # ------------------------------------------------------------ statements

    def _execute_elsewhere(self, cursor: Cursor, sql: str, parameters: Any) -> bool:
        try:
            route = self._route(sql)
        except ProgrammingError:
            raise
        except DatabaseError as error:
            if isinstance(error, NotSupportedError) or self._unwanted(error):
                raise
            self._ask_primary(cursor, sql, parameters, error)
            return True
        if route.place is Place.CONTROL:
            self._arranged(sql, parameters, ())
            self._control(sql, route)
            cursor._adopt(NOTHING, [], -1, self._last_rowid)
            return True
        if route.place is Place.SETTING:
            self._remember_setting(sql)
            return False
        if not self._goes_there(route):
            if route.reads_main:
                self._freshen()
            return route.flags & (flags.SCHEMA | flags.ATTACH) != 0 and self._rename(
                cursor, sql, parameters
            )
        values = self._arranged(sql, parameters, route.names)
        opening = self._openings(sql) if route.place is Place.THERE else []
        inside = self._stream.in_transaction or bool(opening)
        try:
            self._forward(cursor, sql, values, opening=opening, may_open=inside)
        except OperationalError as error:
            if self._database.calls_back and str(error).startswith(_UNKNOWN):
                error.args = (f"{error}: the statement runs on the primary, {_NOT_THERE}",)
            raise
        return True

    def _rename(self, cursor: Cursor, sql: str, parameters: Any) -> Literal[True]:
        """Run a statement that changes what names mean on this connection: CREATE TEMP, ATTACH ..."""
        statement = self._take(sql)
        statement.run(encode(self._arranged(sql, parameters, statement.parameters)))
        self._forget_routes()
        cursor._adopt(NOTHING, [], -1, self._last_rowid)
        return True

    def _unwanted(self, error: Error) -> bool:
        """Whether it was the program's own hooks or limits that did not want a statement: nobody is asked."""
        code = getattr(error, "sqlite_errorcode", 0)
        return (
            self._database.denied
            or code & 0xFF == SQLITE_INTERRUPT
            or isinstance(error, DataError)
            or str(error).startswith(_TOO_MUCH)
        )

    def _goes_there(self, route: Route) -> bool:
        if route.place is Place.THERE or (route.reads_main and self._stream.in_transaction):
            if route.flags & flags.IGNORED:
                raise NotSupportedError(
                    "the authorizer has a part of the statement ignored, which the primary, where it "
                    "runs, would not do; nothing was executed"
                )
            if route.place is Place.THERE:
                return True
        if not self._stream.in_transaction:
            return False
        if route.place is Place.BOTH:
            raise NotSupportedError(
                "inside a write transaction the main database is read on the primary, where TEMP "
                "tables and attached files do not exist; nothing was executed. Read from each in a "
                "statement of its own"
            )
        return route.reads_main

    def _ask_primary(self, cursor: Cursor, sql: str, parameters: Any, local: Error) -> None:
        """A text that does not compile here: the primary judges."""
        self._check_text(sql)
        try:
            values = self._arranged(sql, parameters, None)
            self._forward(cursor, sql, values, opening=self._openings(sql), may_open=True)
        except Error as error:
            raise error from local

    def _pending(self) -> list[str]:
        pending = super()._pending()
        if not pending and not self._stream.in_transaction and self._database.in_transaction:
            # A transaction that began here with a TEMP table.
            return [self._begin_text() or "BEGIN"]
        return pending

    def _control(self, sql: str, route: Route) -> None:
        """BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE, ROLLBACK TO."""
        local = self._database.in_transaction
        there = self._stream.in_transaction
        begins = route.flags & flags.TRANSACTION and not route.flags & (
            flags.COMMIT | flags.ROLLBACK
        )
        if there:
            word = "COMMIT" if route.flags & flags.COMMIT else sql
            self._tell(sql)
            self._before_forward()
            try:
                if route.flags & flags.ROLLBACK:
                    self._stream.end("ROLLBACK", visible=False)
                else:
                    self._stream.execute(word, visible=self._visible)
            finally:
                self._after_forward()
            if local and not begins:
                with contextlib.suppress(Error):  # a savepoint that only the primary knows
                    self._database.exec(sql)
        elif begins and not route.flags & flags.READONLY:  # IMMEDIATE, EXCLUSIVE
            if local:
                self._database.exec(sql)  # raises: within a transaction
            self._tell(sql)
            self._before_forward()
            try:
                self._stream.execute(sql, visible=False)
            finally:
                self._after_forward()
        else:
            self._database.exec(sql)
            self._opening.append(sql)
        if local and not begins:
            self._forget_routes()  # a rollback may have undone a CREATE TEMP TABLE
        if not self._database.in_transaction:
            self._opening.clear()

    def _remember_setting(self, sql: str) -> None:
        statement = self._compile(sql)
        if self._in_transaction() and statement.pragma == "foreign_keys":
            return  # without effect inside a transaction, as SQLite documents
        if not self._stream.in_transaction:
            self._stream.close()  # the next statement opens a stream under the new setting
        self._stream.settings[statement.pragma] = sql

    def setconfig(self, op: int, enable: bool = True, /) -> None:
        """As of any connection; writes on the primary run under the switch for foreign keys, too.

        Raises:
          NotSupportedError: it would let a replica be changed, or triggers of the primary be left out.
          ProgrammingError: foreign keys inside a transaction.
        """
        if op == SQLITE_DBCONFIG_ENABLE_TRIGGER and not enable:
            raise NotSupportedError("what is written runs on the primary, with its triggers")
        keys = op == SQLITE_DBCONFIG_ENABLE_FKEY
        if keys:
            self._check()
            self._settle()
            if self._in_transaction():
                raise ProgrammingError("that switch cannot be changed inside a transaction")
        super().setconfig(op, enable)
        if keys:
            with self._guard():
                self._remember_setting(f"PRAGMA foreign_keys = {int(bool(enable))}")

    # ------------------------------------------------------------ copies

    @contextlib.contextmanager
    def _copied(self, name: str) -> Generator[Database, None, None]:
        """What was committed, as a database like any other: no program may write to a copy of a replica's pages."""
        if name.lower() != "main":
            yield self._database
            return
        with tempfile.TemporaryDirectory(prefix="nearlite-") as folder:
            path = os.path.join(folder, "copy.db")
            with self._guard():
                here = Database(self._replica.path, checkpoint=False, key=self._key)
                try:
                    here.prepare("VACUUM INTO ?").run(encode([path]))
                finally:
                    here.close()
            copy = Database(path, key=self._key)
            try:
                yield copy
            finally:
                copy.close()

    def serialize(self, *, name: str = "main") -> bytes:
        """As of any connection; of a replica, bytes of a database that may be written to."""
        data = bytearray(super().serialize(name=name))
        if name.lower() == "main" and data:
            # File formats of a rollback journal: in memory there is no WAL. And no replica's header.
            data[18:20] = b"\1\1"
            data[72:92] = bytes(20)
        return bytes(data)

    # ------------------------------------------------------------ many and scripts

    def _executemany_elsewhere(self, sql: str, sets: Iterator[Any]) -> int | None:
        names: Names | None = None
        try:
            route = self._route(sql)
        except ProgrammingError:
            raise
        except DatabaseError as error:
            if isinstance(error, NotSupportedError) or not is_dml(sql) or self._unwanted(error):
                raise
        else:
            if route.place is not Place.THERE:
                return None
            self._goes_there(route)  # raises what is refused
            names = route.names
        count = self._forward_many(sql, sets, names)
        return count if is_dml(sql) else -1

    def _script(self, sql: str) -> None:
        """One request for all of it, unless a statement in it has to run here.

        A script that only reads needs no request. One with statements that have to run here is run in its
        parts: what lies between two of them, or between a BEGIN and a COMMIT, is one request.
        """
        if len(sql.encode()) > self._database.limit(SQLITE_LIMIT_SQL_LENGTH):
            raise DataError("query string is too large")
        if not isinstance(self._autocommit, bool) and self._in_transaction():
            self._word("COMMIT")
        begun_here = self._database.in_transaction
        only_reads = True
        pieces = statements_of(sql)
        whole: list[str] = []
        for text in pieces:
            place = self._place(text)
            whole.append(text)
            if place is Place.HERE or (place is Place.CONTROL and begun_here):
                self._script_in_parts(chain(whole, pieces))
                return
            only_reads = only_reads and place is Place.ANYWHERE
        self._run_together(whole, only_reads=only_reads)

    def _script_in_parts(self, pieces: Iterator[str]) -> None:
        """Run a script of which some statements belong to this connection alone."""
        waiting: list[str] = []
        only_reads = True
        for text in pieces:
            place = self._place(text)
            if place not in (Place.HERE, Place.CONTROL):
                waiting.append(text)
                only_reads = only_reads and place is Place.ANYWHERE
                continue
            self._run_together(waiting, only_reads=only_reads)
            waiting, only_reads = [], True
            route = self._route(text)  # raises what is refused
            if place is Place.CONTROL:
                self._control(text, route)
                continue
            self._goes_there(route)  # raises inside a transaction there
            if route.place is Place.SETTING:
                self._remember_setting(text)
            self._database.exec(text)
            self._forget_routes()
        self._run_together(waiting, only_reads=only_reads)

    def _place(self, text: str) -> Place:
        """Where a statement of a script belongs: HERE, THERE, CONTROL, or ANYWHERE: it only reads."""
        try:
            statement = self._compile(text)
            if statement.flags & flags.IGNORED:
                return Place.HERE  # refused, in its turn, where it would go there
            return place_in_script(self._database, text, statement)
        except NotSupportedError:
            return Place.HERE  # refused, in its turn
        except Error as error:
            return Place.HERE if self._unwanted(error) else Place.THERE

    def _run_together(self, texts: list[str], *, only_reads: bool) -> None:
        """Run statements of a script: here if all of them only read, otherwise in requests there."""
        if only_reads and not self._stream.in_transaction:
            self._freshen()
            self._database.exec("".join(texts))
            return
        for text in texts:
            self._tell(text)
        texts = [*(f"{opening};" for opening in self._opening), *texts]
        part: list[str] = []
        size = 0
        for text in [*texts, ""]:
            if part and (not text or size + len(text) > SEND_BYTES):
                self._before_forward()
                try:
                    self._stream.script("".join(part), visible=self._visible)
                finally:
                    self._after_forward()
                part, size = [], 0
            part.append(text)
            size += len(text)

    def _word(self, sql: str) -> None:
        if sql == "BEGIN":
            self._opening = ["BEGIN"]
            self._word_here(sql)
            return
        if self._stream.in_transaction:
            self._tell(sql)
            self._before_forward()
            try:
                self._stream.end(sql, visible=self._visible)
            finally:
                self._after_forward()
        self._opening = []
        if self._database.in_transaction:
            self._word_here(sql)
            if sql == "ROLLBACK":
                self._forget_routes()  # it may have undone a CREATE TEMP TABLE

    def _close(self) -> None:
        if self._autocommit is False and self._in_transaction():
            self._tell("ROLLBACK")
        with contextlib.suppress(Error):
            self._stream.close()
        self._database.close()
        self._release()

    def _release(self) -> None:
        """Give the shared replica up, on this thread; once."""
        found = self._let_go.detach()
        if found is not None:
            release(*found[2])


def _checked_path(database: Any, *, uri: bool) -> str:
    path = os.fsdecode(os.fspath(database))
    if "\0" in path:
        raise ProgrammingError("the path of a replica contains a NUL character")
    if path in ("", ":memory:") or (uri and path.startswith("file:")):
        raise ProgrammingError(
            f"a replica is a file, {path!r} is none. For a connection without a local file give the "
            "primary's URL in place of a path: nearlite.connect('http://...')"
        )
    return os.path.realpath(path)
