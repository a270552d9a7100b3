"""Rule E1 where locks do not survive: Python's sqlite3 is refused on files that nearlite has open."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from primaries import primary

from nearlite import errors
from nearlite.guard import Guard, Hook, guard


@pytest.fixture
def hooks() -> list[Hook]:
    return []


@pytest.fixture
def watched(hooks: list[Hook]) -> Guard:
    return Guard(hooks.append)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.db"
    path.touch()
    return path


def spellings(path: Path) -> list[object]:
    link = path.with_name("link.db")
    link.symlink_to(path)
    hard = path.with_name("hard.db")
    hard.hardlink_to(path)
    quoted = str(path).replace("d", "%64")
    return [
        str(path),
        path,
        os.fsencode(path),
        link,
        hard,
        f"file:{path}?mode=ro",
        f"file://{quoted}",
    ]


def test_rule_e1_an_open_file_is_refused_under_every_name(watched: Guard, file: Path) -> None:
    key = watched.opened(str(file))
    for name in spellings(file):
        with pytest.raises(errors.ProgrammingError, match="open through nearlite"):
            watched.hook("sqlite3.connect", (name,))
    watched.closed(key)
    for name in (str(file), f"file:{file}"):
        watched.hook("sqlite3.connect", (name,))


def test_a_file_is_free_only_after_its_last_close(watched: Guard, file: Path) -> None:
    first, second = watched.opened(str(file)), watched.opened(str(file))
    watched.closed(first)
    with pytest.raises(errors.ProgrammingError):
        watched.hook("sqlite3.connect", (str(file),))
    watched.closed(second)
    watched.closed(second)  # once too often changes nothing
    watched.hook("sqlite3.connect", (str(file),))


@pytest.mark.parametrize("name", [":memory:", "", b"", 5, None, "no/such/file", "file:", "a\0b"])
def test_other_databases_are_nobodys_business(watched: Guard, file: Path, name: object) -> None:
    watched.opened(str(file))
    watched.hook("sqlite3.connect", (name,))
    watched.hook("open", (str(file), "r", 0))


def test_the_hook_is_installed_once_and_only_when_needed(
    watched: Guard, hooks: list[Hook], file: Path
) -> None:
    assert hooks == []
    watched.opened("no/such/file")
    assert hooks == []
    watched.opened(str(file))
    watched.opened(str(file))
    assert len(hooks) == 1


def test_in_the_child_of_a_fork_nothing_is_open(watched: Guard, file: Path) -> None:
    key = watched.opened(str(file))
    watched.forked()
    watched.hook("sqlite3.connect", (str(file),))
    watched.closed(key)


class Owner:
    """Something that has a file open."""


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_owner_that_closes_or_is_forgotten_frees_its_file(
    watched: Guard, file: Path, *, forgotten: bool
) -> None:
    owner = Owner()
    release = watched.watch(owner, f"file:{file}?mode=rw")
    with pytest.raises(errors.ProgrammingError):
        watched.hook("sqlite3.connect", (file,))
    if forgotten:
        del owner
    else:
        release()
        release()
    watched.hook("sqlite3.connect", (file,))


def test_the_standard_library_is_refused_and_then_allowed(file: Path) -> None:
    """A real audit hook, in a process of its own because it cannot be removed."""
    script = """if True:
        import sqlite3, sys
        from nearlite.guard import Guard
        guard = Guard(sys.addaudithook)
        key = guard.opened(sys.argv[1])
        try:
            sqlite3.connect(sys.argv[1])
        except sqlite3.ProgrammingError as error:
            print("refused")
        guard.closed(key)
        print(sqlite3.connect(sys.argv[1]).execute("SELECT 1").fetchone()[0])
        """
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split() == ["refused", "1"], done.stderr


def test_files_of_replicas_and_primaries_are_refused_while_they_are_open(
    watched: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("nearlite.replica", "nearlite.primary"):
        monkeypatch.setattr(f"{module}.guard", watched)
    files = [tmp_path / "primary.db", tmp_path / "replica.db"]
    with primary(tmp_path) as served:
        first, second = served.replica(), served.replica()
        for open_here in (first, second):
            for file in files:
                with pytest.raises(errors.ProgrammingError, match="open through nearlite"):
                    watched.hook("sqlite3.connect", (str(file),))
            open_here.close()
        watched.hook("sqlite3.connect", (str(files[1]),))
    watched.hook("sqlite3.connect", (str(files[0]),))


@pytest.mark.skipif(sys.platform != "linux", reason="the other systems refuse")
def test_on_linux_nothing_is_refused(file: Path) -> None:
    guard.opened(str(file))
    sqlite3.connect(file).close()
