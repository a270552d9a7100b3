"""What users install: from a clone, from the source distribution, and as one wheel for all Pythons.

The amalgamation is compiled once here: the wheel is built from the unpacked source distribution with
the objects that `pip install '.[all]'` made in the clone (same commands, other link), which the build
takes only if every file they were made from is there.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from interpreters import ROOT, environment, pip, pythons, run

PROGRAM = (
    "import sys, nearlite; c = nearlite.connect(':memory:');"
    "c.execute('create virtual table t using fts5(x)'); c.execute('insert into t values (?)', ('near lite',));"
    "print(sys.version_info[:2], c.execute('select x from t where t match ?', ('lite',)).fetchall())"
)
ANSWER = "[('near lite',)]"

pytestmark = [
    pytest.mark.xdist_group("packaging"),
    pytest.mark.skipif(sys.platform != "linux", reason="the wheel is built with GNU ld"),
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The tracked and new files of this tree, and nothing that was built or downloaded."""
    target = tmp_path_factory.mktemp("clone")
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def installed(clone, tmp_path_factory) -> Path:
    """`pip install '.[all]'` of the clone, in a fresh environment; answers its python."""
    python = environment(Path(sys.executable), tmp_path_factory.mktemp("installed"))
    pip(python, f"{clone}[all]", NL_SQLITE_DIR=str(ROOT / "csrc" / "vendor"))
    return python


@pytest.fixture(scope="module")
def sdist(clone, installed, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(target)!r})"
    run(sys.executable, "-c", code, cwd=clone)
    return next(target.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(clone, sdist, tmp_path_factory) -> Path:
    """Built from the source distribution, OpenSSL inside."""
    target = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(target)
    tree = next(target.glob("nearlite-*"))
    shutil.copytree(clone / "build", tree / "build")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*command, "--wheel-dir", target, tree, cwd=target, NL_STATIC_CRYPTO="1")
    return next(target.glob("*.whl"))


def shared_object(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("nearlite/_ffi.abi3.so", folder))


def test_a_clean_clone_installs_with_all_extras(installed) -> None:
    assert ANSWER in run(installed, "-c", PROGRAM, cwd=installed.parent)
    assert "SQLite" in run(installed.parent / "nearlite", "--version", cwd=installed.parent)


def test_the_source_distribution_builds_offline(sdist) -> None:
    with tarfile.open(sdist) as archive:
        names = {re.sub(r"^[^/]*/", "", name) for name in archive.getnames()}
    for name in ("sqlite3.c", "sqlite3.h", "xxhash.h"):
        assert f"csrc/vendor/{name}" in names
    assert {"build_ffi.py", "csrc/nl_api.h", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_the_wheel_holds_python_and_one_shared_object(wheel, clone) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert re.fullmatch(r"nearlite-[\d.]+-cp310-abi3-linux_\w+\.whl", wheel.name)
    assert [name for name in names if name.endswith(".so")] == ["nearlite/_ffi.abi3.so"]
    assert not [name for name in names if name.endswith((".c", ".h", ".o"))]
    package = clone / "python"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert modules <= names
    assert "nearlite/py.typed" in names
    assert "nearlite/console.html" in names


def test_the_wheel_needs_no_openssl_of_the_system(wheel, tmp_path) -> None:
    needed = run("readelf", "-d", shared_object(wheel, tmp_path), cwd=tmp_path)
    libraries = re.findall(r"NEEDED.*\[(.*?)\.so", needed)
    assert "libc" in libraries
    assert not {
        name for name in libraries if name.startswith(("libcrypto", "libssl", "libsqlite3"))
    }


def exported(path: Path) -> set[str]:
    lines = run("nm", "-D", "--defined-only", path, cwd=path.parent).splitlines()
    return {line.split()[-1] for line in lines} - {"_init", "_fini", "_cffi_pypyinit__ffi"}


def test_nothing_is_exported_but_the_entry_point(wheel, tmp_path) -> None:
    assert exported(shared_object(wheel, tmp_path)) == {"PyInit__ffi"}


def test_nothing_of_a_source_build_is_exported_either() -> None:
    assert exported(ROOT / "python" / "nearlite" / "_ffi.abi3.so") == {"PyInit__ffi"}


@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.parent.parent.name or path.name)
def test_one_wheel_serves_every_python(python, wheel, tmp_path) -> None:
    target = environment(python, tmp_path / "env")
    pip(target, "--only-binary", ":all:", wheel)
    assert ANSWER in run(target, "-c", PROGRAM, cwd=tmp_path)
