"""Sizes and times as people write them."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"(\d{1,18})\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE | re.ASCII)
_PART: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h|d)", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
}


def byte_count(text: str) -> int | None:
    """Bytes of ``4096``, ``16MiB``, ``1GB``: binary for KiB, MiB, GiB, decimal for KB, MB, GB; None: no size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, prefix, binary = match.groups()
    power = "kmgt".index(prefix.lower()) + 1 if prefix else 0
    unit: int = (1024 if binary or not prefix else 1000) ** power
    return int(number) * unit


def seconds(text: str) -> float | None:
    """Seconds of ``90``, ``1.5``, ``90s``, ``10ms``, ``1m30s``, ``1d`` (Go's durations, and days); None: no time."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    total, at = 0.0, 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return total if text else None
