"""The demo: its parts, and the whole of it as users run it."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import unicodedata
from contextlib import closing

from nearlite import demo


def start_reader(path):
    return subprocess.Popen(
        [sys.executable, "-m", "nearlite.demo", "reader", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def database(path, rows, tally):
    with closing(sqlite3.connect(path)) as stock:
        stock.executescript(
            demo.SCHEMA + "DROP TRIGGER count_character; PRAGMA journal_mode = WAL;"
        )
        some = list(demo.characters(0x41, 0x41 + rows))
        stock.executemany(demo.INSERT, some)
        stock.execute("INSERT INTO tally VALUES ('Lu', ?)", (tally,))
        stock.commit()


def test_the_data_is_all_of_unicode_and_text():
    rows = list(demo.characters(0, 0x110000))
    assert len(rows) > 140_000
    assert len({row[0] for row in rows}) == len(rows)
    assert rows[0][1] == "\0"  # text with a NUL byte is part of the data on purpose
    assert all(row[1].encode() for row in rows[::997])


def test_a_row_says_what_unicodedata_says():
    (row,) = demo.characters(0xBD, 0xBE)
    assert row == (
        0xBD,
        "½",
        "VULGAR FRACTION ONE HALF",
        "No",
        "ON",
        0,
        "<fraction> 0031 2044 0032",
        0.5,
    )
    assert row[2] == unicodedata.name("½")


def test_the_reader_accepts_states_in_which_the_equation_holds(tmp_path):
    database(tmp_path / "good.db", rows=10, tally=10)
    reader = start_reader(tmp_path / "good.db")
    assert reader.stdout.readline() == "reading\n"
    output, _ = reader.communicate("", timeout=30)
    assert '"states": [10]' in output
    assert '"integrity": "ok"' in output


def test_the_reader_notices_an_impossible_state(tmp_path):
    """Otherwise the demo could not fail."""
    database(tmp_path / "bad.db", rows=10, tally=11)
    with start_reader(tmp_path / "bad.db") as patient:
        assert patient.wait(timeout=30) != 0  # input stays open: it must end by itself
        assert "impossible state: 10 rows, tally 11" in patient.stderr.read()


def test_the_demo_runs_and_cleans_up(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-m", "nearlite", "demo"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr
    assert "bootstrap of the replica" in answer.stdout
    assert re.search(r"0 errors, \d+ different states", answer.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_cannot_start_its_primary_says_so_and_cleans_up(tmp_path):
    broken = tmp_path / "broken"
    (broken / "uvicorn").mkdir(parents=True)
    (broken / "uvicorn" / "__init__.py").write_text("raise ImportError('uvicorn is broken')")
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(broken)}
    answer = subprocess.run(
        [sys.executable, "-m", "nearlite", "demo"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert answer.returncode == 1
    assert "did not start" in answer.stderr
    assert list(folder.iterdir()) == []
