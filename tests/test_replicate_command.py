"""`nearlite config check`, where a configuration is found, and what stands in the files that it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = """\
addr: ":9090"

dbs:
  - path: /data/db
"""


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nearlite", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def check(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "nearlite.yml").write_text(text)
    return run(folder, "config", "check", **environment)


def test_a_line_for_each_database(tmp_path: Path) -> None:
    text = """\
addr: ":9090"
dbs:
  - path: /data/a
    replicas: []
  - path: b.db
    sync-interval: 10s
    encryption-key: some phrase
    upstream: {url: "http://$H:1", path: /data/c}
  - path: /data/d
    upstream: {url: "https://h"}
"""
    answer = check(tmp_path, text, H="h")
    assert answer.returncode == 0
    assert answer.stdout.splitlines() == [
        "/data/a: a primary, named a, served at /db/a/",
        f"{tmp_path}/b.db: a replica (every 10 s) of http://h:1 (path /data/c), sealed, named b.db, served at /db/b.db/",
        "/data/d: a live replica of https://h (path /data/d, or else name d), named d, served at /db/d/",
    ]
    assert answer.stderr.startswith("warning: ./nearlite.yml:4: replicas has no effect: ")
    assert answer.stderr.count("\n") == 1


def test_a_mistake_ends_it_with_one_line(tmp_path: Path) -> None:
    answer = check(tmp_path, "dbs:\n  - pth: x\n")
    assert (answer.returncode, answer.stdout) == (1, "")
    expected = (
        'nearlite: ./nearlite.yml:2: dbs[0].pth: there is no such key; did you mean "path"?\n'
    )
    assert answer.stderr == expected


def test_replicate_ends_with_the_same_line(tmp_path: Path) -> None:
    (tmp_path / "nearlite.yml").write_text("dbs:\n  - pth: x\n")
    answer = run(tmp_path, "replicate")
    assert answer.returncode == 1
    assert answer.stderr.startswith("nearlite: ./nearlite.yml:2: dbs[0].pth: ")


def test_where_it_is_looked_for(tmp_path: Path) -> None:
    answer = run(tmp_path, "config", "check")
    assert answer.returncode == 1
    looked = "./nearlite.yml, /etc/nearlite.yml, ./litestream.yml, /etc/litestream.yml"
    assert f"there is no configuration; looked for {looked}" in answer.stderr
    (tmp_path / "litestream.yml").write_text(GUIDE)
    assert run(tmp_path, "config", "check").stdout.startswith("/data/db: a primary")
    (tmp_path / "nearlite.yml").write_text(GUIDE.replace("data", "ours"))
    assert run(tmp_path, "config", "check").stdout.startswith("/ours/db: a primary")
    assert run(tmp_path, "config", "check", "litestream.yml").stdout.startswith(
        "/data/db: a primary"
    )
    answer = run(tmp_path, "config", "check", "nowhere.yml")
    assert (answer.returncode, answer.stderr) == (
        1,
        "nearlite: nowhere.yml: No such file or directory\n",
    )


def test_a_primary_that_nobody_can_reach_is_a_mistake(tmp_path: Path) -> None:
    answer = check(tmp_path, "dbs:\n  - path: /data/db\n")
    assert answer.returncode == 1
    assert (
        "./nearlite.yml:2: dbs[0]: is a primary, and nobody can reach it: give addr"
        in answer.stderr
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("auth-token-file: none", "1: auth-token-file: {0}/none: No such file or directory"),
        ("auth-token-file: empty", "1: auth-token-file: {0}/empty is empty"),
        ("auth-token-file: .", "1: auth-token-file: {0}/.: Is a directory"),
        ("auth-token-file: binary", "1: auth-token-file: {0}/binary is no text"),
        ("auth-jwt-key-file: text", "1: auth-jwt-key-file: a public key is PEM (PUBLIC KEY), or"),
        ("tls-cert: none", "1: tls-cert: {0}/none cannot be read: No such file or directory"),
        ("tls-cert: text", "1: tls-cert: {0}/text holds no certificate in PEM"),
        (
            "dbs:\n- path: a\n  encryption-key-file: empty\n  upstream: {url: 'http://h'}",
            "3: dbs[0].encryption-key-file: ",
        ),
        (
            "dbs:\n- path: a\n  upstream:\n    url: http://h\n    auth-token: 'é SECRET'",
            "5: dbs[0].upstream.auth-token: ",
        ),
        (
            "dbs: [{path: a, upstream: {url: 'http://h', auth-token-file: none}}]",
            "1: dbs[0].upstream.auth-token-file: {0}/none: No such file or directory",
        ),
        (
            "dbs: [{path: a, upstream: {url: 'http://h', ca-file: text}}]",
            "1: dbs[0].upstream.ca-file: the certificates cannot be used: ",
        ),
    ],
)
def test_what_is_wrong_with_a_file_that_it_names(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "text").write_text("no such thing, SECRET")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    dbs = "" if "dbs" in text else "\ndbs: [{path: a}]"
    answer = check(tmp_path, f"{text}\naddr: ':1'{dbs}\n")
    assert answer.returncode == 1
    assert answer.stderr.startswith("nearlite: ./nearlite.yml:" + told.format(tmp_path))
    assert "SECRET" not in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_options_of_litestreams_form(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_text("dbs:\n  - path: /$NOWHERE/db\n")
    answer = run(tmp_path, "config", "check", "x.yml", "-no-expand-env")
    assert "is a primary, and nobody can reach it" in answer.stderr
    answer = run(tmp_path, "replicate", "-config", "x.yml")
    assert "the variable NOWHERE is not set" in answer.stderr
    answer = run(tmp_path, "replicate", "-config", "x.yml", "-no-expand-env", "-addr", "nine")
    assert answer.returncode == 2
    assert "'nine' is not HOST:PORT or :PORT" in answer.stderr
    for words, why in (("'a", "a quotation mark is left open"), (" ", "names no program")):
        command = ["replicate", "-config", "x.yml", "-no-expand-env", "-addr", ":0", "-exec", words]
        answer = run(tmp_path, *command)
        assert answer.returncode == 2
        assert why in answer.stderr
