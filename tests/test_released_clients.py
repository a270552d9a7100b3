"""The libSQL clients that people use today, unchanged, against our server.

They are installed once by name into the project's cache folder, at pinned versions; nothing of them
is in this repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from serving import app_of, serving

from nearlite import minting
from nearlite.applications import RelayApp
from nearlite.relay import Relay
from nearlite.tls import server_context
from nearlite.tokens import authority

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "clients"
NPM_CLIENT = "@libsql/client@0.18.0"
PYPI_CLIENT = "libsql==0.1.11"
PYPI_OLD_CLIENT = "libsql-client==0.3.1"
TOKEN = "a token"


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def installed(folder: Path, mark: str, *command: str) -> Path:
    """Run an installer in a folder of the cache, once for each version."""
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != mark:
        folder.mkdir(parents=True, exist_ok=True)
        run(*command, cwd=folder)
        ready.write_text(mark)
    return folder


def pip_installed(folder: str, requirement: str) -> Path:
    """A package of PyPI in a folder of the cache, for this Python."""
    return installed(
        CACHE / f"{folder}-{sys.version_info[0]}.{sys.version_info[1]}",
        requirement,
        *(sys.executable, "-m", "pip", "install", "--quiet", "--target", ".", requirement),
    )


def npm() -> Path:
    """The folder with the client of npm."""
    return installed(
        CACHE / "npm",
        NPM_CLIENT,
        *("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", NPM_CLIENT),
    )


@pytest.fixture(params=["primary", "edge", "relay"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a primary, of an edge, and of a replica that serves replicas: clients see no difference."""
    with ExitStack() as stack:
        primary = app_of(tmp_path / "data.db", durability="normal", auth_token=TOKEN)
        port = stack.enter_context(serving(primary))
        if request.param != "primary":
            path, above = tmp_path / "below.db", f"http://127.0.0.1:{port}"
            below = RelayApp(
                path,
                lambda: Relay.open(path, above, token=TOKEN),
                authority=authority(TOKEN),
                edge=request.param == "edge",
            )
            port = stack.enter_context(serving(below))
        yield f"http://127.0.0.1:{port}"


@pytest.mark.xdist_group("released-clients")
@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_libsql_client_of_npm(url: str, scheme: str) -> None:
    url = url.replace("http", scheme)
    folder = npm()
    program = folder / "released_clients.mjs"
    program.write_text((HERE / "released_clients.mjs").read_text())
    seen: dict[str, Any] = json.loads(run("node", str(program), url, TOKEN, cwd=folder))
    failures = {
        name: seen.pop(name)
        for name in (
            "failed_batch",
            "readonly",
            "syntax",
            "missing",
            "unique",
            "arguments",
            "unauthorized",
        )
    }
    assert seen == {
        "inserted": [1, "1"],
        "row": [1, "héllo\x00😀", 1.5, [1, 2, 255]],
        "columns": ["a", "other"],
        "named": 5,
        "batch": 3,
        "read": 5,
        "after_failed_batch": 3,
        "inside": 4,
        "outside": 3,
        "after": 4,
        "multiple": 3,
        "migrated": 4,
        "concurrent": 62,
    }
    assert {name: failure["code"] for name, failure in failures.items()} == {
        "failed_batch": "SQLITE_CONSTRAINT",
        "readonly": "SQLITE_READONLY",
        "syntax": "SQL_INPUT_ERROR",
        "missing": "SQLITE_ERROR",
        "unique": "SQLITE_CONSTRAINT",
        "arguments": "ARGS_INVALID",
        "unauthorized": {"http": "UNAUTHORIZED", "ws": "AUTH_JWT_INVALID"}[scheme],
    }
    assert "no such table: nowhere" in failures["missing"]["message"]
    assert "The token is not the right one" in failures["unauthorized"]["message"]


@pytest.mark.xdist_group("released-clients")
@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_hrana_client_of_npm_speaks_version_3_in_protobuf(url: str, scheme: str) -> None:
    folder = npm()
    program = folder / "released_hrana.mjs"
    program.write_text((HERE / "released_hrana.mjs").read_text())
    address = url.replace("http", scheme)
    seen: dict[str, Any] = json.loads(run("node", str(program), address, TOKEN, cwd=folder))
    failures = {name: seen.pop(name) for name in ("syntax", "unique", "arguments", "unauthorized")}
    batch = [["1", "2", "3"], "SQLITE_ERROR", "3", None]
    numbers = ["9223372036854775807", "-9223372036854775808"]
    assert seen == {
        "version": 3,
        "inserted": [1, "1"],
        "row": ["1", "héllo😀", 1.5, [0, 255], None, *numbers, "infinite"],
        "columns": [["a", "b", "c"], ["INTEGER", None, "REAL", "BLOB"]],
        "named": "ab",
        "empty": 0,
        "described": [[":p", None], [{"name": "x", "decltype": "INTEGER"}], False, True],
        "autocommit": [True, False],
        "stored": "3",
        "batch": batch,
        "cursor": batch,
        "large": [30000, "30000", "number 30000"],
        "after": "23",
    }
    assert {name: code for name, (code, _) in failures.items()} == {
        "syntax": "SQL_INPUT_ERROR",
        "unique": "SQLITE_CONSTRAINT",
        "arguments": "ARGS_INVALID",
        "unauthorized": {"http": "UNAUTHORIZED", "ws": "AUTH_JWT_INVALID"}[scheme],
    }


