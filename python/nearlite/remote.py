"""A purely remote connection: no local file, every statement is a request to the primary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from nearlite import wire
from nearlite._native.callbacks import Callbacks
from nearlite._native.database import Database, is_dml
from nearlite.dbapi.connection import LEGACY_TRANSACTION_CONTROL
from nearlite.dbapi.cursor import Cursor
from nearlite.durations import duration
from nearlite.errors import NotSupportedError, ProgrammingError
from nearlite.forwarding import ForwardingConnection
from nearlite.http import Deadline, Token, Transport
from nearlite.network import Certificate, Network, Verify
from nearlite.receiving import json_of
from nearlite.script import holds_nothing
from nearlite.sync import refusal, state_of_request
from nearlite.upstream import Notes, Stream

_NO_DATABASE: Final = "this connection has no database in this process"


class RemoteConnection(ForwardingConnection):
    """A connection to a primary over HTTP, with the interface of a local one.

    Every statement is one request; a transaction keeps a stream open on the server. Results arrive
    whole.

    Args:
      database: ``http://``, ``https://`` or ``libsql://`` (https) URL of the database.
      auth_token: bearer token, or a callable that answers one; default: NEARLITE_AUTH_TOKEN.
      network_timeout: seconds for any one request.
      verify, cert, proxy, headers: how the server is reached; see :class:`nearlite.network.Network`.
      timeout, uri, cached_statements: without meaning here, accepted for the standard library's sake.

    Raises:
      ProgrammingError: not such a URL.
    """

    _visible = False

    def __init__(
        self,
        database: str,
        timeout: float = 5.0,  # noqa: ARG002
        detect_types: int = 0,
        isolation_level: Literal["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None = "",
        check_same_thread: bool = True,
        factory: Any = None,  # noqa: ARG002
        cached_statements: int = 128,
        uri: bool = False,  # noqa: ARG002
        *,
        autocommit: bool | int = LEGACY_TRANSACTION_CONTROL,
        auth_token: Token = None,
        network_timeout: float = 30.0,
        verify: Verify = True,
        cert: Certificate | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._prepare_state(
            detect_types, isolation_level, check_same_thread, cached_statements, autocommit
        )
        self._transport = Transport(
            database,
            token=auth_token or _token_of_environment,
            timeout=duration("network_timeout", network_timeout),
            network=Network.of(verify, cert, proxy, headers),
        )
        self._prepare_forwarding(Stream(self._post))
        self._opened()

    def __repr__(self) -> str:
        return f"<nearlite.RemoteConnection to {self._transport.url}>"

    def _post(self, body: bytes, _visible: bool, notes: Notes) -> bytes:
        with self._transport.request(
            "POST",
            "v3/pipeline",
            body=body,
            headers={"Content-Type": "application/json", **notes.headers()},
            deadline=Deadline(self._transport.timeout),
            repeatable=False,
        ) as response:
            if response.status == 200:
                notes.answered(response.header)
                self._wrote(notes)
                return json_of(response)
            code, message = wire.decode_error(response.error_body())
            state = state_of_request(response.status, code)
            raise refusal(response.status, code, message, None, state=state)

    def _holds_file(self) -> bool:
        return False

    def _check_idle(self) -> None:
        """Nothing of the program is called: see `_callbacks`."""

    def _callbacks(self) -> Callbacks:
        raise NotSupportedError(
            f"{_NO_DATABASE}: SQLite runs on the server, and cannot call functions here"
        )

    @property
    def _database(self) -> Database:  # type: ignore[override]
        """Of whatever asks for it."""
        raise NotSupportedError(f"{_NO_DATABASE}; open a replica with sync_url=")

    # ------------------------------------------------------------ statements

    def _execute_elsewhere(self, cursor: Cursor, sql: str, parameters: Any) -> bool:
        self._check_text(sql)
        if holds_nothing(sql):
            self._run_nothing(cursor, sql, parameters)
            return True
        values = self._arranged(sql, parameters, None)
        # What may begin a transaction is not known here; an INSERT in autocommit mode does not.
        may_open = self._stream.in_transaction or not is_dml(sql)
        self._forward(cursor, sql, values, opening=self._openings(sql), may_open=may_open)
        return True

    def _executemany_elsewhere(self, sql: str, sets: Iterator[Any]) -> int | None:
        self._check_text(sql)
        if not is_dml(sql) and (holds_nothing(sql) or self._stream.describe(sql).is_readonly):
            raise ProgrammingError("executemany() can only execute DML statements.")
        count = self._forward_many(sql, sets, None)
        return count if is_dml(sql) else -1

    def _script(self, sql: str) -> None:
        if not isinstance(self._autocommit, bool) and self._in_transaction():
            self._word("COMMIT")
        if self._opening:
            sql = ";".join([*self._opening, sql])
        try:
            self._stream.script(sql, visible=False)
        finally:
            self._after_forward()

    def _word(self, sql: str) -> None:
        if sql == "BEGIN":
            self._opening = ["BEGIN"]  # sent with the first statement
        elif self._stream.in_transaction:
            self._stream.end(sql, visible=False)
        else:
            self._opening = []

    # ------------------------------------------------------------ the rest

    def _set_begin(self, kind: int) -> None:
        pass  # _begin_text asks isolation_level itself

    def _close(self) -> None:
        self._opening = []
        self._stream.close()
        self._transport.close()

    def interrupt(self) -> None:
        """Not possible: a request ends by `network_timeout`."""
        self._check_open()
        raise NotSupportedError("a statement on the primary cannot be interrupted from here")

    def setlimit(self, category: int, limit: int, /) -> int:  # noqa: ARG002
        """Not possible: limits are the server's."""
        self._check()
        raise NotSupportedError("limits of a remote connection are the server's")


def _token_of_environment() -> str:
    return os.environ.get("NEARLITE_AUTH_TOKEN", "")
