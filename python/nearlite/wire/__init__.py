"""The native protocol's bodies: bytes in, events out. No sockets, no files.

`PageSetReader` takes bytes in pieces of any size and answers verified chunks,
`WholeSet` and `CompactSet` take all of them at once;
`page_set` and `answer_prefix` make the pieces; `Status` and the error functions are the JSON.
"""

from __future__ import annotations

from nearlite.wire.answer import MAX_JSON, answer_prefix
from nearlite.wire.compact import LARGEST_COMPACT, CompactSet, is_compact
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
    WholeSet,
    chunk_pieces,
    page_set,
)

PAGE_SET_TYPE = "application/vnd.nearlite.pageset"
ANSWER_TYPE = "application/vnd.nearlite.answer"

__all__ = [
    "ANSWER_TYPE",
    "END_OF_SET",
    "LARGEST_COMPACT",
    "MAX_JSON",
    "PAGE_SET_TYPE",
    "Chunk",
    "CompactSet",
    "End",
    "Event",
    "Header",
    "PageSetReader",
    "RawChunk",
    "Status",
    "WholeSet",
    "answer_prefix",
    "chunk_pieces",
    "decode_error",
    "encode_error",
    "is_compact",
    "pack_compact",
    "page_set",
]
