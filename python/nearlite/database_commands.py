"""`nearlite db`: the databases of a server of many, and how `nearlite serve --data-dir` serves them."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from nearlite._native.sealing import Key
from nearlite.errors import ProgrammingError
from nearlite.options import Listen, chosen_token, takes_key

if TYPE_CHECKING:
    from nearlite.access import Authority
    from nearlite.hosting import Serving

_REFUSED: Final = 5  # cli.EXIT_REFUSED
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DESCRIPTORS: Final = 14  # that one open database takes
_CLIENTS: Final = 4096  # descriptors that are not for databases, or half of all

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Many:
    """Options of a server of many databases.

    Attributes:
      data_dir: their folder; None: it serves one.
      host_suffix: see nearlite.names.Choice.
      max_open: databases that are open at a time.
      close_idle: seconds after which one that nobody asks is closed.
      admin_listen: where the admin API listens.
      admin_token: what its clients send.
    """

    data_dir: Path | None
    host_suffix: str | None
    max_open: int
    close_idle: float
    admin_listen: tuple[str, int] | None
    admin_token: str | None


def many_options(command: Command) -> Command:
    """Give `serve` the options of many databases; it gets them as `many`."""

    @functools.wraps(command)
    def with_many(
        *args: Any,
        data_dir: Path | None,
        host_suffix: str | None,
        max_open: int,
        close_idle: float,
        admin_listen: tuple[str, int] | None,
        admin_token: str | None,
        admin_token_file: Path | None,
        **options: Any,
    ) -> Any:
        context = click.get_current_context()
        if data_dir is None:
            for name in (
                *("host_suffix", "max_open", "close_idle"),
                *("admin_listen", "admin_token_file"),
            ):
                given = context.get_parameter_source(name)
                if given is click.core.ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"--{name.replace('_', '-')} needs --data-dir")
        token = chosen_token(admin_token, admin_token_file)
        if token == "":
            raise click.UsageError("the admin token is empty: anybody could send it")
        many = Many(data_dir, host_suffix, max_open, close_idle, admin_listen, token)
        return command(*args, many=many, **options)

    for option in (
        click.option(
            "--admin-token-file", type=_FILE, help="Read the token of the admin API from a file."
        ),
        click.option(
            "--admin-token",
            envvar="NEARLITE_ADMIN_TOKEN",
            help="Bearer token of the admin API; see --auth-token.",
        ),
        click.option(
            "--admin-listen",
            type=Listen(),
            metavar="HOST:PORT",
            help="With --data-dir: answer the admin API here. Beyond loopback a token is required.",
        ),
        click.option(
            "--close-idle",
            type=click.FloatRange(0.5),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="With --data-dir: close a database that nobody has asked for so long.",
        ),
        click.option(
            "--max-open",
            type=click.IntRange(1),
            default=1000,
            show_default=True,
            help="With --data-dir: databases that are open at a time (each takes some 12 descriptors).",
        ),
        click.option(
            "--host-suffix",
            metavar="DOMAIN",
            help="With --data-dir: requests to the host NAME.DOMAIN are for the database NAME.",
        ),
        click.option(
            "--data-dir",
            type=_FOLDER,
            help="Serve the databases of this folder instead of one DATABASE.",
        ),
    ):
        with_many = option(with_many)
    return with_many  # type: ignore[return-value]


def serve_many(
    many: Many,
    listen: tuple[str, int],
    authority: Authority,
    serving: Serving,
    *,
    tls: ssl.SSLContext | None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from nearlite import serve as http_server
    from nearlite.access import OneToken, Open
    from nearlite.admin import admin_app
    from nearlite.catalog import Catalog
    from nearlite.hosting import Hosting
    from nearlite.names import Choice

    assert many.data_dir is not None
    host, port = listen
    if many.admin_listen is not None:
        http_server.check_admin(many.admin_listen[0], token=many.admin_token)
    with http_server.bind(host, port) as listening:
        admin = None if many.admin_listen is None else http_server.bind(*many.admin_listen)
        http_server.raise_limit()
        catalog = Catalog(many.data_dir)
        app = Hosting(
            many.data_dir,
            authority=authority,
            serving=serving,
            choice=Choice(many.host_suffix),
            most_open=min(many.max_open, _room(http_server.limit())),
            idle=many.close_idle,
        )
        app.adopt(catalog)
        listening.listen(http_server.BACKLOG)
        beside = None
        text = (
            f"serving {len(catalog.configs)} databases of {many.data_dir} at {_url(listening, tls)}"
        )
        if admin is not None:
            admin.listen(64)
            token = many.admin_token
            knows = Open() if token is None else OneToken(token)
            beside = admin_app(app, knows), admin
            text += f", admin API at {_url(admin, tls)}"
        print(text, flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        http_server.server(app, tls, beside=beside).run(sockets=[listening])


def _room(descriptors: int) -> int:
    """Databases that may be open with so many descriptors."""
    return max((descriptors - min(_CLIENTS, descriptors // 2)) // _DESCRIPTORS, 1)


def _url(listening: socket.socket, tls: ssl.SSLContext | None) -> str:
    host, port = listening.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


# ---------------------------------------------------------------- nearlite db


@click.group()
def db() -> None:
    """The databases of a server of many: make, copy, list and delete them.

    With --admin by the admin API of a running server, else with --data-dir in its folder, while no server has it.
    """


@dataclass(frozen=True)
class Where:
    """Where the databases are.

    Attributes:
      folder: itself, or
      url, token: of the admin API of the server that has it.
    """

    folder: Path | None
    url: str | None
    token: str | None

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the admin API answers. Raises nearlite.errors.Error."""
        from nearlite.administering import ask

        assert self.url is not None
        return ask(self.url, self.token, method, path, body)


