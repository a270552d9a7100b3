"""The native protocol's bodies: bytes in, events out. No sockets, no files.

`PageSetReader` takes bytes in pieces of any size and answers verified chunks,
`WholeSet` and `CompactSet` take all of them at once;
`page_set` and `answer_prefix` make the pieces; `Status` and the error functions are the JSON.
"""

from __future__ import annotations

from nearlite.wire.answer import MAX_JSON, answer_prefix
from nearlite.wire.compact import LARGEST_COMPACT, CompactSet, is_compact
from nearlite.wire.compact import pack as pack_compact
from nearlite.wire.messages import Behind, Status, decode_error, encode_error
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
from nearlite.wire.ranges import (
    DIFFERENCES_TYPE,
    NOWHERE,
    REQUEST_TYPE,
    Differences,
    RepairRequest,
    RequestError,
    Run,
)

PAGE_SET_TYPE = "application/vnd.nearlite.pageset"
ANSWER_TYPE = "application/vnd.nearlite.answer"

__all__ = [
    "ANSWER_TYPE",
    "DIFFERENCES_TYPE",
    "END_OF_SET",
    "LARGEST_COMPACT",
    "MAX_JSON",
    "NOWHERE",
    "PAGE_SET_TYPE",
    "REQUEST_TYPE",
    "Behind",
    "Chunk",
    "CompactSet",
    "Differences",
    "End",
    "Event",
    "Header",
    "PageSetReader",
    "RawChunk",
    "RepairRequest",
    "RequestError",
    "Run",
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
