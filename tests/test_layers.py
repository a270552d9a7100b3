"""No arrow points back: imports and includes follow the order of the rooms (docs/design.md)."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "nearlite"
CSRC = ROOT / "csrc"

# From the bottom up; a room imports from rooms before it and from itself.
ROOMS = [
    "errors position durations quantities document settings beats zstd spawn script delivery limits openapi usage configs hooks logs meters exposition",
    "_native",
    "keys",
    "message wire sync btree",
    "channel network hrana guard configuration",
    "spooling frame_cache",
    "logstate logformat logseal log",
    "rekeying",
    "dbapi http asgi",
    "bootstrap asking upstream forwarded_blob datafile",
    "finding renewed ahead failing checking receiving arriving applying comparing seeding pulling repair upkeep freshness election telling tally tables",
    "exchange above leaving compression access tokens minting tls last_errors guarding names threads administering",
    "file_events listening live background observed replica routing session streams lending reads execution",
    "batches",
    "gathering",
    "feeds",
    "libsql_client sqld_client foreign_base foreign_answers",
    "foreign",
    "following forwarding replicating placing generation owned writer bases onward pulls pushes roll rolling startup answers announcing pipeline atonce remote",
    "origin trail refreshing fetching",
    "source primary capture relay passing lanes edge",
    "conversation",
    "asked",
    "sending",
    "polls shown libsql greeting pulled_through",
    "sockets",
    "delivered changes running dumping routes relaying standing console server applications inspection watching",
    "change_service members replica_member sidecar_metrics sidecar child",
    "making catalog residents hosting administration admin",
    "pool connection websocket serve shell microbench demo options resealing token_commands database_commands proxy_command configured sidecar_process replicate_command",
    "cli",
    "__main__",
]
LEVEL = {name: level for level, room in enumerate(ROOMS) for name in room.split()}

# C, bottom up; sqlite_unit.c is the translation unit that includes apply ... counters.
C_ORDER = [
    "nl_api",
    "nl",
    "bytes",
    "fault",
    "fail",
    "aead",
    "key",
    "simd",
    "simd_level",
    "simd_scalar",
    "simd_base",
    "simd_avx2",
    "simd_avx512",
    "frame",
    "header_block",
    "codec",
    "codec_vfs",
    "codec_create",
    "codec_file",
    "codec_wal",
    "pageset",
    "ranges",
    "btree_page",
    "delta",
    "delta_tokens",
    "delta_encode",
    "delta_place",
    "delta_balance",
    "compact",
    "replica_header",
    "bootstrap",
    "ofd",
    "inotify",
    "errors",
    "buffer",
    "rows",
    "apply",
    "apply_whole",
    "repair",
    "rekey",
    "tail",
    "base",
    "changes",
    "compare",
    "compact_answer",
    "roll",
    "others",
    "push",
    "counters",
    "sqlite_unit",
    "callbacks",
    "database",
    "watch",
    "encode",
    "bind",
    "statement",
    "direct",
    "functions",
    "backup",
    "blob",
    "image",
    "session",
    "changeset",
    "snapshot",
    "hrana",
]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports anywhere, also inside functions, but not for types only."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nearlite"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else str(node.module))
    return found


GRAPH = {name: imports(path, modules()) - {name} for name, path in modules().items()}


def test_the_graph_was_really_read() -> None:
    assert "nearlite._native._lib" in GRAPH["nearlite._native.frames"]
    assert len(GRAPH) > 30


def test_imports_form_no_cycle() -> None:
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as cycle:
        raise AssertionError(" -> ".join(cycle.args[1])) from None


def test_no_import_points_back() -> None:
    def level(name: str) -> int | None:
        return LEVEL.get(name.split(".")[1]) if "." in name else None

    back = [
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        for target in targets
        if (low := level(name)) is not None and (high := level(target)) is not None and high > low
    ]
    assert back == []


def test_only_the_native_package_knows_the_shared_object() -> None:
    lines = [
        f"{name}: {line}"
        for name, path in modules().items()
        for line in path.read_text().splitlines()
        if re.search(r"^\s*(from|import)\b.*\b_ffi|import_module\(.*_ffi", line)
    ]
    assert len(lines) == 1
    assert lines[0].startswith("nearlite._native._lib: ")


def test_pure_modules_do_no_input_or_output() -> None:
    forbidden = {"socket", "http", "urllib3", "subprocess", "threading", "asyncio", "sqlite3"}
    for name, path in modules().items():
        if name.split(".")[1:2] not in (["wire"], ["sync"]):
            continue
        tree = ast.parse(path.read_text())
        used = {
            a.name.split(".")[0]
            for n in ast.walk(tree)
            if isinstance(n, ast.Import)
            for a in n.names
        }
        used |= {
            (n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
        }
        assert not used & forbidden, name


def test_c_files_include_only_what_comes_before_them() -> None:
    for path in [*CSRC.glob("*.c"), *CSRC.glob("*.h")]:
        assert path.stem in C_ORDER, f"{path.name} needs a place in C_ORDER"
        for included in re.findall(r'^#include "(\w+)\.[ch]"', path.read_text(), re.MULTILINE):
            if included != "xxhash":
                assert C_ORDER.index(included) <= C_ORDER.index(path.stem), (path.name, included)


def test_the_shared_header_holds_no_directive_but_numbers() -> None:
    for line in (CSRC / "nl_api.h").read_text().splitlines():
        if line.startswith("#"):
            assert re.match(r"#define NL_\w+ (0x[0-9A-Fa-f]+|-?\d+)\s*(/\*.*)?$", line), line
