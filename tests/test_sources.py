"""build_ffi.py takes third-party sources only if they are the pinned ones, in the stated order."""

from __future__ import annotations

import importlib.util
import io
import zipfile
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
    def read():
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


@pytest.mark.parametrize(
    ("version", "accepted"), [((0, 8, 3), True), ((0, 8, 1), True), ((0, 7, 4), False)]
)
def test_xxhash_is_taken_from_0_8_1_on(build, version, accepted) -> None:
    names = ("MAJOR", "MINOR", "RELEASE")
    lines = [f"#define XXH_VERSION_{n}   {v}" for n, v in zip(names, version, strict=True)]
    problem = build._xxhash_problem({"xxhash.h": "\n".join(lines).encode()})
    assert (problem is None) is accepted
