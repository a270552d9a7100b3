"""Builds the one shared object: SQLite's amalgamation, our C and libcrypto behind cffi.

setuptools finds ``build_ext`` and ``sdist`` here through pyproject.toml; run as a program it builds
in place (``python build_ffi.py release test``), or only obtains the third-party sources (``--sources``). What is compiled is a list: adding a C file is one
line in SOURCES.

The amalgamation and xxhash.h are third-party and never committed. They are pinned by hash,
obtained once into ``csrc/vendor/`` (git-ignored, part of every sdist) and verified at each build.

Environment:
  NL_SQLITE_DIR       a directory holding sqlite3.c and sqlite3.h of exactly the pinned version
  NL_XXHASH_DIR       a directory holding xxhash.h, 0.8.1 or newer
  OPENSSL_DIR         prefix of an OpenSSL >= 3.0 that is not where the compiler looks
  NL_VARIANTS         variants to build, separated by commas (default: release)
  NL_STATIC_CRYPTO=1  link libcrypto.a (wheels) instead of the system's shared library
  NL_WERROR=1         warnings in our own C files are errors (developers and CI)
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cffi
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.command.sdist import sdist as _sdist

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
VENDOR = CSRC / "vendor"
# Not setuptools' build_temp, which is a fresh directory in `pip install -e`: objects are shared by
# every way of building. One folder per interpreter and platform, because headers differ. Relative, as
# all paths given to the compiler: setuptools runs in the project's root.
OBJECTS = Path("build") / f"objects-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

# ---------------------------------------------------------------- what is compiled

# In the order of their dependencies (tests/test_layers.py). sqlite_unit.c includes the amalgamation
# and the files that need SQLite's private functions: apply.c, apply_whole.c, tail.c, base.c, changes.c,
# compact_answer.c, roll.c, push.c.
SOURCES = [
    "fail.c",
    "aead.c",
    "key.c",
    "simd_scalar.c",
    "simd_base.c",
    "simd_avx2.c",
    "simd_avx512.c",
    "frame.c",
    "header_block.c",
    "codec.c",
    "codec_create.c",
    "codec_file.c",
    "codec_wal.c",
    "codec_vfs.c",
    "pageset.c",
    "ranges.c",
    "btree_page.c",
    "delta.c",
    "delta_tokens.c",
    "delta_encode.c",
    "delta_place.c",
    "delta_balance.c",
    "compact.c",
    "replica_header.c",
    "bootstrap.c",
    "fault.c",
    "errors.c",
    "ofd.c",
    "inotify.c",
    "sqlite_unit.c",
    "database.c",
    "watch.c",
    "buffer.c",
    "encode.c",
    "bind.c",
    "statement.c",
    "rows.c",
    "callbacks.c",
    "direct.c",
    "functions.c",
    "backup.c",
    "blob.c",
    "image.c",
    "session.c",
    "changeset.c",
    "snapshot.c",
    "hrana.c",
]

# -Wformat-security: an error in the flags of Debian's own Python (-Werror=format-security), which a build
# there inherits; everybody is to see it before.
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wformat-security"]

# Variants stand side by side as nearlite._ffi, nearlite._ffi_test, ...; the environment variable
# NEARLITE_FFI selects one at import. Only "release" is ever part of a wheel.
VARIANTS = {
    "release": ["-O2", "-g"],
    # Fault points, and every assert SQLite has (rules B1: the applier must pass them all).
    "test": ["-O1", "-g", "-UNDEBUG", "-DNL_TEST=1", "-DSQLITE_DEBUG=1"]
    + ["-DSQLITE_ENABLE_EXPENSIVE_ASSERT=1"],
    # -fno-sanitize-recover turns a finding into a failing test instead of a line on stderr.
    "sanitize": ["-O1", "-g", "-UNDEBUG", "-DNL_TEST=1", "-fsanitize=address,undefined"]
    + ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    # Python itself is not instrumented: what it does with its lock is seen all the same.
    "races": [
        "-O1",
        "-g",
        "-UNDEBUG",
        "-DNL_TEST=1",
        "-fsanitize=thread",
        "-fno-omit-frame-pointer",
    ],
}
LINK = {"sanitize": ["-fsanitize=address,undefined"], "races": ["-fsanitize=thread"]}
HOMEBREW_OPENSSL = ["/opt/homebrew/opt/openssl@3", "/usr/local/opt/openssl@3"]


def module_name(variant: str) -> str:
    """The dotted name of a variant's extension module."""
    return "nearlite._ffi" if variant == "release" else f"nearlite._ffi_{variant}"