def _where(command: Command) -> Command:
    """Give a command --data-dir and --admin; it gets one `where`."""

    @functools.wraps(command)
    def found(
        *args: Any,
        data_dir: Path | None,
        admin: str | None,
        admin_token: str | None,
        admin_token_file: Path | None,
        **options: Any,
    ) -> Any:
        context = click.get_current_context()
        given = context.get_parameter_source("data_dir") is click.core.ParameterSource.COMMANDLINE
        if admin is not None and given:
            raise click.UsageError("either --admin or --data-dir")
        if admin is None and data_dir is None:
            raise click.UsageError("say where the databases are: --admin URL, or --data-dir DIR")
        if admin is None and not data_dir.is_dir():  # type: ignore[union-attr]
            raise click.UsageError(f"there is no folder {data_dir}")
        token = chosen_token(admin_token, admin_token_file)
        where = Where(None if admin is not None else data_dir, admin, token)
        return command(*args, where=where, **options)

    for option in (
        click.option("--admin-token-file", type=_FILE, help="Read its token from a file."),
        click.option("--admin-token", envvar="NEARLITE_ADMIN_TOKEN", help="Its token."),
        click.option("--admin", metavar="URL", help="Admin API of the server that has them."),
        click.option(
            "--data-dir",
            type=_FOLDER,
            envvar="NEARLITE_DATA_DIR",
            help="Their folder, which no server has open.",
        ),
    ):
        found = option(found)
    return found  # type: ignore[return-value]


def _checked(name: str) -> str:
    from nearlite.names import RULE, is_name

    if not is_name(name):
        raise click.UsageError(f"{name!r} names no database: {RULE}")
    return name


def _refuse(text: str) -> NoReturn:
    print(f"nearlite: {text}", file=sys.stderr)
    raise click.exceptions.Exit(_REFUSED)


