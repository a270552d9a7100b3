"""docs/sidecar.md: its guide, typed into two terminals; its tables of keys and metrics are whole."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from sidecars import SHELL, Sidecar, sidecar
from test_background import eventually

from nearlite import configuration
from nearlite.meters import Meters
from nearlite.sidecar_metrics import metrics_text

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "sidecar.md").read_text()
GUIDE = PAGE.partition("## From the first file")[2].partition("\n## ")[0]
BLOCK = re.compile(r"^```(yaml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LISTENS = "replicating 1 database at http://0.0.0.0:9090\n"


def commands(block: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a block."""
    found = [part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, output) for command, _, output in found]


class Machine:
    """A folder in place of a machine: what is below /data there, is below it here.

    Args:
      folder: in place of its root.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)

    def here(self, text: str) -> str:
        return text.replace("/data/", f"{self.folder}/data/").replace('":9090"', '"127.0.0.1:0"')

    def run(self, command: str) -> str:
        """What a command prints, as the page has it."""
        words = shlex.split(self.here(command))
        if words[0] == "nearlite":
            words[:1] = [sys.executable, "-m", "nearlite"]
        answer = subprocess.run(
            words, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        return (answer.stdout + answer.stderr).replace(f"{self.folder}/data/", "/data/")


@pytest.mark.skipif(SHELL is None, reason="SQLite's shell is not installed")
def test_the_guide_from_its_first_file_to_its_first_row(tmp_path: Path) -> None:
    kinds = [kind for kind, _ in BLOCK.findall(GUIDE)]
    assert kinds == ["yaml", "console", "console", "yaml", "console"]
    first, starts, creates, second, reads = (text for _, text in BLOCK.findall(GUIDE))
    one, two = Machine(tmp_path / "one"), Machine(tmp_path / "two")
    (one.folder / "primary.yml").write_text(one.here(first))
    (check, told), (start, line) = commands(starts)
    assert one.run(check) == told
    assert (start, line) == ("nearlite replicate -config primary.yml", LISTENS)
    arguments = shlex.split(start)[2:]
    with sidecar(one.folder, one.here(first), *arguments) as primary:
        for command, expected in commands(creates):
            assert one.run(command) == expected
        (start, line), *rest = commands(reads)
        assert (start, line) == ("nearlite replicate -config replica.yml", LISTENS)
        # Two machines have the same path and the same port; here neither can be.
        text = two.here(second).replace(":9090", f":{primary.port}")
        (two.folder / "replica.yml").write_text(text)
        environment = {"PRIMARY_HOSTNAME": "127.0.0.1"}
        arguments = shlex.split(start)[2:]
        with sidecar(two.folder, text, *arguments, environment=environment) as replica:
            _is_there(replica, two)
            for command, expected in rest:
                printed = two.run(command)
                if "INSERT" in command:  # versions of the shell word it differently
                    assert "attempt to write a readonly database" in printed
                    assert "attempt to write a readonly database" in expected
                else:
                    assert printed == expected
            against = f"nearlite verify /data/db --against {primary.url}"
            assert "FAILED" not in two.run(against)
            assert "replica" in two.run("nearlite status /data/db")


def _is_there(replica: Sidecar, machine: Machine) -> None:
    """Somebody who types is slower than that."""
    expected = "apple\n"
    eventually(replica.healthy)
    eventually(
        lambda: machine.run('sqlite3 -readonly /data/db "SELECT name FROM fruit"') == expected
    )


def keys_of(struct: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


def table_after(text: str) -> set[str]:
    """The names in the first column of the table behind a text."""
    rows = PAGE.partition(text)[2].partition("\n\n|")[2].partition("\n\n")[0].splitlines()
    return {
        name
        for row in rows
        for name in re.findall(r"`([^`]+)`", row.split("|")[0] or row.split("|")[1])
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("or as a number of seconds.", keys_of(configuration._Config)),
        ("\nOf each database:", keys_of(configuration._Database)),
        ("\nOf an upstream:", keys_of(configuration._Upstream)),
        ("in one warning:", {*configuration._IGNORED, *configuration._GLOBAL_IGNORED}),
    ],
)
def test_every_key_is_in_the_reference_and_no_other(text: str, expected: set[str]) -> None:
    assert table_after(text) == expected


def test_every_metric_is_in_the_table_and_no_other() -> None:
    text, _ = metrics_text(Meters(), [], {}, exposed=False)
    told = set(re.findall(r"^# HELP (nearlite_\w+) ", text.decode(), re.MULTILINE))
    told = {name for name in told if not re.match(r"nearlite_(http_|websockets|build)", name)}
    assert table_after("and of the process:") == told


def test_the_defaults_of_the_reference() -> None:
    (one,) = configuration.read(
        "dbs: [{path: /a, upstream: {url: 'http://h'}}]", "n", environment={}, folder="/"
    ).databases
    assert (one.interval, one.lag_limit, one.retain_seconds) == ("live", 30.0, 24 * 3600.0)
    looked = ", ".join(f"`{place}`" for place in configuration.places())
    assert f"Looked for as {looked};" in PAGE