def sources() -> list[str]:
    """Paths, relative to the project, of the C files to compile."""
    return [f"csrc/{name}" for name in SOURCES]


# The ways from C to Python: run signal handlers during a long call (database.c), and what SQLite calls
# (callbacks.c). Not in nl_api.h, because `extern "Python"` is cffi's syntax and no C.
CALLBACKS = """
extern "Python" {
    int nl_on_tick(void);
    int64_t nl_on_call(int64_t id, int64_t n);
    int64_t nl_on_call_int(int64_t id, int64_t value);
    int64_t nl_on_call_float(int64_t id, double value);
    int64_t nl_on_group(int64_t id, int64_t group, int what, int64_t n);
    int64_t nl_on_compare(int64_t id, int64_t n);
    int64_t nl_on_authorize(int64_t id, int64_t n);
    int64_t nl_on_progress(int64_t id);
    int64_t nl_on_trace(int64_t id, int64_t n);
    void nl_on_forget(int64_t id);
}
"""

# ---------------------------------------------------------------- third-party sources

SQLITE_VERSION = "3.54.1"
SQLITE_SHA256 = {
    "sqlite3.c": "75a4760a7b9727a4c4c877aec92eacf39e52a8f2921ce00bd33be6d3a8e8e254",
    "sqlite3.h": "d6c84557261893439b341d2e6c35187ae3ea24fbfd843ad94616f72d89242b8c",
}
SQLITE_URL = "https://sqlite.org/2026/sqlite-amalgamation-3540100.zip"
SQLITE_NPM = "better-sqlite3@13.2.0"  # carries the unmodified amalgamation in deps/sqlite3
XXHASH_PYPI = "xxhash==4.1.0"  # its source distribution carries the header in deps/xxhash
NETWORK_TIMEOUT = 5.0  # seconds for sqlite.org to answer: a build without network must not hang


class SourceMissingError(Exception):
    """A third-party source could not be obtained; the text says what to do."""


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nearlite" / f"sqlite-{SQLITE_VERSION}"


def _run(*command: str, cwd: str) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=300)