@db.command()
@click.argument("name")
@click.option("--dump", type=_FILE, help="Fill it from this SQL dump: one transaction.")
@takes_key
@_where
def create(*, name: str, dump: Path | None, encryption_key: Key | None, where: Where) -> int:
    """Make the database NAME, empty or from a dump.

    With --admin the server reads the dump: it has to be a file of its machine. A key is for --data-dir only.
    """
    from nearlite import making
    from nearlite.configs import Config

    _checked(name)
    url = None if dump is None else dump.resolve().as_uri()
    if where.folder is None:
        where.ask("POST", f"/v1/namespaces/{name}/create", {} if url is None else {"dump_url": url})
    else:
        fill = functools.partial(making.empty, key=encryption_key)
        if url is not None:
            text = dataclasses.replace(making.dump_at(url), quotable=True)
            fill = lambda path: making.loaded(path, text, key=encryption_key)  # type: ignore[assignment]  # noqa: E731
        with _catalog(where.folder) as catalog:
            if name in catalog.configs:
                _refuse(f"there is a database {name} already; nothing was changed")
            catalog.create(name, Config(), fill)
    print(f"{name}: created")
    return 0


@db.command()
@click.argument("source")
@click.argument("name")
@takes_key
@_where
def fork(*, source: str, name: str, encryption_key: Key | None, where: Where) -> int:
    """Make NAME, a copy of the database SOURCE as it is now, which shares nothing with it.

    It has a history of its own: replicas of SOURCE do not follow it.
    """
    from nearlite import making
    from nearlite._native.database import Database
    from nearlite.configs import Config, forked

    _checked(source)
    _checked(name)
    if where.folder is None:
        where.ask("POST", f"/v1/namespaces/{source}/fork/{name}", {})
    else:
        with _catalog(where.folder) as catalog:
            config = catalog.configs.get(source)
            if not isinstance(config, Config):
                raise config or ProgrammingError(f"there is no database {source}; nothing was made")
            if name in catalog.configs:
                _refuse(f"there is a database {name} already; nothing was changed")
            path = catalog.path(source)

            def fill(target: Path) -> None:
                one = Database(
                    str(path), create=False, checkpoint=False, readonly=True, key=encryption_key
                )
                try:
                    making.copied(target, one, key=encryption_key)
                finally:
                    one.close()

            catalog.create(name, forked(config), fill)
    print(f"{name}: a copy of {source}")
    return 0


@db.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of text.")
@_where
def list_(*, as_json: bool, where: Where) -> int:
    """The databases, one a line."""
    from nearlite.configs import Config

    if where.folder is None:
        found = where.ask("GET", "/v1/namespaces")["namespaces"]
    else:
        with _catalog(where.folder) as catalog:
            found = [
                {
                    "name": name,
                    "blocked": isinstance(config, Config)
                    and (config.block_reads or config.block_writes),
                    "usable": isinstance(config, Config),
                }
                for name, config in sorted(catalog.configs.items())
            ]
    for entry in found:
        if as_json:
            print(json.dumps(entry))
        else:
            marks = [
                word
                for word, yes in (("blocked", entry["blocked"]), ("damaged", not entry["usable"]))
                if yes
            ]
            print("  ".join([entry["name"], *marks]))
    return 0


@db.command()
@click.argument("name")
@click.option(
    "--keep-backup", is_flag=True, help="Keep its files, in .nearlite/kept of the folder."
)
@_where
def delete(*, name: str, keep_backup: bool, where: Where) -> int:
    """Delete the database NAME and all that is in it."""
    _checked(name)
    if where.folder is None:
        where.ask("DELETE", f"/v1/namespaces/{name}", {"keep_backup": keep_backup})
    else:
        with _catalog(where.folder) as catalog:
            if name not in catalog.configs:
                raise ProgrammingError(f"there is no database {name}; nothing was changed")
            catalog.remove(name, keep=keep_backup)
    print(f"{name}: deleted")
    return 0


def _catalog(folder: Path) -> Any:
    import contextlib

    from nearlite.catalog import Catalog

    return contextlib.closing(Catalog(folder))
