"""A server that speaks TLS itself."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import openssl
from serving import Client, app_of, execute, serving
from test_abandoned import BEGIN_AT_ONCE, assert_free, holding, message, patient

import nearlite
from nearlite.http import Transport
from nearlite.minting import make_keys, mint, private_key
from nearlite.network import Network
from nearlite.server import App
from nearlite.tls import server_context

TOKEN = "a secret of this test"


@pytest.fixture
def client_tls(certificates: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates / "ca.pem")


@pytest.fixture
def app(tmp_path: Path) -> App:
    return patient(tmp_path / "data.db")


@pytest.fixture
def port(app: App, certificates: Path) -> Iterator[int]:
    with serving(app, tls=server_context(certificates / "server.pem")) as port:
        yield port


@pytest.fixture
def client(port: int, client_tls: ssl.SSLContext) -> Iterator[Client]:
    with contextlib.closing(Client(port, tls=client_tls)) as client:
        client.run("CREATE TABLE t(a)")
        yield client


def connect(port: int, tls: ssl.SSLContext) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    return tls.wrap_socket(raw, server_hostname="127.0.0.1")


def read_answer(sock: ssl.SSLSocket) -> Any:
    with contextlib.closing(sock.makefile("rb", 0)) as file:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += file.read(1)
        (size,) = [
            int(line.split(b":")[1])
            for line in head.lower().splitlines()
            if line.startswith(b"content-length")
        ]
        body = b""
        while len(body) < size:
            body += file.read(size - len(body))
    return json.loads(body)


# ---------------------------------------------------------------- connections


def test_all_of_the_server_over_tls(tmp_path: Path, certificates: Path) -> None:
    app = app_of(tmp_path / "data.db", auth_token=TOKEN)
    with serving(app, tls=server_context(certificates / "server.pem")) as port:
        url = f"https://localhost:{port}"
        reached: Any = {"auth_token": TOKEN, "verify": certificates / "ca.pem"}
        with contextlib.closing(nearlite.connect(url, isolation_level=None, **reached)) as remote:
            remote.execute("CREATE TABLE t(a)")
            remote.execute("INSERT INTO t VALUES (zeroblob(3000000)), (2)")
            sizes = remote.execute("SELECT length(a) FROM t").fetchall()
            assert sizes == [(3000000,), (1,)]
            (large,) = remote.execute("SELECT a FROM t LIMIT 1").fetchone()
            assert large == bytes(3000000)
            with contextlib.closing(
                nearlite.connect(
                    tmp_path / "r.db",
                    sync_url=url,
                    sync_interval="live",
                    isolation_level=None,
                    **reached,
                )
            ) as replica:
                assert replica.execute("SELECT length(a) FROM t").fetchall() == sizes
                replica.execute("INSERT INTO t VALUES (3)")
                assert replica.execute("SELECT count(*) FROM t").fetchone() == (3,)
                remote.execute("INSERT INTO t VALUES (4)")
                replica.wait_for(remote.last_write_position, timeout=20)
                assert replica.execute("SELECT count(*) FROM t").fetchone() == (4,)


def test_old_versions_of_tls_are_refused(port: int, certificates: Path) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
        context.minimum_version = context.maximum_version = version
        with connect(port, context) as sock:
            assert sock.version() == version.name.replace("_", ".")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, OSError)):
        connect(port, old)


def test_who_speaks_no_tls_is_answered_nothing(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP" not in raw.recv(1000)


# ---------------------------------------------------------------- answers that do not arrive


@pytest.mark.parametrize("goodbye", [False, True], ids=["bare", "goodbye"])
@pytest.mark.parametrize("head", [b"", b"connection: close\r\n"], ids=["kept-alive", "closing"])
def test_a_client_that_left_before_its_answer_holds_up_nobody(
    app: App, client: Client, port: int, client_tls: ssl.SSLContext, head: bytes, goodbye: bool
) -> None:
    for _ in range(3):
        request = message(client, BEGIN_AT_ONCE, head=head)
        sock = connect(port, client_tls)
        sock.sendall(message(client, execute("SELECT 1")))
        read_answer(sock)  # and with it what TLS sends of its own
        with holding(app):
            sock.sendall(request)
            if goodbye:
                sock.setblocking(False)
                with contextlib.suppress(ssl.SSLWantReadError):
                    sock.unwrap()
            sock.close()
        assert_free(client)


@pytest.mark.parametrize("how", ["bare", "goodbye", "reset"])
@pytest.mark.parametrize("head", [b"", b"connection: close\r\n"], ids=["kept-alive", "closing"])
def test_a_client_that_has_its_answer_may_go_on_over_another_connection(
    client: Client, port: int, client_tls: ssl.SSLContext, how: str, head: bytes
) -> None:
    for _ in range(3):
        sock = connect(port, client_tls)
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(message(client, BEGIN_AT_ONCE, head=head))
        baton = read_answer(sock)["baton"]
        if how == "goodbye":
            with contextlib.suppress(OSError):
                sock.unwrap()
        sock.close()
        client.request("GET", "/health")  # the server has turned round since
        done = client.pipeline(execute("COMMIT"), {"type": "close"}, baton=baton)
        assert [result["type"] for result in done["results"]] == ["ok", "ok"]
        assert client.rows("SELECT a FROM t") == [[1]]
        client.run("DELETE FROM t")


def test_a_client_that_does_not_take_its_answer_is_dropped(
    tmp_path: Path, certificates: Path, client_tls: ssl.SSLContext
) -> None:
    app = app_of(tmp_path / "slow.db", limits=nearlite.Limits(client_seconds=0.1))
    with serving(app, tls=server_context(certificates / "server.pem")) as port:
        asks = Client(port, tls=client_tls)
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", port))
        with client_tls.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
            sock.sendall(message(asks, *[execute("SELECT hex(zeroblob(400000))")] * 12))
            with pytest.raises(OSError, match=r"reset|pipe|EOF"):
                while True:  # until the server has dropped it
                    sock.send(b"\r\n")


# ---------------------------------------------------------------- certificates


def test_files_that_cannot_be_used_are_told_of(certificates: Path, tmp_path: Path) -> None:
    openssl(tmp_path, "genpkey", "-algorithm", "ed25519", "-out", "other.key")
    openssl(
        tmp_path, "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret",
        "-out", "locked.key",
    )  # fmt: skip
    (tmp_path / "empty").write_text("")
    (tmp_path / "broken").write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    certificate = certificates / "server.crt"
    for cert, key, why in (
        (tmp_path / "missing", None, "missing cannot be read: No such file"),
        (certificate, tmp_path / "missing", "missing cannot be read: No such file"),
        (tmp_path, None, "Is a directory"),
        (tmp_path / "empty", None, "empty holds no certificate in PEM"),
        (certificate, None, "server.crt holds no private key in PEM"),
        (certificate, tmp_path / "empty", "empty holds no private key in PEM"),
        (certificate, tmp_path / "other.key", "other.key is not that of the certificate"),
        (certificate, tmp_path / "locked.key", "locked.key has a password"),
        (tmp_path / "broken", certificates / "server.key", "broken and its key cannot be used"),
    ):
        with pytest.raises(nearlite.ProgrammingError, match=why):
            server_context(cert, key)
    assert server_context(certificate, certificates / "server.key")


# ---------------------------------------------------------------- the command


@contextlib.contextmanager
def served(*options: object) -> Iterator[tuple[str, Any]]:
    """`nearlite -v serve`: the line that it prints, and what to read its standard error from in the end."""
    command = [sys.executable, "-m", "nearlite", "-v", "serve", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said: list[str] = []
    try:
        yield process.stdout.readline(), said
    finally:
        process.terminate()
        said.append(process.communicate(timeout=30)[1])


def test_serve_over_tls_and_no_token_in_what_it_says(
    tmp_path: Path, certificates: Path, client_tls: ssl.SSLContext
) -> None:
    key = tmp_path / "signing.pem"
    public = make_keys(key)
    good, forged = mint(private_key(key)), mint(private_key(another_key(tmp_path)))
    options = ["--auth-token", TOKEN, "--auth-jwt-key-file", public]
    tls = ["--tls-cert", certificates / "server.crt", "--tls-key", certificates / "server.key"]
    listen = ["--listen", "0.0.0.0:0"]
    with served(tmp_path / "data.db", *listen, *options, *tls) as (line, said):
        assert "at https://0.0.0.0:" in line
        port = int(line.rpartition(":")[2])
        for token, status in ((good, 200), (TOKEN, 200), (forged, 401), (TOKEN + "!", 401)):
            client = Client(port, token, tls=client_tls)
            body = json.dumps({"requests": [execute("SELEC ?", token)]}).encode()
            assert client.request("POST", "/v3/pipeline", body).status == status
            assert client.request("POST", "/v3/pipeline", b"{").status in (400, 401)
            client.close()
    assert "in clear" not in said[0]
    assert "Traceback" not in said[0]
    for token in (good, forged, TOKEN):
        assert token not in said[0]
        assert token.rpartition(".")[2] not in said[0]


def another_key(folder: Path) -> Path:
    """Another key that signs."""
    make_keys(folder / "other.pem")
    return folder / "other.pem"


def test_a_server_warns_when_tokens_travel_in_clear(tmp_path: Path) -> None:
    listen = ["--listen", "0.0.0.0:0"]
    with served(tmp_path / "a.db", *listen, "--auth-token", TOKEN) as (line, said):
        assert "http://0.0.0.0:" in line
    assert "clients send their tokens to 0.0.0.0 in clear" in said[0]
    assert TOKEN not in said[0]
    with served(tmp_path / "b.db", "--listen", "127.0.0.1:0", "--auth-token", TOKEN) as (_, said):
        pass
    assert "in clear" not in said[0]


def test_files_that_cannot_be_used_are_told_of_before_anything_is_started(
    tmp_path: Path, certificates: Path
) -> None:
    for options, why in (
        (["--tls-cert", certificates / "server.crt"], "holds no private key"),
        (["--tls-key", certificates / "server.key"], "--tls-key needs --tls-cert"),
    ):
        command = [sys.executable, "-m", "nearlite", "serve", tmp_path / "data.db", *options]
        done = subprocess.run(
            [*map(str, command), "--listen", "127.0.0.1:0"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert why in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "data.db").exists()


def test_a_client_warns_once_when_its_token_travels_in_clear() -> None:
    def connect(url: str, **options: Any) -> list[Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            transport = Transport(url, **options)
            for _ in range(2):
                transport._encode("GET", "", None, {})
            transport.close()
        return [w for w in caught if w.category is nearlite.TokenInClearWarning]

    (told,) = connect("http://db.example:8080", token=TOKEN)
    assert "db.example" in str(told.message)
    assert TOKEN not in str(told.message)
    assert connect("http://db.example:8080", token=TOKEN) == []
    headers = Network.of(headers={"Authorization": f"Bearer {TOKEN}"})
    assert len(connect("http://other.example", network=headers)) == 1
    assert len(connect("http://third.example", token=lambda: TOKEN)) == 1
    assert connect("http://fourth.example", token=lambda: "") == []
    assert connect("http://fourth.example") == []
    assert connect("https://fourth.example", token=TOKEN) == []
    assert connect("http://127.0.0.1:8080", token=TOKEN) == []
    assert connect("http://localhost", token=TOKEN) == []


def test_a_handshake_does_not_take_for_ever(tmp_path: Path, certificates: Path) -> None:
    app = app_of(tmp_path / "data.db", limits=nearlite.Limits(client_seconds=0.3))
    with serving(app, tls=server_context(certificates / "server.pem")) as port:
        for beginning in (b"", b"\x16\x03\x01\x02\x00\x01"):  # nothing; a client's hello that stops
            with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
                raw.sendall(beginning)
                with contextlib.suppress(ConnectionError):
                    while raw.recv(4096):
                        pass
        tls = ssl.create_default_context(cafile=certificates / "ca.pem")
        with contextlib.closing(Client(port, tls=tls)) as client:
            assert client.rows("SELECT 1") == [[1]]