def _members(folder: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def _from_archive(data: bytes, names: list[str]) -> dict[str, bytes]:
    """Pick files by base name out of a .zip or .tar.gz, nearest to the root first."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            wanted = [m for m in tar if m.isfile() and Path(m.name).name in names]
            found = {m.name: tar.extractfile(m).read() for m in wanted}  # type: ignore[union-attr]
    ordered = sorted(found, key=lambda name: (name.count("/"), name))
    return {want: next(found[n] for n in ordered if Path(n).name == want) for want in names}


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT) as answer:
        data: bytes = answer.read(64 << 20)
        return data


def _npm(package: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _run("npm", "pack", "--silent", package, cwd=folder)
        return next(Path(folder).glob("*.tgz")).read_bytes()


def _pip(requirement: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        _run(*pip, "--no-binary", ":all:", "--dest", folder, requirement, cwd=folder)
        return next(Path(folder).glob("*.tar.gz")).read_bytes()


def _sqlite_problem(files: dict[str, bytes]) -> str | None:
    for name, expected in SQLITE_SHA256.items():
        if hashlib.sha256(files[name]).hexdigest() != expected:
            return f"{name} is not the pinned SQLite {SQLITE_VERSION}"
    return None


def _xxhash_problem(files: dict[str, bytes]) -> str | None:
    """XXH3's values are frozen since 0.8.0; 0.8.1 is the oldest header that inlines on all targets."""
    text = files["xxhash.h"].decode("utf-8", "replace")
    parts = re.findall(r"#\s*define XXH_VERSION_(?:MAJOR|MINOR|RELEASE)\s+(\d+)", text)
    version = tuple(int(part) for part in parts)
    return None if version >= (0, 8, 1) else f"xxhash.h is version {version or 'unknown'}"


Source = tuple[str, Callable[[], dict[str, bytes]]]
# Whatever a source that is absent, unreachable, cut off or something else (a login page with status 200)
# ends in: the next one is asked.
_NOT_HAD = (
    OSError,
    EOFError,
    subprocess.SubprocessError,
    LookupError,
    StopIteration,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def _sqlite_sources() -> Iterator[Source]:
    names = list(SQLITE_SHA256)
    if named := os.environ.get("NL_SQLITE_DIR"):
        yield f"NL_SQLITE_DIR={named}", lambda: _members(Path(named), names)
    yield "csrc/vendor", lambda: _members(VENDOR, names)
    yield str(_cache()), lambda: _members(_cache(), names)
    yield "sqlite.org", lambda: _from_archive(_download(SQLITE_URL), names)
    yield f"npm {SQLITE_NPM}", lambda: _from_archive(_npm(SQLITE_NPM), names)


def _xxhash_sources() -> Iterator[Source]:
    names = ["xxhash.h"]
    if named := os.environ.get("NL_XXHASH_DIR"):
        yield f"NL_XXHASH_DIR={named}", lambda: _members(Path(named), names)
    yield "csrc/vendor", lambda: _members(VENDOR, names)
    for prefix in ("/usr/include", "/usr/local/include", "/opt/homebrew/include"):
        yield prefix, lambda prefix=prefix: _members(Path(prefix), names)  # type: ignore[misc]
    yield str(_cache()), lambda: _members(_cache(), names)
    yield f"PyPI {XXHASH_PYPI}", lambda: _from_archive(_pip(XXHASH_PYPI), names)


def _obtain(
    what: str,
    candidates: Iterator[Source],
    problem: Callable[[dict[str, bytes]], str | None],
    advice: str,
) -> None:
    """Put verified files into csrc/vendor, from the first candidate that has them."""
    tried = []
    for label, read in candidates:
        try:
            files = read()
            wrong = problem(files)
        except _NOT_HAD as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            for folder in (VENDOR, _cache()):
                _store(folder, files)
            print(f"{what}: from {label}")
            return
        tried.append(f"  {label}: {wrong}")
        if label.startswith("NL_"):  # named explicitly: going on silently would surprise
            break
    raise SourceMissingError(f"cannot obtain {what}:\n" + "\n".join(tried) + f"\n{advice}")


def _store(folder: Path, files: dict[str, bytes]) -> None:
    """Write by rename, and only what differs, so that a parallel build sees whole files and an
    unchanged one recompiles nothing. The cache may be read-only: then it is done without.
    """
    with contextlib.suppress(OSError) if folder != VENDOR else contextlib.nullcontext():
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            target = folder / name
            if target.exists() and target.read_bytes() == data:
                continue  # same mtime: nothing is compiled again
            part = target.with_name(f"{name}.{os.getpid()}")
            part.write_bytes(data)
            part.replace(target)


def obtain() -> None:
    """Fill csrc/vendor with the pinned amalgamation and xxhash.h.

    Raises:
      SourceMissingError: none of the sources had them; the text lists what was tried and what to do.

    """
    _obtain(
        f"the SQLite {SQLITE_VERSION} amalgamation",
        _sqlite_sources(),
        _sqlite_problem,
        "Download the amalgamation of exactly this version from sqlite.org, unpack it, set "
        "NL_SQLITE_DIR to that directory and build again (or install npm and be online).",
    )
    _obtain(
        "xxhash.h (0.8.1 or newer)",
        _xxhash_sources(),
        _xxhash_problem,
        "Install your system's libxxhash-dev (Debian), xxhash-devel (Fedora) or xxhash (Homebrew), "
        "or set NL_XXHASH_DIR to a directory holding xxhash.h, and build again.",
    )


# ---------------------------------------------------------------- compiling


def _limited_api() -> bool:
    """One wheel for all CPythons, where that exists: not PyPy, debug or free-threaded builds."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    debug = hasattr(sys, "gettotalrefcount")
    return sys.implementation.name == "cpython" and not free_threaded and not debug


def _openssl(kind: str) -> list[str]:
    """Where OpenSSL's headers or libraries are, if not where the compiler looks by itself."""
    prefix = os.environ.get("OPENSSL_DIR")
    if (
        not prefix and sys.platform == "darwin"
    ):  # macOS ships none; Homebrew keeps it out of the way
        prefix = next((str(p) for p in map(Path, HOMEBREW_OPENSSL) if p.exists()), None)
    if not prefix:
        return []
    return [str(path) for path in (Path(prefix) / k for k in (kind, f"{kind}64")) if path.exists()]


def _link_arguments(variant: str) -> list[str]:
    """Linker arguments: libcrypto from the system, or inside the object (wheels).

    A static libcrypto would export its whole API, which would then serve (or be served by) the
    copy under Python's own ssl module; --exclude-libs hides it, as -fvisibility=hidden hides ours.
    """
    where = [f"-L{path}" for path in _openssl("lib")]
    common = [*LINK.get(variant, []), *where, "-lpthread", "-lm"]
    if os.environ.get("NL_STATIC_CRYPTO") != "1":
        return [*common, "-lcrypto"]
    if sys.platform == "darwin":
        archive = next(Path(path) / "libcrypto.a" for path in _openssl("lib"))
        return [*common, str(archive), "-Wl,-exported_symbol,_PyInit_*", "-Wl,-dead_strip"]
    return [*common, "-l:libcrypto.a", "-ldl", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-s"]


def _extension(variant: str) -> Extension:
    ffi = cffi.FFI()
    ffi.cdef((CSRC / "nl_api.h").read_text())
    ffi.cdef(CALLBACKS)
    limited = _limited_api()
    macros = [("Py_LIMITED_API", "0x030a0000")] if limited else [("_CFFI_NO_LIMITED_API", None)]
    ffi.set_source(
        module_name(variant),
        '#include "nl.h"',
        sources=sources(),
        define_macros=macros,
        py_limited_api=limited,
        include_dirs=["csrc", *_openssl("include")],
        extra_compile_args=["-std=gnu11", "-fvisibility=hidden", *VARIANTS[variant]]
        + ["-isystem", "csrc/vendor"],
        extra_link_args=_link_arguments(variant),
    )
    extension: Extension = ffi.distutils_extension(f"build/generated/{variant}", verbose=False)
    return extension


class build_ext(_build_ext):  # noqa: N801 - setuptools' own naming of commands
    """Compiles the variants' objects in parallel, and only those whose inputs changed."""

    def finalize_options(self) -> None:
        obtain()
        variants = os.environ.get("NL_VARIANTS", "release").split(",")
        self.distribution.ext_modules = [_extension(variant) for variant in variants]
        super().finalize_options()

    def build_extensions(self) -> None:
        """The variants share the worker threads, so that two amalgamations compile at once."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [
                (ext, [pool.submit(self._compile, ext, source) for source in ext.sources])
                for ext in self.extensions
            ]
            for ext, objects in jobs:
                self._link(ext, [job.result() for job in objects])

    def _compile(self, ext: Extension, source: str) -> str:
        """Compile one C file; answers the path of its object.

        The object is kept when neither the command nor any file it was made from has changed
        (the compiler lists those in a .d file), because the amalgamation takes a minute.
        """
        folder = OBJECTS / ext.name
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / (Path(source).stem + ".o")
        depends = target.with_suffix(".d")
        flags = list(ext.extra_compile_args)
        if source.startswith("csrc/"):
            flags += WARNINGS + (["-Werror"] if os.environ.get("NL_WERROR") == "1" else [])
        flags += [
            f"-D{name}" if value is None else f"-D{name}={value}"
            for name, value in ext.define_macros
        ]
        include = [f"-I{path}" for path in [*ext.include_dirs, sysconfig.get_path("include")]]
        command = [*self._compiler(), *flags, *include, "-c", source]
        command += ["-MD", "-MF", str(depends), "-o", str(target)]
        stamp = target.with_suffix(".json")
        if self.force or not _fresh(target, depends, stamp, command):
            print(f"compiling {source} for {ext.name}", flush=True)
            stamp.unlink(missing_ok=True)  # an interrupted compiler leaves nothing that counts
            subprocess.run(command, check=True)
            stamp.write_text(json.dumps(command))
        return str(target)

    def _compiler(self) -> list[str]:
        """CC and CFLAGS as setuptools would use them, environment included."""
        return list(self.compiler.compiler_so)

    def _link(self, ext: Extension, objects: list[str]) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # distutils would keep a library that is newer than its objects though the flags changed.
        target.unlink(missing_ok=True)
        self.compiler.link_shared_object(objects, str(target), extra_postargs=ext.extra_link_args)


def _fresh(target: Path, depends: Path, stamp: Path, command: list[str]) -> bool:
    if not (target.exists() and depends.exists() and stamp.exists()):
        return False
    if json.loads(stamp.read_text()) != command:
        return False
    inputs = depends.read_text().partition(":")[2].replace("\\\n", " ").split()
    made = target.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in map(Path, inputs))


class sdist(_sdist):  # noqa: N801
    """A source distribution builds offline: it carries the amalgamation and xxhash.h."""

    def run(self) -> None:
        obtain()
        super().run()


def main(variants: list[str]) -> None:
    """Build the named variants in place, next to the Python files."""
    os.chdir(ROOT)
    os.environ["NL_VARIANTS"] = ",".join(variants or ["release"])
    dist = Distribution({"name": "nearlite", "package_dir": {"nearlite": "python/nearlite"}})
    dist.packages = ["nearlite"]
    command = build_ext(dist)
    command.inplace = True
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["--sources"]:
            obtain()
        else:
            main(sys.argv[1:])
    except SourceMissingError as missing:
        sys.exit(f"build_ffi.py: {missing}")
