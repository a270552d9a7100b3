"""What one server allows its clients: how much, how many, how long.

Names, defaults and explanations stand here once: `nearlite.asgi` takes a `Limits`, `nearlite serve` has an option
for each of its fields, and the documentation's table is compared with them by a test.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from nearlite.errors import ProgrammingError


def _limit(default: float, unit: str, text: str, *, least: float = 1) -> Any:
    """A field: its default, what it counts, what it says of itself, and its smallest value."""
    return dataclasses.field(default=default, metadata={"unit": unit, "text": text, "least": least})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server allows its clients. What is beyond is refused with a code of its own (docs/server.md).

    Raises:
      ProgrammingError: a value is not one that a server can work with.
    """

    max_request_bytes: int = _limit(64 << 20, "bytes", "of a request's body", least=1024)
    max_response_bytes: int = _limit(
        64 << 20, "bytes", "of rows in one answer (of a pipeline, a batch)", least=1024
    )
    max_rows: int = _limit(
        0, "rows", "of one statement's result; 0: as many as the answer holds", least=0
    )
    max_statements: int = _limit(50_000, "statements", "of one pipeline or batch")
    max_streams: int = _limit(
        10_000, "streams", "kept at a time; of more the one that was idle longest ends"
    )
    max_streams_per_client: int = _limit(
        1_000, "streams", "of one token, or of one address where there is no token"
    )
    max_transactions: int = _limit(
        128, "streams", "with a connection of their own: in a transaction, or with settings"
    )
    max_connections: int = _limit(
        32_768, "connections", "at a time, if there are descriptors for so many"
    )
    transaction_seconds: float = _limit(
        60.0,
        "seconds",
        "after which an open transaction is rolled back, or a cursor ends",
        least=0.001,
    )
    contended_seconds: float = _limit(
        5.0, "seconds", "after which it is when another one waits to write", least=0.001
    )
    wait_seconds: float = _limit(
        30.0, "seconds", "that a write waits for its turn before it is refused", least=0.001
    )
    idle_seconds: float = _limit(
        300.0, "seconds", "after which a stream without requests ends", least=0.001
    )
    client_seconds: float = _limit(
        30.0,
        "seconds",
        "that a client may take for a request's head (for TLS's handshake), and for a piece of a body or an answer",
        least=0.001,
    )
    min_bytes_per_second: int = _limit(
        1024, "bytes", "that a client sends, or takes, of a body after that time", least=0
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = float if field.name.endswith("_seconds") else int
            allowed = (int, float) if kind is float else (int,)
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise ProgrammingError(f"{field.name} is a number of {field.metadata['unit']}")
            if not field.metadata["least"] <= value < 1 << 62:
                raise ProgrammingError(
                    f"{field.name} is at least {field.metadata['least']}, not {value}"
                )
