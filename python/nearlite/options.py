"""Types and options that several commands of the command line share."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from nearlite import logs
from nearlite._native.sealing import Key
from nearlite.errors import ProgrammingError, WrongKeyError
from nearlite.hooks import Lines
from nearlite.keys import key_of
from nearlite.limits import Limits
from nearlite.network import Network
from nearlite.quantities import byte_count

_LARGEST_KEYS = 1 << 20  # bytes


class Size(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """Bytes: 4096, 16MiB, 1GB."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read a size; binary for KiB, MiB, GiB, decimal for KB, MB, GB."""
        if isinstance(value, int):
            return value
        found = byte_count(value)
        if found is None:
            self.fail(f"{value!r} is not a size; write for example 16MiB", param, ctx)
        return found


class Listen(click.ParamType):  # type: ignore[type-arg]
    """HOST:PORT, [IPv6]:PORT or :PORT (every interface)."""

    name = "host:port"

    def convert(
        self,
        value: str | tuple[str, int],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, int]:
        """Read an address to listen on; port 0 takes a free one."""
        if isinstance(value, tuple):
            return value
        host, colon, port = value.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT; write for example 127.0.0.1:8080", param, ctx)
        return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)  # noqa: S104


class Interval(click.ParamType):  # type: ignore[type-arg]
    """``live``, or a number of seconds."""

    name = "live|seconds"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Read it."""
        if value == "live" or isinstance(value, float):
            return value
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 1e9:
            self.fail(f"{value!r} is neither 'live' nor a number of seconds above 0", param, ctx)
        return seconds


def is_url(target: str) -> bool:
    """Whether a target names a primary rather than a file."""
    return target.startswith(("http://", "https://", "libsql://"))


Command = TypeVar("Command", bound=Callable[..., Any])


def token_options(command: Command) -> Command:
    """Give a command --auth-token and --auth-token-file."""
    command = click.option(
        "--auth-token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Read the token from a file; its surrounding white space is dropped.",
    )(command)
    return click.option(
        "--auth-token",
        envvar="NEARLITE_AUTH_TOKEN",
        help="Bearer token. On the command line other users of the machine can see it: prefer "
        "NEARLITE_AUTH_TOKEN or --auth-token-file.",
    )(command)


def jwt_options(command: Command) -> Command:
    """Give a command --auth-jwt-key-file and --auth-jwt-key; it gets the texts as `jwt_keys`."""

    @functools.wraps(command)
    def signed(
        *args: Any,
        auth_jwt_key_file: tuple[Path, ...],
        auth_jwt_key: tuple[str, ...],
        **options: Any,
    ) -> Any:
        keys = [*map(_text_of, auth_jwt_key_file), *auth_jwt_key]
        return command(*args, jwt_keys=keys, **options)

    for option in (
        click.option(
            "--auth-jwt-key",
            multiple=True,
            envvar=["NEARLITE_AUTH_JWT_KEY", "SQLD_AUTH_JWT_KEY"],
            metavar="KEY",
            help="The same, the key itself: its 32 bytes in URL-safe base64, or PEM.",
        ),
        click.option(
            "--auth-jwt-key-file",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            envvar=["NEARLITE_AUTH_JWT_KEY_FILE", "SQLD_AUTH_JWT_KEY_FILE"],
            help="Accept tokens (JWT) that the key in this file has signed: public keys of Ed25519. May be given "
            "several times. `nearlite token` makes keys and tokens.",
        ),
    ):
        signed = option(signed)
    return signed  # type: ignore[return-value]


def tls_options(command: Command) -> Command:
    """Give a command --tls-cert and --tls-key."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    command = click.option(
        "--tls-key", type=file, help="Its private key (PEM), if it is not in the same file."
    )(command)
    return click.option(
        "--tls-cert",
        type=file,
        help="Speak TLS with this certificate (PEM, with those that lead from it to the CA's).",
    )(command)


def console_option(command: Command) -> Command:
    """Give a command --console/--no-console, as `console`: None where neither was given."""
    return click.option(
        "--console/--no-console",
        default=None,
        envvar="NEARLITE_CONSOLE",
        help="GET / is a page to look at: topology, a chart, the last errors, SQL. Default: where the server "
        "listens on loopback, or asks for a token.",
    )(command)


