"""What becomes of a request whose handler raises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from nearlite.exchange import (
    Answering,
    ClientGoneError,
    HttpError,
    Scope,
    Send,
    StatementFailedError,
    cut_off,
    failed,
)
from nearlite.hrana import ProtocolError
from nearlite.last_errors import LastErrors
from nearlite.leaving import GoneError
from nearlite.meters import Meters

log = logging.getLogger("nearlite.server")


class Guard:
    """Answers exceptions.

    Args:
      answering: sends.
      meters: count refusals.
      last: is told of them.
    """

    def __init__(
        self, answering: Answering, meters: Meters | None = None, last: LastErrors | None = None
    ) -> None:
        self._answering = answering
        self._meters = meters
        self._last = last

    async def __call__(self, scope: Scope, send: Send, handling: Awaitable[None]) -> None:
        """Await a handler; answer its exceptions."""
        try:
            await handling
        except HttpError as error:
            await self.refuse(scope, send, error)
        except ProtocolError as broken:
            await self.refuse(scope, send, HttpError(broken.status, broken.code, broken.message))
        except (ClientGoneError, GoneError):
            pass
        except asyncio.CancelledError:
            # The server ends, and has waited for this client for long enough.
            if not cut_off(send):
                raise
        except Exception:
            log.exception("a request failed")
            await self.refuse(scope, send, failed())

    async def refuse(self, scope: Scope, send: Send, error: HttpError) -> None:
        """Answer an error, if an answer can still be begun."""
        if self._meters is not None:
            self._meters.errors[error.code] += 1
        # Of a statement that failed it has been told, without SQLite's message.
        if self._last is not None and not isinstance(error, StatementFailedError):
            self._last.note(error.code, error.message)
        try:
            await self._answering.error(send, error, head=scope.get("method") == "HEAD")
        except ClientGoneError:
            pass
        except RuntimeError:  # an answer had been begun: it stays unfinished
            log.debug("an answer could not be finished", exc_info=True)
            cut_off(send)
