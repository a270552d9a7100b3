"""build_ffi.py takes third-party sources only if they are the pinned ones, in the stated order."""

from __future__ import annotations

import importlib.util
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def build(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("build_ffi", ROOT / "build_ffi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NL_SQLITE_DIR", raising=False)
    monkeypatch.delenv("NL_XXHASH_DIR", raising=False)
    monkeypatch.setattr(module, "VENDOR", tmp_path / "vendor")
    return module


@pytest.fixture
def genuine():
    return {name: (ROOT / "csrc/vendor" / name).read_bytes() for name in ("sqlite3.c", "sqlite3.h")}


def fail(message):
    def read(*_args):
        raise OSError(message)

    return read


def obtain(build, *candidates):
    build._obtain("the amalgamation", iter(candidates), build._sqlite_problem, "Do this.")


def test_the_first_source_that_has_the_pinned_bytes_is_taken(build, genuine, capsys) -> None:
    obtain(build, ("a", fail("absent")), ("b", lambda: genuine), ("c", fail("never asked")))
    assert (build.VENDOR / "sqlite3.c").read_bytes() == genuine["sqlite3.c"]
    assert (build._cache() / "sqlite3.h").read_bytes() == genuine["sqlite3.h"]
    assert "from b" in capsys.readouterr().out


def test_one_changed_byte_is_refused(build, genuine) -> None:
    altered = {**genuine, "sqlite3.c": genuine["sqlite3.c"] + b"\n"}
    with pytest.raises(build.SourceMissingError, match="not the pinned SQLite") as caught:
        obtain(build, ("a", lambda: altered))
    assert str(caught.value).endswith("Do this.")
    assert not build.VENDOR.exists()


def test_a_directory_named_by_the_user_is_not_silently_passed_over(build, genuine) -> None:
    with pytest.raises(build.SourceMissingError, match="NL_SQLITE_DIR=x: OSError: absent"):
        obtain(build, ("NL_SQLITE_DIR=x", fail("absent")), ("b", lambda: genuine))


def test_the_order_of_sources_is_the_documented_one(build, monkeypatch) -> None:
    monkeypatch.setenv("NL_SQLITE_DIR", "/named")
    labels = [label for label, _ in build._sqlite_sources()]
    assert labels[0] == "NL_SQLITE_DIR=/named"
    assert labels[1:3] == ["csrc/vendor", str(build._cache())]
    assert labels[3:] == ["sqlite.org", f"npm {build.SQLITE_NPM}"]


def test_an_unchanged_source_is_not_written_again(build, genuine) -> None:
    obtain(build, ("a", lambda: genuine))
    before = (build.VENDOR / "sqlite3.c").stat().st_mtime_ns
    obtain(build, ("a", lambda: genuine))
    assert (build.VENDOR / "sqlite3.c").stat().st_mtime_ns == before


def test_files_are_found_anywhere_in_an_archive(build) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("sqlite-1/deep/er/sqlite3.c", b"wrong")
        archive.writestr("sqlite-1/sqlite3.c", b"right")
    assert build._from_archive(data.getvalue(), ["sqlite3.c"]) == {"sqlite3.c": b"right"}


# ---------------------------------------------------------------- sqlite.org, as far as a stand-in goes


@pytest.fixture
def site(build, monkeypatch) -> Iterator[dict[str, bytes]]:
    """A web server in place of sqlite.org; what it answers by path, and npm out of reach."""
    pages: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = "/" + build.SQLITE_URL.partition("//")[2].partition("/")[2]
    monkeypatch.setattr(build, "SQLITE_URL", f"http://127.0.0.1:{server.server_address[1]}{path}")
    monkeypatch.setattr(build, "_npm", fail("no npm here"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield pages
    server.shutdown()
    server.server_close()


ARCHIVE = "/2026/sqlite-amalgamation-3540100.zip"


def zipped(files) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sqlite-amalgamation-3540100/shell.c", b"int main;")
        for name, content in files.items():
            archive.writestr(f"sqlite-amalgamation-3540100/{name}", content)
    return data.getvalue()


def from_anywhere(build) -> None:
    build._obtain("the amalgamation", build._sqlite_sources(), build._sqlite_problem, "Do this.")


def test_the_amalgamation_of_sqlite_org_is_unpacked_and_verified(
    build, genuine, site, capsys
) -> None:
    site[ARCHIVE] = zipped(genuine)
    from_anywhere(build)
    assert "from sqlite.org" in capsys.readouterr().out
    for name, content in genuine.items():
        assert (build.VENDOR / name).read_bytes() == content


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "HTTPError"),
        (b"<html>Log in to the network</html>", "ReadError"),
        (b"PK, but no archive", "BadZipFile"),
        (zipped({"readme.txt": b""}), "StopIteration"),
        (zipped({"sqlite3.c": b"another version", "sqlite3.h": b""}), "not the pinned SQLite"),
    ],
    ids=["404", "login page", "broken archive", "other archive", "other version"],
)
def test_what_sqlite_org_may_answer_instead_is_told_and_the_next_source_asked(
    build, site, monkeypatch, answer, told
) -> None:
    if answer is not None:
        site[ARCHIVE] = answer
    with pytest.raises(build.SourceMissingError) as caught:
        from_anywhere(build)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    (said,) = [line for line in lines if line.startswith("sqlite.org: ")]
    assert told in said
    assert lines.index(said) < lines.index(f"npm {build.SQLITE_NPM}: OSError: no npm here")
    assert lines[-1] == "Do this."


def test_a_network_that_swallows_everything_costs_the_timeout_and_no_more(
    build, monkeypatch
) -> None:
    assert build.NETWORK_TIMEOUT <= 10
    monkeypatch.setattr(build, "NETWORK_TIMEOUT", 0.1)
    monkeypatch.setattr(build, "_npm", fail("no npm here"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(build, "SQLITE_URL", f"http://127.0.0.1:{port}/a.zip")
        with pytest.raises(build.SourceMissingError, match=r"sqlite.org: \w*[Tt]ime"):
            from_anywhere(build)


@pytest.mark.parametrize(
    ("version", "accepted"), [((0, 8, 3), True), ((0, 8, 1), True), ((0, 7, 4), False)]
)
def test_xxhash_is_taken_from_0_8_1_on(build, version, accepted) -> None:
    names = ("MAJOR", "MINOR", "RELEASE")
    lines = [f"#define XXH_VERSION_{n}   {v}" for n, v in zip(names, version, strict=True)]
    problem = build._xxhash_problem({"xxhash.h": "\n".join(lines).encode()})
    assert (problem is None) is accepted
