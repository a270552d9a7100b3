"""Lines of a server's log: for people, or one JSON object each."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, Final, Literal

HUMAN: Final = "%(asctime)s %(name)s %(levelname)s %(message)s"


_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


class PlainLines(logging.Formatter):
    """For people. What a message quotes cannot begin a line of its own, or command the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """See `logging.Formatter`."""
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message"}`` and the fields that the line has beside them, in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        when = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= {name: value for name, value in fields.items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(form: Literal["human", "json"], level: int | str, *, requests: bool = False) -> None:
    """Have everything from `level` on written to standard error in that form; `requests`: those lines as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else PlainLines(HUMAN))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if requests:  # asked for by an option of its own
        logging.getLogger("nearlite.access").setLevel(logging.INFO)