def _text_of(path: Path) -> str:
    """What a small file says. Raises UsageError."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_KEYS).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise click.UsageError(f"{path} cannot be read: {why}") from None


def network_options(command: Command) -> Command:
    """Give a command --ca-file, --client-cert, --proxy and --header; it gets one `network`."""

    @functools.wraps(command)
    def reached(
        *args: Any,
        ca_file: Path | None,
        client_cert: Path | None,
        proxy: str | None,
        header: tuple[str, ...],
        **options: Any,
    ) -> Any:
        headers = dict(_header(text) for text in header)
        try:
            network = Network.of(ca_file or True, client_cert, proxy, headers)
        except ProgrammingError as error:
            raise click.UsageError(str(error)) from None
        return command(*args, network=network, **options)

    for option in (
        click.option(
            "--header",
            multiple=True,
            metavar="NAME:VALUE",
            help="Send this header with every request; may be given several times.",
        ),
        click.option(
            "--proxy",
            metavar="URL",
            help="http://[user:password@]host:port. Default: what the environment says.",
        ),
        click.option(
            "--client-cert",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="PEM file with this client's certificate and its key.",
        ),
        click.option(
            "--ca-file",
            type=click.Path(exists=True, path_type=Path),
            help="Trust the CA certificates in this file or folder, and no others.",
        ),
    ):
        reached = option(reached)
    return reached  # type: ignore[return-value]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header is written NAME:VALUE, not {text!r}")
    return name.strip(), value.strip()


def timeout_option(command: Command) -> Command:
    """Give a command --timeout."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0.1),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Deadline of one exchange with the primary.",
    )(command)


def chosen_token(token: str | None, file: Path | None) -> str | None:
    """The one token of the two options that give it."""
    if file is None:
        return token
    return file.read_text().strip()


def limit_options(command: Command) -> Command:
    """Give a command an option for each of a server's limits; it gets one `limits`."""
    fields = dataclasses.fields(Limits)

    @functools.wraps(command)
    def limited(*args: Any, **options: Any) -> Any:
        chosen = {field.name: options.pop(field.name) for field in fields}
        try:
            limits = Limits(**chosen)
        except ProgrammingError as error:
            raise click.UsageError(str(error)) from None
        return command(*args, limits=limits, **options)

    for field in reversed(fields):
        unit = field.metadata["unit"]
        kind: Any = Size() if unit == "bytes" else int
        limited = click.option(
            "--" + field.name.replace("_", "-"),
            type=float if unit == "seconds" else kind,
            default=field.default,
            show_default=True,
            metavar=unit.upper(),
            help=f"Limit: {unit} {field.metadata['text']}.",
        )(limited)
    return limited  # type: ignore[return-value]


def log_options(command: Command) -> Command:
    """Give a command --log-format, --log-level, --access-log and --log-slow; it gets one `lines`."""

    @functools.wraps(command)
    def logged(
        *args: Any,
        log_format: Literal["human", "json"],
        log_level: str | None,
        access_log: bool,
        log_slow: float | None,
        **options: Any,
    ) -> Any:
        # Without the option, what -v has chosen.
        level = logging.getLogger().level if log_level is None else log_level.upper()
        logs.configure(log_format, level, requests=access_log)
        lines = Lines(every=access_log, slow=log_slow)
        return command(*args, lines=lines if access_log or log_slow else None, **options)

    for option in (
        click.option(
            "--log-slow",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Log requests that take so long; what they carry is not logged.",
        ),
        click.option("--access-log", is_flag=True, help="Log every request, one line each."),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            help="What is logged, from there on. Default: warning, with -v info.",
        ),
        click.option(
            "--log-format",
            type=click.Choice(["human", "json"]),
            default="human",
            show_default=True,
            help="Of the lines on standard error; json: one object each.",
        ),
    ):
        logged = option(logged)
    return logged  # type: ignore[return-value]


class _KeyFile(click.Path):
    """A file that holds a key; the key."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Key):
            return value
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            return key_of(path)
        except WrongKeyError as error:
            self.fail(str(error), param, ctx)


new_key_option = click.option(
    "--new-key-file",
    required=True,
    type=_KeyFile(exists=True, dir_okay=False),
    help="File that holds the new key.",
)


def _key_option(*, required: bool) -> Callable[[Command], Command]:
    return click.option(
        "--encryption-key-file",
        "encryption_key",
        required=required,
        envvar="NEARLITE_ENCRYPTION_KEY_FILE",
        type=_KeyFile(exists=True, dir_okay=False),
        help="File that holds the key of the sealed file, as `nearlite keygen` writes it, or a passphrase.",
    )


needs_key = _key_option(required=True)
takes_key = _key_option(required=False)
"""Give a command --encryption-key-file, as `encryption_key`."""


class _File(click.Path):
    """A file that is there: of a fifo or a device nobody would ever read the end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.is_file():
            self.fail(f"{value} is not a regular file.", param, ctx)
        return path


class _NewFile(click.Path):
    """A file that is to be made in a folder that is there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.absolute().parent.is_dir():
            self.fail(f"there is no folder {path.absolute().parent}.", param, ctx)
        return path


DATABASE = _File(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = _NewFile(dir_okay=False, path_type=Path)


def existing(target: str) -> Path:
    """A file that is there, or a usage error that says what else would have been accepted."""
    path = Path(target)
    if not path.is_file():
        raise click.UsageError(
            f"{target} is neither a file nor a URL (http://, https://, libsql://)"
        )
    return path
