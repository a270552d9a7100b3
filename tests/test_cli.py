"""The command line, as processes: what users type, what they see, and the exit codes of scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing

import pytest
from click import BadParameter

from nearlite.cli import (
    EXIT_FAILED,
    EXIT_OFFLINE,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_UNAUTHORIZED,
    EXIT_USAGE,
)
from nearlite.options import Listen, Size
from nearlite.shell import split
from nearlite.spawn import primary

TOKEN = "correct horse battery staple"
DEADLINE = 60.0  # seconds; only a test that would hang reaches it


def on_primary(url, sql):
    """Execute a statement by plain HTTP, as some other program does."""
    requests = [{"type": "execute", "stmt": {"sql": sql}}, {"type": "close"}]
    body = json.dumps({"requests": requests}).encode()
    with urllib.request.urlopen(f"{url}/v2/pipeline", body, timeout=DEADLINE) as answer:
        assert json.load(answer)["results"][0]["type"] == "ok"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A primary with one table of three rows, without a token."""
    with primary(tmp_path_factory.mktemp("primary") / "data.db", "--durability", "normal") as url:
        on_primary(url, "CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT)")
        on_primary(url, "INSERT INTO note(text) VALUES ('one'), ('two'), (NULL)")
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A primary that asks for TOKEN."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN + "\n")
    with primary(folder / "data.db", "--auth-token-file", str(folder / "token")) as url:
        yield url


def run(*arguments, stdin="", env=None):
    """`nearlite ARGUMENTS`, with its output as text."""
    return subprocess.run(
        [sys.executable, "-m", "nearlite", *map(str, arguments)],
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **(env or {})},
    )


def test_version_names_the_libraries_inside():
    answer = run("--version")
    assert re.fullmatch(r"nearlite \S+ \(SQLite 3\.\d+\.\d+, OpenSSL 3\..*\)\n", answer.stdout)


def test_sync_creates_a_replica_and_says_what_it_did(url, tmp_path):
    answer = run("sync", url, tmp_path / "replica.db")
    assert (answer.returncode, answer.stderr) == (EXIT_OK, "")
    assert re.search(r"replica\.db: at [0-9a-f.]{26}, \d+ pages, [\d,]+ bytes", answer.stdout)
    with closing(sqlite3.connect(tmp_path / "replica.db")) as stock:
        assert stock.execute("SELECT count(*) FROM note").fetchone() == (3,)


def test_sync_as_json_counts_the_bootstrap_and_then_nothing(url, tmp_path):
    first = json.loads(run("sync", url, tmp_path / "replica.db", "--json").stdout)
    again = json.loads(run("sync", url, tmp_path / "replica.db", "--json").stdout)
    assert first["pages"] >= 2
    assert first["bytes"] > first["pages"] * 4096
    assert (again["pages"], again["position"]) == (0, first["position"])


