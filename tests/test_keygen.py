"""`nearlite keygen`."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import nearlite


def keygen(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nearlite", "keygen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_is_printed() -> None:
    made = [keygen().stdout for _ in range(2)]
    assert all(re.fullmatch(r"hex:[0-9a-f]{64}\n", text) for text in made)
    assert made[0] != made[1]


def test_a_key_in_a_file_opens_what_was_sealed_with_it(tmp_path: Path) -> None:
    out = tmp_path / "a.key"
    assert keygen(out).returncode == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    for _ in range(2):
        with closing(nearlite.connect(tmp_path / "a.db", encryption_key=out)) as con:
            con.execute("CREATE TABLE IF NOT EXISTS t(a)")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "a.key"
    out.write_text("the only one")
    done = keygen(out)
    assert (done.returncode, done.stderr) == (
        5,
        f"nearlite: {out} exists and was not touched: it may be the only key\n",
    )
    assert out.read_text() == "the only one"
