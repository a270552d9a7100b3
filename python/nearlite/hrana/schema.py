"""Hrana 3's messages in protobuf, described in code: no compiler is needed to build or to run this.

Source: the appendix of the Hrana 3 specification published with libSQL, and the fields that libSQL's server adds.
"""

from __future__ import annotations

import re
from typing import Any, Final

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

# One message a line: its fields, each with type, name and tag. "?": may be absent, and that is seen;
# "*": repeated; "|": one of those, at most, is there; map: from uint32.
_MESSAGES: Final = """
Empty:
Error             string message 1, string? code 2
Value             Empty| null 1, sint64| integer 2, double| float 3, string| text 4, bytes| blob 5
NamedArg          string name 1, Value value 2
Stmt              string? sql 1, int32? sql_id 2, Value* args 3, NamedArg* named_args 4, bool? want_rows 5, uint64? replication_index 6
Col               string? name 1, string? decltype 2
Row               Value* values 1
StmtResult        Col* cols 1, Row* rows 2, uint64 affected_row_count 3, sint64? last_insert_rowid 4, uint64? replication_index 5, uint64 rows_read 6, uint64 rows_written 7, double query_duration_ms 8
Conds             BatchCond* conds 1
BatchCond         uint32| step_ok 1, uint32| step_error 2, BatchCond| not 3, Conds| and 4, Conds| or 5, Empty| is_autocommit 6
BatchStep         BatchCond condition 1, Stmt stmt 2
Batch             BatchStep* steps 1, uint64? replication_index 2
BatchResult       StmtResult=map step_results 1, Error=map step_errors 2, uint64? replication_index 3
StepBegin         uint32 step 1, Col* cols 2
StepEnd           uint64 affected_row_count 1, sint64? last_insert_rowid 2
StepError         uint32 step 1, Error error 2
CursorEntry       StepBegin| step_begin 1, StepEnd| step_end 2, StepError| step_error 3, Row| row 4, Error| error 5
DescribeParam     string? name 1
DescribeCol       string name 1, string? decltype 2
DescribeResult    DescribeParam* params 1, DescribeCol* cols 2, bool is_explain 3, bool is_readonly 4

PipelineReqBody   string? baton 1, StreamRequest* requests 2
PipelineRespBody  string? baton 1, string? base_url 2, StreamResult* results 3
CursorReqBody     string? baton 1, Batch batch 2
CursorRespBody    string? baton 1, string? base_url 2
StreamResult      StreamResponse| ok 1, Error| error 2
StreamRequest     Empty| close 1, Execute| execute 2, RunBatch| batch 3, Text| sequence 4, Text| describe 5, StoreSql| store_sql 6, CloseSql| close_sql 7, Empty| get_autocommit 8
StreamResponse    Empty| close 1, ExecuteResp| execute 2, BatchResp| batch 3, Empty| sequence 4, DescribeResp| describe 5, Empty| store_sql 6, Empty| close_sql 7, AutocommitResp| get_autocommit 8
Execute           Stmt stmt 1
RunBatch          Batch batch 1
Text              string? sql 1, int32? sql_id 2, uint64? replication_index 3
StoreSql          int32 sql_id 1, string sql 2
CloseSql          int32 sql_id 1
ExecuteResp       StmtResult result 1
BatchResp         BatchResult result 1
DescribeResp      DescribeResult result 1
AutocommitResp    bool is_autocommit 1

ClientMsg         Hello| hello 1, Request| request 2
Hello             string? jwt 1
Request           int32 request_id 1, OfStream| open_stream 2, OfStream| close_stream 3, StreamExecute| execute 4, StreamBatch| batch 5, OpenCursor| open_cursor 6, OfCursor| close_cursor 7, FetchCursor| fetch_cursor 8, StreamText| sequence 9, StreamText| describe 10, StoreSql| store_sql 11, CloseSql| close_sql 12, OfStream| get_autocommit 13
OfStream          int32 stream_id 1
OfCursor          int32 cursor_id 1
StreamExecute     int32 stream_id 1, Stmt stmt 2
StreamBatch       int32 stream_id 1, Batch batch 2
StreamText        int32 stream_id 1, string? sql 2, int32? sql_id 3, uint64? replication_index 4
OpenCursor        int32 stream_id 1, int32 cursor_id 2, Batch batch 3
FetchCursor       int32 cursor_id 1, uint32 max_count 2
ServerMsg         Empty| hello_ok 1, HelloError| hello_error 2, Response| response_ok 3, ResponseError| response_error 4
HelloError        Error error 1
ResponseError     int32 request_id 1, Error error 2
Response          int32 request_id 1, Empty| open_stream 2, Empty| close_stream 3, ExecuteResp| execute 4, BatchResp| batch 5, Empty| open_cursor 6, Empty| close_cursor 7, FetchCursorResp| fetch_cursor 8, Empty| sequence 9, DescribeResp| describe 10, Empty| store_sql 11, Empty| close_sql 12, AutocommitResp| get_autocommit 13
FetchCursorResp   CursorEntry* entries 1, bool done 2
"""
_PACKAGE: Final = "nearlite.hrana"
_FIELD: Final = re.compile(r"(\w+)(\?|\*|\||=map)? (\w+) (\d+)")
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "double": _Field.TYPE_DOUBLE,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "sint64": _Field.TYPE_SINT64,
}


def _describe(line: str, file: Any) -> None:
    name, _, fields = line.partition(" ")
    message = file.message_type.add(name=name.rstrip(":"))
    described = [
        found.groups() for found in map(_FIELD.fullmatch, fields.strip().split(", ")) if found
    ]
    if any(how == "|" for _, how, _, _ in described):
        message.oneof_decl.add(name="kind")
    for kind, how, field_name, tag in described:
        field = message.field.add(name=field_name, number=int(tag), label=_Field.LABEL_OPTIONAL)
        if how == "=map":
            _map(message, field, kind)
            continue
        _type(field, kind)
        if how == "*":
            field.label = _Field.LABEL_REPEATED
        elif how == "|":
            field.oneof_index = 0
        elif how == "?":
            # proto3 writes a field whose absence is seen as the only one of its own oneof.
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field_name}")


def _type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


def _map(message: Any, field: Any, kind: str) -> None:
    name = "".join(part.capitalize() for part in field.name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, (part, of) in enumerate((("key", "uint32"), ("value", kind)), 1):
        _type(entry.field.add(name=part, number=number, label=_Field.LABEL_OPTIONAL), of)
    field.label = _Field.LABEL_REPEATED
    field.type = _Field.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{message.name}.{name}"


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="nearlite/hrana.proto", package=_PACKAGE, syntax="proto3"
    )
    for line in filter(None, map(str.strip, _MESSAGES.splitlines())):
        _describe(line, file)
    # Of our own: an application may have described libSQL's messages in the one that all share.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{message.name}")
        )
        for message in file.message_type
    }


MESSAGES: Final = _build()
"""Classes of the messages, by name."""