def test_sync_follow_brings_a_change_as_it_happens_and_ends_at_ctrl_c(url, tmp_path):
    command = [sys.executable, "-m", "nearlite", "sync", url, str(tmp_path / "r.db"), "--follow"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    try:
        first = json.loads(process.stdout.readline())
        on_primary(url, "CREATE TABLE followed(n)")
        following = json.loads(process.stdout.readline())
        assert following["position"] > first["position"]
        status = json.loads(run("status", tmp_path / "r.db", "--json").stdout)
        assert status["follows"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=DEADLINE) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_sync_never_overwrites_another_database(url, tmp_path):
    other = tmp_path / "mine.db"
    with closing(sqlite3.connect(other)) as stock:
        stock.execute("CREATE TABLE precious(n)")
    before = other.read_bytes()
    answer = run("sync", url, other)
    assert answer.returncode == EXIT_REFUSED
    assert "not a nearlite replica" in answer.stderr
    assert other.read_bytes() == before


def test_an_unreachable_primary_is_one_line_and_its_own_exit_code(tmp_path):
    answer = run("sync", "http://127.0.0.1:1", tmp_path / "replica.db", "--timeout", "2")
    assert answer.returncode == EXIT_OFFLINE
    assert answer.stderr.count("\n") == 1
    assert "connection refused" in answer.stderr
    assert "no local file was created; try again" in answer.stderr
    assert not (tmp_path / "replica.db").exists()


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_wrong_or_missing_token_is_its_own_exit_code(guarded, tmp_path, token):
    env = {"NEARLITE_AUTH_TOKEN": token} if token else None
    answer = run("sync", guarded, tmp_path / "replica.db", env=env)
    assert answer.returncode == EXIT_UNAUTHORIZED
    assert "auth_token" in answer.stderr


def test_a_token_comes_from_the_environment_a_file_or_an_option(guarded, tmp_path):
    (tmp_path / "token").write_text(f"\n{TOKEN}\n")
    for options, env in (
        ((), {"NEARLITE_AUTH_TOKEN": TOKEN}),
        (("--auth-token-file", tmp_path / "token"), None),
        (("--auth-token", TOKEN), None),
    ):
        answer = run("status", guarded, *options, env=env)
        assert answer.returncode == EXIT_OK, answer.stderr
        assert TOKEN not in answer.stdout + answer.stderr


def test_serve_refuses_to_listen_beyond_loopback_without_a_token(tmp_path):
    answer = run("serve", tmp_path / "data.db", "--listen", "0.0.0.0:0")
    assert answer.returncode != EXIT_OK
    assert "--no-auth" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_serve_refuses_an_address_in_use_in_one_line(url, tmp_path):
    port = url.rpartition(":")[2].strip("/")
    answer = run("serve", tmp_path / "data.db", "--listen", f"127.0.0.1:{port}")
    assert answer.returncode == EXIT_FAILED
    assert answer.stderr.count("\n") == 1
    assert port in answer.stderr


def test_a_second_server_on_the_same_file_is_refused(tmp_path):
    with primary(tmp_path / "data.db"):
        answer = run("serve", tmp_path / "data.db", "--listen", "127.0.0.1:0")
    assert answer.returncode != EXIT_OK
    assert answer.stderr.count("\n") == 1
    assert "data.db" in answer.stderr


def test_serve_with_an_upstream_feeds_a_replica(url, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "nearlite", "serve", tmp_path / "copy.db", "--upstream", url]
        + ["--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert f"a replica of {url.rstrip('/')}/, at http://127.0.0.1:" in line
        below = line.split()[-1]
        answer = run("sync", below, tmp_path / "replica.db")
        assert answer.returncode == EXIT_OK, answer.stderr
        with closing(sqlite3.connect(tmp_path / "replica.db")) as stock:
            assert stock.execute("SELECT text FROM note LIMIT 2").fetchall() == [("one",), ("two",)]
        own = json.loads(run("status", tmp_path / "copy.db", "--json").stdout)
        assert json.loads(run("status", below, "--json").stdout)["position"] == own["position"]
        twice = run("serve", tmp_path / "copy.db", "--upstream", url, "--listen", "127.0.0.1:0")
        assert twice.returncode == EXIT_FAILED
        assert "already served" in twice.stderr
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(20) == EXIT_OK


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--sync-interval", "5"], "needs --upstream"),
        (["--upstream-token", "x"], "needs --upstream"),
        (["--upstream", "http://127.0.0.1:1", "--durability", "full"], "not a replica's"),
        (["--upstream", "http://127.0.0.1:1", "--sync-interval", "0"], "neither 'live' nor"),
    ],
)
def test_serve_refuses_options_that_would_do_nothing(tmp_path, options, text):
    answer = run("serve", tmp_path / "copy.db", "--listen", "127.0.0.1:0", *options)
    assert answer.returncode == EXIT_USAGE
    assert text in answer.stderr


def test_serve_without_its_upstream_and_without_a_file_says_so(tmp_path):
    options = ["--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"]
    answer = run("serve", tmp_path / "copy.db", *options)
    assert answer.returncode == EXIT_OFFLINE
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "copy.db").exists()


def test_status_tells_a_primary_a_replica_and_a_database_apart(url, tmp_path):
    run("sync", url, tmp_path / "replica.db")
    with closing(sqlite3.connect(tmp_path / "plain.db")) as stock:
        stock.execute("CREATE TABLE t(n)")
    of_primary = json.loads(run("status", url, "--json").stdout)
    of_replica = json.loads(run("status", tmp_path / "replica.db", "--json").stdout)
    of_database = json.loads(run("status", tmp_path / "plain.db", "--json").stdout)
    assert of_primary["kind"] == "primary"
    assert of_replica["kind"] == "replica"
    assert of_database == {"kind": "database", "page_size": 4096, "pages": 2}
    assert of_replica["position"] == of_primary["position"]
    assert of_replica["hash"] == of_primary["hash"]


def test_status_of_nothing_says_what_it_accepts(tmp_path):
    answer = run("status", tmp_path / "missing.db")
    assert answer.returncode == EXIT_USAGE
    assert "neither a file nor a URL" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_status_of_something_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear reader, " * 1000)
    answer = run("status", tmp_path / "letter.txt")
    assert answer.returncode in (EXIT_FAILED, EXIT_REFUSED)
    assert "file is not a database" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_status_of_another_web_server_is_not_taken_for_a_primary(tmp_path):
    code = "import http.server as h; s = h.ThreadingHTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler); print(s.server_port, flush=True); s.serve_forever()"
    web = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    try:
        answer = run("status", f"http://127.0.0.1:{web.stdout.readline().strip()}")
    finally:
        web.kill()
        web.wait()
        web.stdout.close()
    assert answer.returncode == EXIT_FAILED
    assert answer.stderr.count("\n") == 1


