"""Certificates, proxies and headers, against real TLS servers with a throw-away CA and a real proxy."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import openssl
from primaries import Served, primary
from test_background import count, eventually

import nearlite
from nearlite.network import Network

# ---------------------------------------------------------------- what stands in between


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:  # the other direction has ended
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


@contextmanager
def tls_in_front(port: int, context: ssl.SSLContext, host: str = "127.0.0.1") -> Iterator[int]:
    """A server that speaks TLS, and hands on what it hears to `port`."""
    listener = socket.create_server((host, 0))

    def serve(raw: socket.socket) -> None:
        try:
            with (
                context.wrap_socket(raw, server_side=True) as near,
                socket.create_connection(("127.0.0.1", port)) as far,
            ):
                threading.Thread(target=pump, args=(far, near), daemon=True).start()
                pump(near, far)
        except OSError:  # a handshake that failed, as some shall
            raw.close()

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(raw,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


PROXY = """
import base64, socket, sys, threading
wanted = base64.b64encode(sys.argv[1].encode()).decode()
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(near):
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        more = near.recv(65536)
        if not more:
            return
        head += more
    first, *rest = head.decode().split("\\r\\n")
    method, address, _ = first.split(" ")
    allowed = sys.argv[1] == "" or any(
        line.lower() == f"proxy-authorization: basic {wanted}".lower() for line in rest)
    print(method, address, "allowed" if allowed else "refused", flush=True)
    if method != "CONNECT" or not allowed:
        near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\\r\\nContent-Length: 0\\r\\n\\r\\n")
        near.close()
        return
    host, port = address.rsplit(":", 1)
    far = socket.create_connection((host, int(port)))
    near.sendall(b"HTTP/1.1 200 Connection established\\r\\n\\r\\n")
    threading.Thread(target=pump, args=(far, near), daemon=True).start()
    pump(near, far)
while True:
    near, _ = listener.accept()
    threading.Thread(target=serve, args=(near,), daemon=True).start()
