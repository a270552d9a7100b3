"""The native protocol's bodies: bytes in, events out. No sockets, no files.

`PageSetReader` and `AnswerReader` take bytes in pieces of any size and answer verified chunks;
`page_set` and `answer_prefix` make the pieces; `Status` and the error functions are the JSON.
"""

from __future__ import annotations

from nearlite.wire.answer import MAX_JSON, AnswerReader, Json, answer_prefix
from nearlite.wire.compact import CompactReader, is_compact
from nearlite.wire.compact import pack as pack_compact
from nearlite.wire.messages import Status, decode_error, encode_error
from nearlite.wire.pageset import (
    END_OF_SET,
    Chunk,
    End,
    Event,
    Header,
    PageSetReader,
    RawChunk,
    chunk_pieces,
    page_set,
)

PAGE_SET_TYPE = "application/vnd.nearlite.pageset"
ANSWER_TYPE = "application/vnd.nearlite.answer"

__all__ = [
    "ANSWER_TYPE",
    "END_OF_SET",
    "MAX_JSON",
    "PAGE_SET_TYPE",
    "AnswerReader",
    "Chunk",
    "CompactReader",
    "End",
    "Event",
    "Header",
    "Json",
    "PageSetReader",
    "RawChunk",
    "Status",
    "answer_prefix",
    "chunk_pieces",
    "decode_error",
    "encode_error",
    "is_compact",
    "pack_compact",
    "page_set",
]