def test_verify_passes_on_a_sound_replica_and_compares_with_its_primary(url, tmp_path):
    run("sync", url, tmp_path / "replica.db")
    answer = run("verify", tmp_path / "replica.db", "--against", url)
    assert answer.returncode == EXIT_OK, answer.stdout
    names = [line.split(":")[0].split(None, 1) for line in answer.stdout.splitlines()]
    assert names == [
        ["ok", "integrity_check"],
        ["ok", "state hash"],
        ["ok", "against the primary"],
    ]


def test_verify_finds_a_byte_that_integrity_check_does_not(url, tmp_path):
    path = tmp_path / "replica.db"
    run("sync", url, path)
    with closing(sqlite3.connect(path)) as stock:  # everything into the file itself
        stock.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    at = data.index(b"two")
    data[at : at + 3] = b"TWO"
    path.write_bytes(data)
    answer = run("verify", path)
    assert answer.returncode == EXIT_FAILED
    assert answer.stdout.startswith("ok      integrity_check")
    assert "FAILED  state hash" in answer.stdout
    assert run("verify", path, "--repair").returncode == EXIT_USAGE
    answer = run("verify", path, "--repair", "--against", url)
    assert answer.returncode == EXIT_OK, answer.stdout
    assert answer.stdout.startswith("ok      repair: at ")
    assert ", 1 pages, " in answer.stdout
    assert run("verify", path, "--against", url).returncode == EXIT_OK


def test_sync_repairs_and_adopts_only_when_asked(url, tmp_path):
    path = tmp_path / "mine.db"
    with closing(sqlite3.connect(path)) as stock:
        stock.execute("CREATE TABLE mine(a)")
    assert run("sync", url, path).returncode == EXIT_REFUSED
    assert run("verify", path, "--repair", "--against", url).returncode == EXIT_REFUSED
    answer = run("sync", url, path, "--adopt")
    assert answer.returncode == EXIT_OK, answer.stderr
    assert run("sync", url, path, "--repair", "--json").returncode == EXIT_OK
    assert run("verify", path, "--against", url).returncode == EXIT_OK


def test_verify_against_another_database_fails(guarded, url, tmp_path):
    run("sync", url, tmp_path / "replica.db")
    env = {"NEARLITE_AUTH_TOKEN": TOKEN}
    answer = run("verify", tmp_path / "replica.db", "--against", guarded, env=env)
    assert answer.returncode == EXIT_FAILED
    assert "FAILED  against the primary" in answer.stdout


@pytest.mark.parametrize("source", ["url", "replica"])
def test_backup_is_an_ordinary_writable_database(url, tmp_path, source):
    run("sync", url, tmp_path / "replica.db")
    target = url if source == "url" else tmp_path / "replica.db"
    answer = run("backup", target, tmp_path / "out.db")
    assert answer.returncode == EXIT_OK, answer.stderr
    with closing(sqlite3.connect(tmp_path / "out.db")) as stock:
        assert stock.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        stock.execute("INSERT INTO note(text) VALUES ('written')")
        stock.commit()
        assert stock.execute("SELECT count(*) FROM note").fetchone() == (4,)
    status = json.loads(run("status", tmp_path / "out.db", "--json").stdout)
    assert status["kind"] == "database"
    leftovers = {path.name for path in tmp_path.iterdir() if ".part" in path.name}
    assert leftovers == set()


def test_backup_never_overwrites(url, tmp_path):
    (tmp_path / "out.db").write_text("precious")
    answer = run("backup", url, tmp_path / "out.db")
    assert answer.returncode == EXIT_REFUSED
    assert (tmp_path / "out.db").read_text() == "precious"


def test_backup_does_not_replay_the_wal_of_a_database_that_is_gone(url, tmp_path):
    (tmp_path / "out.db-wal").write_bytes(b"stale" * 1000)
    assert run("backup", url, tmp_path / "out.db").returncode == EXIT_OK
    assert not (tmp_path / "out.db-wal").exists()