"""


class Proxy:
    """A CONNECT proxy in a process of its own."""

    def __init__(self, credentials: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROXY, credentials], stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        made.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        yield made


def port_of(served: Served) -> int:
    return int(served.url.rpartition(":")[2])


def server_context(certificates: Path, *, wants_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "ca.pem")
    return context


@pytest.fixture
def secure(served: Served, certificates: Path) -> Iterator[str]:
    with tls_in_front(port_of(served), server_context(certificates)) as port:
        yield f"https://localhost:{port}"


# ---------------------------------------------------------------- certificates


def everything_works(folder: Path, url: str, **options: Any) -> None:
    """Remote, replica, write, live, and the end of a poll."""
    with closing(nearlite.connect(url, isolation_level=None, **options)) as remote:
        remote.execute("DELETE FROM t")
        remote.execute("INSERT INTO t VALUES(1)")
        con = nearlite.connect(
            folder / "secure.db",
            sync_url=url,
            isolation_level=None,
            sync_interval="live",
            **options,
        )
        with closing(con):
            con.wait_for(remote.last_write_position)
            con.execute("INSERT INTO t VALUES(2)")
            remote.execute("INSERT INTO t VALUES(3)")
            eventually(lambda: count(con) == 3)
            eventually(lambda: con._replica.background.follows)


def test_a_ca_file_a_folder_and_a_context(secure: str, certificates: Path, tmp_path: Path) -> None:
    everything_works(tmp_path, secure, verify=certificates / "ca.pem")
    folder = tmp_path / "trusted"
    folder.mkdir()
    shutil.copy(certificates / "ca.pem", folder)
    openssl(folder, "rehash", ".")
    everything_works(tmp_path, secure, verify=str(folder))
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    everything_works(tmp_path, secure, verify=context)


def test_a_ca_of_the_environment(
    secure: str, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    everything_works(tmp_path, secure)


def test_a_server_that_nobody_vouches_for_is_refused(secure: str, tmp_path: Path) -> None:
    with pytest.raises(nearlite.OfflineError, match="certificate was refused"):
        nearlite.connect(tmp_path / "r.db", sync_url=secure)
    with pytest.raises(nearlite.ProgrammingError, match="anybody"):
        nearlite.connect(tmp_path / "r.db", sync_url=secure, verify=False)
    assert not (tmp_path / "r.db").exists()


def test_a_certificate_of_another_name_is_refused(
    served: Served, certificates: Path, tmp_path: Path
) -> None:
    elsewhere = "127.0.0.2"  # the certificate is for 127.0.0.1
    context = server_context(certificates)
    with (
        tls_in_front(port_of(served), context, elsewhere) as port,
        pytest.raises(nearlite.OfflineError, match="certificate was refused"),
    ):
        nearlite.connect(
            tmp_path / "r.db",
            sync_url=f"https://{elsewhere}:{port}",
            verify=certificates / "ca.pem",
        )


@pytest.mark.parametrize("split", [False, True])
def test_a_client_certificate(
    served: Served, certificates: Path, tmp_path: Path, split: bool
) -> None:
    cert: Any = certificates / "client.pem"
    if split:
        cert = (certificates / "client.crt", certificates / "client.key")
    context = server_context(certificates, wants_client=True)
    with tls_in_front(port_of(served), context) as port:
        url = f"https://localhost:{port}"
        with pytest.raises(nearlite.OfflineError):
            nearlite.connect(tmp_path / "secure.db", sync_url=url, verify=certificates / "ca.pem")
        everything_works(tmp_path, url, verify=certificates / "ca.pem", cert=cert)


@pytest.mark.parametrize(
    "options",
    [
        {"verify": "/nowhere/ca.pem"},
        {"verify": __file__},
        {"cert": "/nowhere/client.pem"},
        {"cert": __file__},
        {"cert": (__file__, __file__)},
        {"verify": ssl.create_default_context(), "cert": __file__},
    ],
)
def test_certificates_that_cannot_be_used_are_told_at_once(options: Any, tmp_path: Path) -> None:
    with pytest.raises(nearlite.ProgrammingError, match="certificate"):
        nearlite.connect(tmp_path / "r.db", sync_url="https://localhost:1", **options)
    with pytest.raises(nearlite.ProgrammingError, match="certificate"):
        nearlite.connect("https://localhost:1", **options)


# ---------------------------------------------------------------- proxies


def test_through_a_proxy(served: Served, secure: str, certificates: Path, tmp_path: Path) -> None:
    with Proxy() as proxy:
        through = f"http://127.0.0.1:{proxy.port}"
        everything_works(tmp_path, secure, verify=certificates / "ca.pem", proxy=through)
        assert proxy.line() == f"CONNECT localhost:{secure.rpartition(':')[2]} allowed"
    with Proxy() as proxy:  # a plain server, too
        con = nearlite.connect(
            tmp_path / "plain.db", sync_url=served.url, proxy=f"http://127.0.0.1:{proxy.port}"
        )  # fmt: skip
        with closing(con):
            assert proxy.line() == f"CONNECT 127.0.0.1:{port_of(served)} allowed"


def test_a_proxy_that_wants_a_password(served: Served, tmp_path: Path) -> None:
    with Proxy("ann:s3cret@") as proxy:
        with pytest.raises(nearlite.OfflineError, match="the proxy refused: 407") as caught:
            nearlite.connect(
                tmp_path / "r.db",
                sync_url=served.url,
                proxy=f"http://ann:no@127.0.0.1:{proxy.port}",
            )
        assert not (tmp_path / "r.db").exists()
        assert "ann" not in str(caught.value)
        assert proxy.line().endswith("refused")
        con = nearlite.connect(
            tmp_path / "r.db",
            sync_url=served.url,
            proxy=f"http://ann:s3cret%40@127.0.0.1:{proxy.port}",
        )
        with closing(con):
            assert "s3cret" not in repr(con)
        assert proxy.line().endswith("allowed")


def test_a_proxy_of_the_environment_is_not_for_this_machine(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    served.replica().close()


@pytest.mark.parametrize(
    "proxy", ["socks5://h:1", "https://h:1", "http://", "http://h:port", "http://h:99999", ""]
)
def test_other_proxies_are_refused(tmp_path: Path, proxy: str) -> None:
    with pytest.raises(nearlite.ProgrammingError, match="proxy"):
        nearlite.connect(tmp_path / "r.db", sync_url="http://h", proxy=proxy)


# ---------------------------------------------------------------- headers


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """A server that refuses, and keeps what it heard."""
    heard: list[bytes] = []
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def run() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                heard.append(data)
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard


def test_headers_go_with_every_request(tmp_path: Path) -> None:
    headers = {"X-Tenant": "blue", "User-Agent": "shop/2", "Authorization": "Basic abc"}
    with listening() as (url, heard):
        with pytest.raises(nearlite.SyncError):
            nearlite.connect(tmp_path / "r.db", sync_url=url, headers=headers, auth_token="other")
        lines = heard[0].decode().split("\r\n")
    for name, value in headers.items():
        assert [line for line in lines if line.lower().startswith(name.lower())] == [
            f"{name}: {value}"
        ]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "x"},
        {"Content-Length": "1"},
        {"nearlite-position": "x"},
        {"X": "a\r\nEvil: yes"},
        {"X Y": "a"},
        {"": "a"},
        {"X": "ä"},
        {"X": 1},
    ],
)
def test_other_headers_are_refused(tmp_path: Path, headers: Any) -> None:
    with pytest.raises(nearlite.ProgrammingError, match="header"):
        nearlite.connect(tmp_path / "r.db", sync_url="http://h", headers=headers)


# ---------------------------------------------------------------- sharing


def test_equal_options_share_a_replica_and_others_do_not(served: Served) -> None:
    one = served.replica(headers={"X-A": "1"})
    two = served.replica(headers={"X-A": "1"})
    other = served.replica(headers={"X-A": "2"})
    assert one._replica is two._replica
    assert one._replica is not other._replica
    assert Network.of() == Network()


# ---------------------------------------------------------------- on the command line


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nearlite", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_every_command_that_asks_a_primary_can_be_told_how(
    served: Served, certificates: Path, tmp_path: Path
) -> None:
    how = [
        *("--ca-file", certificates / "ca.pem", "--client-cert", certificates / "client.pem"),
        *("--header", "X-Tenant: blue"),
    ]
    replica = tmp_path / "r.db"
    with tls_in_front(port_of(served), server_context(certificates, wants_client=True)) as port:
        url = f"https://localhost:{port}"
        assert "certificate was refused" in run("sync", url, replica).stderr
        for command in (
            ["sync", url, replica],
            ["status", url],
            ["status", replica, "--against", url],
            ["verify", replica, "--against", url, "--repair"],
            ["backup", url, tmp_path / "copy.db"],
            ["shell", url, "-c", "SELECT 1"],
            ["shell", replica, "--sync-url", url, "-c", "SELECT 1"],
        ):
            answer = run(*command, *how)
            assert answer.returncode == 0, (command, answer.stderr)
        command = [sys.executable, "-m", "nearlite", "serve", str(tmp_path / "level.db")]
        below = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--upstream", url, *map(str, how)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert below.stdout is not None
            assert f"a replica of {url}/, at" in below.stdout.readline()
        finally:
            below.terminate()
            below.wait(20)
            below.stdout.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--header", "no colon"], "NAME:VALUE"),
        (["--header", "Host: x"], "header"),
        (["--proxy", "socks5://x"], "proxy"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error(
    tmp_path: Path, options: list[str], text: str
) -> None:
    answer = run("sync", "http://127.0.0.1:1", tmp_path / "r.db", *options)
    assert answer.returncode == 2
    assert text in answer.stderr
