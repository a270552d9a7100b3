"""The nginx of docs/caching.md: the very example of the page, with this test's addresses in it."""

from __future__ import annotations

import os
import pwd
import re
import resource
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "caching.md"
EXAMPLE = re.compile(r"^```nginx\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# What is not about nearlite: where a test's nginx lives. The second server tells what it is doing.
AROUND = """
daemon off;
user {user};
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 8192; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/example.conf;
    server {{
        listen 127.0.0.1:{told};
        access_log off;
        location / {{ stub_status; }}
    }}
}}
"""


@dataclass
class Nginx:
    """One that runs.

    Attributes:
      port: where clients reach the primary through it.
    """

    port: int
    _told: int
    _folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def at_work_on(self) -> int:
        """Requests that have come and are not answered, this question not counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._told}/", timeout=20) as answer:
            text = answer.read().decode()
        return int(re.search(r"Writing: (\d+)", text)[1]) - 1

    def stored(self) -> list[Path]:
        """Files of answers that it keeps."""
        return [path for path in (self._folder / "cache").rglob("*") if path.is_file()]


def example(port: int, primary: int, folder: Path) -> str:
    """The page's configuration with other addresses; everything else is as the page has it."""
    (text,) = EXAMPLE.findall(PAGE.read_text())
    for documented, here in [
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("server 127.0.0.1:8080;", f"server 127.0.0.1:{primary};"),
        ("/var/lib/nginx/nearlite", f"{folder}/cache"),
    ]:
        assert text.count(documented) == 1, documented
        text = text.replace(documented, here)
    return text


@contextmanager
def nginx(folder: Path, primary: int) -> Iterator[Nginx]:
    """Debian's nginx in front of a primary's port, until the block ends."""
    folder.mkdir()
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "sh .ci/packages test installs nginx"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # It inherits sockets that are bound, as a new binary does from the old one: no port is guessed.
    listening = [socket.create_server(("127.0.0.1", 0), backlog=2048) for _ in range(2)]
    for made in listening:
        made.setblocking(False)  # it takes them as they are, and its workers compete in accept()
    port, told = (made.getsockname()[1] for made in listening)
    (folder / "example.conf").write_text(example(port, primary, folder))
    user = pwd.getpwuid(os.getuid()).pw_name
    around = AROUND.format(folder=folder, told=told, user=user)
    (folder / "nginx.conf").write_text(around)
    numbers = [made.fileno() for made in listening]
    command = [program, "-p", str(folder), "-c", f"{folder}/nginx.conf"]
    process = subprocess.Popen(
        command,
        pass_fds=numbers,
        env={**os.environ, "NGINX": "".join(f"{number};" for number in numbers)},
    )
    for made in listening:
        made.close()
    log = folder / "error.log"
    try:
        running = Nginx(port, told, folder)
        try:
            running.at_work_on()
        except OSError:
            raise AssertionError("nginx did not start; its message is above") from None
        yield running
    finally:
        process.terminate()
        process.wait(20)
    said = log.read_text(errors="replace")  # it quotes what clients sent, garbled or not
    assert [line for line in said.splitlines() if re.search(r"\[(alert|crit|emerg)\]", line)] == []
