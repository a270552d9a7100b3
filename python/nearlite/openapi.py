"""What the server answers, as OpenAPI 3.1: ``GET /openapi.json``. A description, without anything of one server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_Schema = dict[str, Any]


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> _Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


def _one_of(tag: str, **kinds: tuple[Mapping[str, Any], Mapping[str, Any]]) -> _Schema:
    return {
        "oneOf": [
            _object({tag: {"const": name}, **required}, optional)
            for name, (required, optional) in kinds.items()
        ]
    }


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(of: _Schema) -> _Schema:
    return {"type": "array", "items": of}


def _or_null(schema: _Schema) -> _Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Final = {"type": "string"}
_FLAG: Final = {"type": "boolean"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_ID: Final = {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1}
_SQL: Final = {"type": "string", "examples": ["SELECT 1"]}
_OPTIONAL_TEXT: Final = _or_null(_TEXT)
_BY_TEXT_OR_ID: Final = {"sql": _or_null(_SQL), "sql_id": _or_null(_ID)}

_SCHEMAS: Final[dict[str, _Schema]] = {
    "Error": _object(
        {
            "message": _TEXT,
            "code": _TEXT,
            "error": _object({"message": _TEXT, "code": _TEXT}),
        }
    ),
    "StatementError": _object(
        {"message": _TEXT, "code": _TEXT}, {"extended_code": {"type": "integer"}}
    ),
    "Value": _one_of(
        "type",
        null=({}, {}),
        integer=({"value": {"type": "string", "pattern": "^[+-]?[0-9]{1,18}$"}}, {}),
        float=({"value": {"type": "number"}}, {}),
        text=({"value": _TEXT}, {"base64": _TEXT}),
        blob=({}, {"base64": {"type": "string", "contentEncoding": "base64"}}),
    ),
    "Stmt": _object(
        {},
        {
            **_BY_TEXT_OR_ID,
            "args": _or_null(_list(_ref("Value"))),
            "named_args": _or_null(_list(_object({"name": _TEXT, "value": _ref("Value")}))),
            "want_rows": _or_null(_FLAG),
        },
    ),
    "BatchCond": _one_of(
        "type",
        ok=({"step": _COUNT}, {}),
        error=({"step": _COUNT}, {}),
        **{
            "not": ({"cond": _ref("BatchCond")}, {}),
            "and": ({"conds": _list(_ref("BatchCond"))}, {}),
            "or": ({"conds": _list(_ref("BatchCond"))}, {}),
        },
        is_autocommit=({}, {}),
    ),
    "Batch": _object(
        {
            "steps": _list(
                _object({"stmt": _ref("Stmt")}, {"condition": _or_null(_ref("BatchCond"))})
            )
        }
    ),
    "StreamRequest": _one_of(
        "type",
        close=({}, {}),
        execute=({"stmt": _ref("Stmt")}, {}),
        batch=({"batch": _ref("Batch")}, {}),
        sequence=({}, _BY_TEXT_OR_ID),
        describe=({}, _BY_TEXT_OR_ID),
        store_sql=({"sql_id": _ID, "sql": _SQL}, {}),
        close_sql=({"sql_id": _ID}, {}),
        get_autocommit=({}, {}),
    ),
    "Pipeline": _object({"requests": _list(_ref("StreamRequest"))}, {"baton": _or_null(_TEXT)}),
    "PipelineAnswer": _object(
        {
            "baton": _OPTIONAL_TEXT,
            "base_url": _OPTIONAL_TEXT,
            "results": _list(
                _one_of(
                    "type",
                    ok=({"response": _object({"type": _TEXT})}, {}),
                    error=({"error": _ref("StatementError")}, {}),
                )
            ),
        }
    ),
    "StmtResult": _object(
        {
            "cols": _list(_object({"name": _OPTIONAL_TEXT}, {"decltype": _OPTIONAL_TEXT})),
            "rows": _list(_list(_ref("Value"))),
            "affected_row_count": _COUNT,
            "last_insert_rowid": _OPTIONAL_TEXT,
        }
    ),
    "BatchResult": _object(
        {
            "step_results": _list(_or_null(_ref("StmtResult"))),
            "step_errors": _list(_or_null(_ref("StatementError"))),
        }
    ),
    "Status": _object(
        {
            "protocol": {"const": 1},
            "position": _TEXT,
            "hash": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
            "page_size": _COUNT,
            "pages": _COUNT,
            "commit_ms": _COUNT,
            "replicas": _COUNT,
            "version": _TEXT,
            "now_ms": _COUNT,
        },
        {"behind": _object({"transactions": _COUNT, "bytes": _COUNT})},
    ),
    "Pushed": _object(
        {
            "status": {"enum": ["ok", "conflict"]},
            "generation": _COUNT,
            "max_frame_no": _COUNT,
            "baton": _OPTIONAL_TEXT,
        }
    ),
    "NoMoreFrames": _object(
        {"status": {"const": "checkpoint_needed"}, "generation": _COUNT, "max_frame_no": _COUNT}
    ),
}

# ---------------------------------------------------------------------------- answers

_MESSAGES: Final = {
    400: "The request is malformed or breaks the protocol; nothing was carried out",
    401: "There is no token, or not a good one",
    403: "The token does not allow this, or a browser asks for a page from elsewhere",
    404: "There is nothing at this path, or no such database",
    405: "The method is not allowed here",
    408: "The body did not arrive in time",
    409: "The position, the lineage or the state is another one",
    410: "What was asked for is not kept any more",
    413: "The request is larger than the server takes",
    422: "What is pushed makes no sound database, or that takes too long to find out; nothing was changed",
    429: "The client has too many streams",
    500: "The statement failed in SQLite; with the code INTERNAL_ERROR the server did",
    501: "This is not supported",
    502: "The upstream of a replica that serves replicas failed",
    503: "The server is about to end, has no room, or cannot do this now",
    507: "The disk is full",
}
_EVERYWHERE: Final = (400, 401, 403, 404, 405, 503)
_SETS: Final = "application/vnd.nearlite.pageset"
_BYTES: Final = "application/octet-stream"
_BINARY: Final = {"type": "string", "format": "binary"}


def _answer(text: str, **content: _Schema) -> _Schema:
    told: _Schema = {"description": text}
    if content:
        told["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    return told


def _json(text: str, schema: _Schema) -> _Schema:
    return _answer(text, **{"application/json": schema})


def _operation(
    summary: str,
    answers: Mapping[int, _Schema],
    *errors: int,
    body: tuple[str, _Schema] | None = None,
    parameters: list[_Schema] | None = None,
    anybody: bool = False,
) -> _Schema:
    responses = {
        str(status): _json(_MESSAGES[status], _ref("Error")) for status in (*_EVERYWHERE, *errors)
    }
    responses |= {str(status): answer for status, answer in answers.items()}
    operation: _Schema = {"summary": summary, "responses": dict(sorted(responses.items()))}
    if body is not None:
        kind, schema = body
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    if parameters:
        operation["parameters"] = parameters
    if anybody:
        operation["security"] = []
    return operation


def _query(name: str, text: str, schema: _Schema) -> _Schema:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _in_path(name: str, text: str, schema: _Schema) -> _Schema:
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def _header(name: str, text: str, schema: _Schema, *, required: bool = False) -> _Schema:
    where = {"name": name, "in": "header", "description": text, "required": required}
    return {**where, "schema": schema}


_COMPRESS: Final = _query("z", "1: compressed by zstd", {"enum": ["0", "1"]})
_POSITION: Final = {
    "type": "string",
    "pattern": r"^[0-9a-f]{8}\.[0-9a-f]{8}\.[0-9a-f]{8}$",
    "description": "A position as text",
}
_STATE: Final = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
_NUMBER: Final = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
_SQL_ERRORS: Final = (408, 409, 413, 429, 502, 507)
_OURS: Final = [
    _header(
        "Nearlite-Counters",
        "last_insert_rowid,changes,total_changes",
        {"type": "string", "pattern": "^[0-9]{1,9},[0-9]{1,9},[0-9]{1,9}$"},
    ),
    _header("Nearlite-Request", "A number that no other request has", _STATE),
]


def _pipeline(version: int) -> _Schema:
    return {
        "post": _operation(
            f"Requests in order on one stream (Hrana {version} over HTTP)",
            {200: _json("A result for each of them", _ref("PipelineAnswer"))},
            *_SQL_ERRORS,
            body=("application/json", _ref("Pipeline")),
            parameters=_OURS,
        )
    }


def _alone(what: str, body: _Schema, result: str) -> _Schema:
    return {
        "post": _operation(
            f"{what} on a stream of its own (Hrana 1 over HTTP)",
            {200: _json("Its result", _object({"result": _ref(result)}))},
            *_SQL_ERRORS,
            500,
            501,
            body=("application/json", body),
        )
    }


def _told(summary: str, answer: _Schema, status: int = 200) -> _Schema:
    return {"get": _operation(summary, {status: answer}, anybody=True)}


_HELLO: Final = _answer("It is supported", **{"text/plain": _TEXT})

_PUSH: Final = _operation(
    "Push frames, with a token that may",
    {200: _json("Whether they were taken", _ref("Pushed"))},
    *(408, 409, 410, 413, 422, 501, 507),
    body=(_BYTES, _BINARY),
)

_PATHS: Final[dict[str, _Schema]] = {
    "/health": _told("Whether the server serves", _answer("It does")),
    "/version": _told("What runs", _answer("Versions", **{"text/plain": _TEXT})),
    "/v1": _told("Whether Hrana 1 over HTTP is supported", _HELLO),
    "/v2": _told("Whether Hrana 2 over HTTP is supported", _HELLO),
    "/v3": _told("Whether Hrana 3 over HTTP is supported", _HELLO),
    "/v3-protobuf": _told("Whether Hrana 3 over HTTP is supported in protobuf", _HELLO),
    "/openapi.json": _told("This description", _json("OpenAPI 3.1", {"type": "object"})),
    "/metrics": {
        "get": _operation(
            "With --metrics: what was counted, for Prometheus",
            {200: _answer("Metrics", **{"text/plain": _TEXT})},
        )
    },
    "/console/state": {
        "get": _operation(
            "With --console: how the server stands, for the page at /",
            {200: _json("Its numbers", {"type": "object"})},
        )
    },
    "/v1/execute": _alone("One statement", _object({"stmt": _ref("Stmt")}), "StmtResult"),
    "/v1/batch": _alone("A batch", _object({"batch": _ref("Batch")}), "BatchResult"),
    "/v2/pipeline": _pipeline(2),
    "/v3/pipeline": _pipeline(3),
    "/v3/cursor": {
        "post": _operation(
            "A batch whose rows are streamed",
            {200: _answer("Entries, one JSON value a line", **{"text/plain": _TEXT})},
            *_SQL_ERRORS,
            body=(
                "application/json",
                _object({"batch": _ref("Batch")}, {"baton": _or_null(_TEXT)}),
            ),
        )
    },
    "/v3-protobuf/pipeline": {
        "post": _operation(
            "Requests in order on one stream, in protobuf; the content type is not looked at",
            {200: _answer("A result for each of them", **{"application/x-protobuf": _BINARY})},
            *_SQL_ERRORS,
            body=(_BYTES, _BINARY),
            parameters=_OURS,
        )
    },
    "/v3-protobuf/cursor": {
        "post": _operation(
            "A batch whose rows are streamed, in protobuf",
            {200: _answer("Entries, each behind its length", **{_BYTES: _BINARY})},
            *_SQL_ERRORS,
            body=(_BYTES, _BINARY),
        )
    },
    "/nl/v1/sql": {
        "post": _operation(
            "A pipeline, and the page set of what it wrote",
            {
                200: _answer(
                    "Length of the pipeline's answer (u32, big-endian), that, and the page set",
                    **{"application/vnd.nearlite.answer": _BINARY},
                )
            },
            *_SQL_ERRORS,
            410,
            body=("application/json", _ref("Pipeline")),
            parameters=[
                _header("Nearlite-Position", "Where the replica stands", _POSITION, required=True),
                _header("Nearlite-Hash", "Its state hash", _STATE),
                *_OURS,
            ],
        )
    },
    "/nl/v1/status": {
        "get": _operation(
            "Where the database stands",
            {200: _json("Position and state hash", _ref("Status"))},
            507,
            parameters=[_query("from", "Also how far that position is behind", _POSITION)],
        )
    },
    "/nl/v1/authorized": {"get": _operation("Whether the token is right", {204: _answer("It is")})},
    "/nl/v1/snapshot": {
        "get": _operation(
            "Every page, as a page set",
            {200: _answer("A page set", **{_SETS: _BINARY})},
            507,
            parameters=[
                _COMPRESS,
                _query("from", "The page that it begins with", _NUMBER),
            ],
        )
    },
    "/nl/v1/changes/{position}": {
        "get": _operation(
            "What is newer than a position, as a page set",
            {
                200: _answer("A page set", **{_SETS: _BINARY}),
                204: _answer("There is nothing newer"),
            },
            *(409, 410, 507),
            parameters=[
                _in_path("position", "Where the replica stands", _POSITION),
                _query("hash", "Its state hash", _STATE),
                _query(
                    "wait",
                    "Seconds to wait for something newer",
                    {"type": "number", "minimum": 0, "maximum": 25},
                ),
                _query("v", "2: compact sets are understood", {"enum": ["1", "2"]}),
                _query("beat", "With --shared-cache: the beat to wait for", _COUNT),
                _COMPRESS,
            ],
        )
    },
    "/nl/v1/repair": {
        "post": _operation(
            "Which pages of a replica differ, and those pages",
            {
                200: _answer(
                    "A page set, or the ranges that differ",
                    **{_SETS: _BINARY, "application/vnd.nearlite.differences": _BINARY},
                )
            },
            *(408, 409, 410, 413, 507),
            body=(_BYTES, _BINARY),
            parameters=[_COMPRESS],
        )
    },
    "/beta/listen": {
        "get": _operation(
            "Commits that change a table, as server-sent events, for as long as the client listens",
            {
                200: _answer("Events", **{"text/event-stream": _TEXT}),
                307: _answer("A replica that serves replicas: where the primary is"),
            },
            parameters=[
                _query("table", "Its name", _TEXT),
                _query("action", "insert, update, delete; may be repeated", _list(_TEXT)),
            ],
        )
    },
    "/dump": {
        "get": _operation(
            "The database as SQL text",
            {200: _answer("Statements that make an equal one", **{"text/plain": _TEXT})},
            parameters=[
                _query(
                    "preserve_row_ids",
                    "Also the rowids that no column names",
                    {"enum": ["true", "false", "1", "0"]},
                )
            ],
        )
    },
    "/info": {
        "get": _operation(
            "A generation that a libSQL replica may begin with",
            {200: _json("Its number", _object({"current_generation": _COUNT}))},
            *(501, 507),
        )
    },
    "/export/{generation}": {
        "get": _operation(
            "The database as it was where a generation began",
            {200: _answer("A SQLite database", **{_BYTES: _BINARY})},
            *(410, 501, 507),
            parameters=[_in_path("generation", "From /info", _NUMBER)],
        )
    },
    "/sync/{generation}/{start}/{end}": {
        "parameters": [
            _in_path("generation", "Whose frames", _NUMBER),
            _in_path("start", "The first frame, from 1", _NUMBER),
            _in_path("end", "The one behind the last", _NUMBER),
        ],
        "get": _operation(
            "Frames of a generation's WAL",
            {
                200: _answer("Frames of 24 + 4,096 bytes", **{_BYTES: _BINARY}),
                400: _json("There are no more", _ref("NoMoreFrames")),
            },
            *(409, 410, 501, 507),
        ),
        "post": _PUSH,
    },
    "/sync/{generation}/{start}/{end}/{baton}": {
        "parameters": [
            _in_path("generation", "Whose frames", _NUMBER),
            _in_path("start", "The first frame, from 1", _NUMBER),
            _in_path("end", "The one behind the last", _NUMBER),
            _in_path("baton", "What the push before was answered", {"type": "string"}),
        ],
        "post": _PUSH,
    },
}


def document(version: str) -> bytes:
    """The description as JSON; `version`: of the program."""
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "nearlite",
                "version": version,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                "description": "SQL over HTTP (Hrana), replicas of our own (nl/v1) and of libSQL. Every error has "
                "a JSON body with a message and a code.",
            },
            "security": [{"token": []}],
            "paths": _PATHS,
            "components": {
                "schemas": _SCHEMAS,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    ).encode()