@pytest.mark.xdist_group("released-clients")
def test_libsql_of_pypi_in_remote_mode(url: str) -> None:
    folder = pip_installed("pypi", PYPI_CLIENT)
    program = str(HERE / "released_libsql.py")
    answer = run(sys.executable, program, url, TOKEN, cwd=folder, PYTHONPATH=str(folder))
    seen: dict[str, Any] = json.loads(answer)
    failures = {name: seen.pop(name) for name in ("syntax", "missing", "unique", "unauthorized")}
    assert seen == {
        "lastrowid": 1,
        "in_transaction": True,
        "rows": ["one", "two", 3, 4.5, [0, 255], None],
        "counts": [6] * 20,
        "after": 6,
    }
    assert "syntax error" in failures["syntax"]
    assert "no such table: nowhere" in failures["missing"]
    assert "UNIQUE constraint failed" in failures["unique"]
    assert failures["unauthorized"]


@pytest.mark.xdist_group("released-clients")
def test_libsql_client_of_pypi_without_streams(url: str) -> None:
    folder = pip_installed("pypi-client", PYPI_OLD_CLIENT)
    program = str(HERE / "released_libsql_client.py")
    answer = run(sys.executable, program, url, TOKEN, cwd=folder, PYTHONPATH=str(folder))
    assert json.loads(answer) == {
        "inserted": [1, 1],
        "columns": ["a", "b"],
        "rows": [[1, "one"], [2, 2.5]],
        "unique": "SQLITE_CONSTRAINT",
        "after": 2,
        "syntax": "SQL_INPUT_ERROR",
    }


# ---------------------------------------------------------------- signed tokens, TLS


@pytest.mark.xdist_group("released-clients")
def test_libsql_client_of_pypi_over_a_websocket(url: str) -> None:
    folder = pip_installed("pypi-client", PYPI_OLD_CLIENT)
    program = str(HERE / "released_libsql_client_sockets.py")
    address = url.replace("http", "ws")
    answer = run(sys.executable, program, address, TOKEN, cwd=folder, PYTHONPATH=str(folder))
    assert json.loads(answer) == {
        "inserted": [1, 1],
        "rows": [[1, "one"], [2, 2.5]],
        "outside": 2,
        "inside": 3,
        "after": 3,
        "unique": "SQLITE_CONSTRAINT",
        "syntax": "SQL_INPUT_ERROR",
        "unauthorized": "AUTH_JWT_INVALID",
    }


def signed_tokens(folder: Path) -> tuple[str, list[str]]:
    """A public key, and what the programs with signed tokens are given."""
    key = folder / "signing.pem"
    public = minting.make_keys(key).read_text()
    private = minting.private_key(key)
    expired = jwt.encode({"exp": 1}, private, "EdDSA")
    writes, reads = minting.mint(private), minting.mint(private, write=False)
    return public, [writes, reads, expired, minting.mint(private, databases=["another"])]


@pytest.mark.xdist_group("released-clients")
def test_libsql_client_of_npm_with_signed_tokens_over_tls(
    tmp_path: Path, certificates: Path
) -> None:
    folder = npm()
    program = folder / "released_tokens.mjs"
    program.write_text((HERE / "released_tokens.mjs").read_text())
    public, tokens = signed_tokens(tmp_path)
    app = app_of(tmp_path / "data.db", durability="normal", auth_jwt_key=public)
    with serving(app, tls=server_context(certificates / "server.pem")) as port:
        answer = run(
            "node", str(program), f"libsql://localhost:{port}", *tokens,
            cwd=folder, NODE_EXTRA_CA_CERTS=str(certificates / "ca.pem"),
        )  # fmt: skip
    seen = json.loads(answer)
    assert {name: seen.pop(name) for name in ("rows", "inside", "after")} == {
        "rows": 2,
        "inside": 2,
        "after": 2,
    }
    assert {name: code for name, (code, _) in seen.items()} == {
        "execute": "SQLITE_READONLY",
        "batch": "SQLITE_READONLY",
        "write": "SQLITE_READONLY",
        "multiple": "SQLITE_READONLY",
        "expired": "AUTH_JWT_EXPIRED",
        "elsewhere": "UNKNOWN_DATABASE",
        "none": "AUTH_HTTP_HEADER_MISSING",
    }
    assert "the token allows reading only" in seen["execute"][1]


@pytest.mark.xdist_group("released-clients")
@pytest.mark.parametrize("secure", [False, True], ids=["clear", "tls"])
def test_libsql_of_pypi_with_signed_tokens(
    tmp_path: Path, certificates: Path, secure: bool
) -> None:
    folder = pip_installed("pypi", PYPI_CLIENT)
    program = str(HERE / "released_tokens.py")
    public, tokens = signed_tokens(tmp_path)
    app = app_of(tmp_path / "data.db", durability="normal", auth_jwt_key=public)
    tls = server_context(certificates / "server.pem") if secure else None
    with serving(app, tls=tls) as port:
        url = f"{'https' if secure else 'http'}://localhost:{port}"
        trusted = {"PYTHONPATH": str(folder), "SSL_CERT_FILE": str(certificates / "ca.pem")}
        seen = json.loads(run(sys.executable, program, url, *tokens, cwd=folder, **trusted))
    assert {name: seen.pop(name) for name in ("rows", "after", "last")} == {
        "rows": 2,
        "after": [2, 2, 2],
        "last": 2,
    }
    for name in ("insert", "drop"):
        assert "the token allows reading only" in seen[name]
    assert "AUTH_JWT_EXPIRED" in seen["expired"]
    assert "UNKNOWN_DATABASE" in seen["elsewhere"]
