"""Answers to ``POST sql``: u32 length, JSON, and a page set or nothing."""

from __future__ import annotations

# Largest JSON part of an answer: the bound on what one request may make a client allocate.
MAX_JSON = 64 << 20


def answer_prefix(json: bytes) -> bytes:
    """What precedes the page set in an answer: u32 length, JSON."""
    return len(json).to_bytes(4, "big") + json