def test_restoring_as_documented_is_a_new_history_that_old_replicas_refuse(tmp_path):
    with primary(tmp_path / "data.db") as before:
        on_primary(before, "CREATE TABLE note(text)")
        assert run("backup", before, tmp_path / "backup.db").returncode == EXIT_OK
        on_primary(before, "INSERT INTO note VALUES ('after the backup')")
        assert run("sync", before, tmp_path / "replica.db").returncode == EXIT_OK
    for name in ("data.db", "data.db-wal", "data.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "data.db-nearlite")
    (tmp_path / "backup.db").rename(tmp_path / "data.db")
    with primary(tmp_path / "data.db") as after:
        answer = run("sync", after, tmp_path / "replica.db")
        again = run("sync", after, tmp_path / "new.db")
    assert answer.returncode == EXIT_REFUSED
    assert "another database" in answer.stderr
    assert again.returncode == EXIT_OK
    with closing(sqlite3.connect(tmp_path / "replica.db")) as stock:
        assert stock.execute("SELECT text FROM note").fetchall() == [("after the backup",)]


def test_shell_executes_a_script_from_a_pipe(url):
    script = "SELECT id,\n text FROM note\nWHERE id <= 3;\n.tables\nSELECT x'00ff'"
    answer = run("shell", url, stdin=script)
    assert answer.returncode == EXIT_OK, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[:3] == ["1\tone", "2\ttwo", "3\tNULL"]
    assert "note" in lines
    assert lines[-1] == "X'00ff'"


def test_shell_writes_through_a_replica(url, tmp_path):
    path = tmp_path / "replica.db"
    write = "CREATE TABLE IF NOT EXISTS shelled(n); INSERT INTO shelled VALUES (7);"
    answer = run("shell", path, "--sync-url", url, stdin=write + "\nSELECT n FROM shelled;\n")
    assert (answer.returncode, answer.stdout) == (EXIT_OK, "7\n"), answer.stderr
    assert run("shell", url, "-c", "SELECT n FROM shelled").stdout == "7\n"


def test_the_key_in_the_environment_is_for_files(url, tmp_path, monkeypatch):
    key = tmp_path / "key"
    key.write_text("hex:" + "11" * 32)
    monkeypatch.setenv("NEARLITE_ENCRYPTION_KEY_FILE", str(key))
    answer = run("shell", url, "-c", "SELECT 1")
    assert (answer.returncode, answer.stdout) == (EXIT_OK, "1\n"), answer.stderr


def test_shell_stops_a_script_at_its_first_error(url):
    answer = run("shell", url, stdin="SELECT 1;\nSELEC 2;\nSELECT 3;\n")
    assert (answer.returncode, answer.stdout) == (EXIT_FAILED, "1\n")
    assert "syntax error" in answer.stderr


def test_shell_does_not_create_a_database_by_accident(tmp_path):
    answer = run("shell", tmp_path / "typo.db", "-c", "SELECT 1")
    assert answer.returncode == EXIT_USAGE
    assert list(tmp_path.iterdir()) == []


def test_bench_measures_everything_and_cleans_up(tmp_path):
    answer = run("bench", "--rows", "2000", env={"TMPDIR": str(tmp_path)})
    assert answer.returncode == EXIT_OK, answer.stderr
    for what in ("bootstrap", "point select", "scan", "sync with nothing new", "COMMIT", "GB/s"):
        assert what in answer.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("SELECT 1; SELECT 2;\n", ["SELECT 1;", " SELECT 2;"], ""),
        ("SELECT ';'; SELECT", ["SELECT ';';"], " SELECT"),
        ("-- a; comment\nSELECT 1;", ["-- a; comment\nSELECT 1;"], ""),
        (
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END; SELECT 2;",
            ["CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END;", " SELECT 2;"],
            "",
        ),
        ("  \n", [], ""),
    ],
)
def test_a_text_is_cut_where_its_statements_end(text, whole, rest):
    assert split(text) == (whole, rest)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("16MiB", 16 << 20), ("1GB", 10**9), ("64 k", 64_000), ("2g", 2 * 10**9)],
)
def test_sizes_are_read_as_written(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "16 apples", "-1", "1.5MiB", "MiB"])
def test_what_is_no_size_is_a_usage_error(text, tmp_path):
    with pytest.raises(BadParameter):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        (":9", ("0.0.0.0", 9)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_addresses_are_read_as_written(text, address):
    assert Listen().convert(text, None, None) == address


@pytest.mark.parametrize("command", ["verify", "status", "backup"])
def test_what_is_no_regular_file_is_refused(tmp_path, command):
    os.mkfifo(tmp_path / "fifo")
    out = [str(tmp_path / "out.db")] if command == "backup" else []
    done = run(command, str(tmp_path / "fifo"), *out)
    assert done.returncode == EXIT_USAGE
    assert "file" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_folder_that_is_missing_is_named(tmp_path):
    sqlite3.connect(tmp_path / "there.db").execute("create table t(a)").connection.close()
    out = tmp_path / "nowhere" / "out.db"
    done = run("backup", str(tmp_path / "there.db"), str(out))
    assert (done.returncode, f"no folder {out.parent}" in done.stderr) == (EXIT_USAGE, True)
    (tmp_path / "link.db").symlink_to(out)
    done = run("serve", str(tmp_path / "link.db"), "--no-auth", "--listen", "127.0.0.1:0")
    assert done.returncode == EXIT_FAILED
    assert f"{out}-nearlite, the folder of the database's log, could not be created" in done.stderr
    assert not out.parent.exists()
