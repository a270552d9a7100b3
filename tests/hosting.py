"""A server of many databases in this process, with its admin API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import Client, Reply, close_clients, serving

import nearlite
from nearlite import serve
from nearlite.access import OneToken, Open
from nearlite.admin import admin_app
from nearlite.catalog import Catalog
from nearlite.configs import Config
from nearlite.making import empty

CREATE = "CREATE TABLE t(id INTEGER PRIMARY KEY, b)"


class Below(Client):
    """A client whose requests go to one database of many."""

    prefix = ""

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        return super().request(method, self.prefix + path, body, **headers)


@dataclass
class Many:
    """It, and clients of it."""

    port: int
    admin_port: int
    app: Any
    folder: Path
    admin_token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def of(self, name: str, token: str | None = None) -> Below:
        client = Below(self.port, token)
        client.prefix = f"/db/{name}"
        return client

    def admin(self, method: str, path: str, body: Any = None) -> Reply:
        client = Client(self.admin_port, self.admin_token)
        try:
            data = None if body is None else json.dumps(body).encode()
            return client.request(method, path, data)
        finally:
            client.close()

    def create(self, *names: str, **options: Any) -> None:
        for name in names:
            reply = self.admin("POST", f"/v1/namespaces/{name}/create", options)
            assert reply.status == 200, reply.body

    def configure(self, name: str, **options: Any) -> Reply:
        asked = {"block_reads": False, "block_writes": False, **options}
        return self.admin("POST", f"/v1/namespaces/{name}/config", asked)


@contextmanager
def many(folder: Path, *, admin_token: str | None = None, **options: Any) -> Iterator[Many]:
    """Serve the databases of a folder."""
    app = nearlite.asgi(data_dir=folder, **options)
    listening = serve.bind("127.0.0.1", 0)
    listening.listen(16)
    knows = Open() if admin_token is None else OneToken(admin_token)
    with serving(app, beside=(admin_app(app, knows), listening)) as port:
        admin_port = listening.getsockname()[1]
        try:
            yield Many(port, admin_port, app, folder, admin_token)
        finally:
            close_clients(admin_port)
    listening.close()


def made(folder: Path, *names: str, key: Any = None) -> Path:
    """A folder with databases, which nobody has open."""
    catalog = Catalog(folder)
    try:
        for name in names:
            catalog.create(name, Config(), lambda path: empty(path, key=key))
    finally:
        catalog.close()
    return folder
