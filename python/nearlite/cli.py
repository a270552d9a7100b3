"""The `nearlite` command: options in, one line or one table out, an exit code that scripts can use.

Each command only calls; what it calls lives in the module of its subject. An error is one line on
standard error that says what happened and what to do, never a traceback (NEARLITE_TRACEBACK=1 shows one).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource
from rich.console import Console

import nearlite
from nearlite import errors, inspection
from nearlite._native import _lib
from nearlite._native.sealing import Key
from nearlite.database_commands import Many, db, many_options, serve_many
from nearlite.following import Download, follow_primary, say_synced
from nearlite.hooks import Lines
from nearlite.keys import new_key, write_new
from nearlite.limits import Limits
from nearlite.network import Network
from nearlite.options import (
    DATABASE,
    NEW_FILE,
    Interval,
    Listen,
    Size,
    chosen_token,
    console_option,
    existing,
    is_url,
    jwt_options,
    limit_options,
    log_options,
    needs_key,
    network_options,
    new_key_option,
    takes_key,
    timeout_option,
    tls_options,
    token_options,
)
from nearlite.proxy_command import proxy
from nearlite.replica import Replica
from nearlite.replicate_command import config, replicate
from nearlite.resealing import decrypt_file, encrypt_file
from nearlite.token_commands import token as token_commands

# Exit codes, documented in docs/operations.md; a test compares the two.
EXIT_OK = 0
EXIT_FAILED = 1  # the command ran and the answer is no: damage found, SQL error, disk full
EXIT_USAGE = 2  # options or arguments
EXIT_OFFLINE = 3  # the primary could not be reached before the deadline
EXIT_UNAUTHORIZED = 4  # the primary refused the token
EXIT_REFUSED = 5  # done nothing, because doing it could lose data
EXIT_INTERRUPTED = 130  # Ctrl-C

_EXIT_BY_ERROR: tuple[tuple[type[Exception], int], ...] = (
    (errors.OfflineError, EXIT_OFFLINE),
    (errors.UnauthorizedError, EXIT_UNAUTHORIZED),
    (errors.NotAReplicaError, EXIT_REFUSED),
    (errors.LineageError, EXIT_REFUSED),
    (errors.PrimaryRestoredError, EXIT_REFUSED),
    (errors.HistoryGoneError, EXIT_REFUSED),
    (errors.StateMismatchError, EXIT_REFUSED),
    (errors.WrongKeyError, EXIT_REFUSED),
)


def versions() -> str:
    """Versions of nearlite, SQLite and OpenSSL as they are linked into this process."""
    return f"nearlite {nearlite.__version__} (SQLite {_lib.sqlite_version}, {_lib.openssl_version})"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(message="%(version)s", version=versions())
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error what happens.")
def cli(*, verbose: bool) -> None:
    """SQLite near you: embedded replicas of a SQLite primary."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(levelname)s %(message)s")


@cli.command()
@click.argument("database", type=NEW_FILE, required=False)
@click.option(
    "--listen",
    type=Listen(),
    default="127.0.0.1:8080",
    show_default=True,
    help="Address to listen on; port 0 takes a free one. Beyond loopback a token is required.",
)
@token_options
@jwt_options
@tls_options
@click.option("--no-auth", is_flag=True, help="Listen beyond loopback without a token, knowingly.")
@click.option(
    "--allow-push",
    is_flag=True,
    help="Let libSQL's replicas push pages (offline=True), which can make anything of the database.",
)
@click.option(
    "--durability",
    type=click.Choice(["full", "normal"]),
    default="full",
    show_default=True,
    help="full: answered writes survive a power cut. normal: they survive a crash of the process.",
)
@click.option(
    "--roll-bytes",
    type=Size(),
    default="16MiB",
    show_default=True,
    help="Archive the WAL and start a new generation when it has grown to this size.",
)
@click.option(
    "--upstream",
    metavar="URL",
    help="DATABASE is a replica of the one at URL, and serves further replicas.",
)
@click.option(
    "--upstream-token",
    envvar="NEARLITE_UPSTREAM_TOKEN",
    help="Bearer token for the upstream; see --auth-token.",
)
@click.option(
    "--upstream-token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read that token from a file.",
)
@click.option(
    "--sync-interval",
    type=Interval(),
    default="live",
    show_default=True,
    help="With --upstream: live, or seconds between two looks there.",
)
@click.option(
    "--shared-cache",
    is_flag=True,
    help="Let an HTTP cache in front answer many live replicas with what one was answered. It has to "
    "check tokens itself.",
)
@click.option(
    "--metrics",
    is_flag=True,
    help="Count requests, and tell what was counted at GET /metrics, for Prometheus; the token is asked for.",
)
@console_option
@log_options
@limit_options
@many_options
@takes_key
@network_options
@click.pass_context
def serve(
    context: click.Context,
    *,
    database: Path | None,
    listen: tuple[str, int],
    auth_token: str | None,
    auth_token_file: Path | None,
    jwt_keys: list[str],
    tls_cert: Path | None,
    tls_key: Path | None,
    no_auth: bool,
    allow_push: bool,
    durability: Literal["full", "normal"],
    roll_bytes: int,
    upstream: str | None,
    upstream_token: str | None,
    upstream_token_file: Path | None,
    sync_interval: float | Literal["live"],
    shared_cache: bool,
    metrics: bool,
    console: bool | None,
    lines: Lines | None,
    limits: Limits,
    many: Many,
    encryption_key: Key | None,
    network: Network,
) -> None:
    """Serve DATABASE over HTTP; it is created when missing.

    With --data-dir instead: many databases, chosen by path (/db/NAME/...), the header x-namespace, or host.

    With --upstream it is a replica, and what it serves is further replicas: their changes come from
    here, their SQL is run by the primary.
    """
    from nearlite import serve as http_server  # needs the server extra
    from nearlite.access import Open
    from nearlite.applications import PrimaryApp, RelayApp
    from nearlite.primary import Primary
    from nearlite.relay import Relay
    from nearlite.server import App
    from nearlite.tls import server_context
    from nearlite.tokens import authority

    _only_with_upstream(context, upstream)
    if (database is None) is (many.data_dir is None):
        raise click.UsageError("serve one DATABASE, or with --data-dir DIR those of a folder")
    host, port = listen
    token = chosen_token(auth_token, auth_token_file)
    knows = authority(token, jwt_keys, push=allow_push)
    trusting = isinstance(knows, Open)
    if tls_cert is None and tls_key is not None:
        raise click.UsageError("--tls-key needs --tls-cert")
    http_server.check_exposure(host, trusting=trusting and not no_auth)
    tls = None if tls_cert is None else server_context(tls_cert, tls_key)
    if tls is None and not trusting:
        http_server.warn_of_clear(host)
    shown = http_server.shows_console(host, trusting=trusting, asked=console)
    if many.data_dir is not None:
        if console:
            raise click.UsageError("--console is for one DATABASE, not for those of --data-dir")
        if upstream is not None:
            raise click.UsageError("--upstream is for one DATABASE, not for those of --data-dir")
        if metrics and many.admin_listen is None:
            raise click.UsageError(
                "--metrics of --data-dir is told by the admin API: give --admin-listen"
            )
        from nearlite.hosting import Serving

        serving = Serving(
            durability,
            roll_bytes,
            encryption_key,
            shared_cache=shared_cache,
            limits=limits,
            hooks=lines,
            metrics=metrics,
        )
        serve_many(many, listen, knows, serving, tls=tls)
        return
    assert database is not None
    with http_server.bind(host, port) as listening:
        # Opened here and not by the application: what prevents it is then one line, like any error.
        app: App
        if upstream is None:
            primary = Primary.open(
                str(database), durability=durability, roll_bytes=roll_bytes, key=encryption_key
            )
            app = PrimaryApp(
                database,
                lambda: primary,
                authority=knows,
                shared_cache=shared_cache,
                limits=limits,
                metrics=metrics,
                hooks=lines,
                console=shown,
            )
            what = str(database)
        else:
            http_server.end_when_told()
            relay = Relay.open(
                database,
                upstream,
                token=chosen_token(upstream_token, upstream_token_file),
                network=network,
                sync_interval=sync_interval,
                roll_bytes=roll_bytes,
                key=encryption_key,
            )
            app = RelayApp(
                database,
                lambda: relay,
                authority=knows,
                shared_cache=shared_cache,
                limits=limits,
                metrics=metrics,
                hooks=lines,
                console=shown,
            )
            what = f"{database}, a replica of {relay.upstream.transport.url},"
        http_server.run_at(listening, host, app, tls, lambda url: f"serving {what} at {url}")


def _only_with_upstream(context: click.Context, upstream: str | None) -> None:
    """Raise UsageError for options that would be without effect."""
    of_primary = ("durability",)
    of_relay = (
        *("upstream_token", "upstream_token_file", "sync_interval"),
        *("ca_file", "client_cert", "proxy", "header"),
    )
    for name in of_relay if upstream is None else of_primary:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            wants = "needs --upstream" if upstream is None else "is the primary's, not a replica's"
            raise click.UsageError(f"{option} {wants}")


@cli.command()
@click.argument("url")
@click.argument("path", type=NEW_FILE)
@click.option("--follow", is_flag=True, help="Stay, and bring every change as it happens.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of text.")
@click.option(
    "--repair",
    is_flag=True,
    help="Compare every page, and overwrite what differs, also of another history.",
)
@click.option("--adopt", is_flag=True, help="Make PATH a replica if it is an ordinary database.")
@token_options
@takes_key
@network_options
@timeout_option
def sync(
    *,
    url: str,
    path: Path,
    follow: bool,
    as_json: bool,
    repair: bool,
    adopt: bool,
    auth_token: str | None,
    auth_token_file: Path | None,
    timeout: float,
    encryption_key: Key | None,
    network: Network,
) -> None:
    """Bring the replica at PATH to the state of the primary at URL; create it when missing."""
    token = chosen_token(auth_token, auth_token_file)
    with Download(path.name) as download:
        replica = Replica(
            str(path),
            url,
            token=token,
            timeout=timeout,
            progress=download.show,
            network=network,
            adopt=adopt,
            key=encryption_key,
        )
        with closing(replica):
            replica.open()
            done = replica.sync(repair=repair)
            download.stop()
            say_synced(path, download.whole(done), as_json=as_json)
            if follow:
                follow_primary(replica, path, as_json=as_json)


@cli.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--against", metavar="URL", help="Also ask the primary at URL how far it is ahead.")
@click.option("--watch", is_flag=True, help="Stay, and look again and again.")
@click.option(
    "--every",
    type=click.FloatRange(0.05),
    default=1.0,
    show_default=True,
    help="Seconds of --watch.",
)
@token_options
@takes_key
@network_options
@timeout_option
def status(
    *,
    target: str,
    as_json: bool,
    against: str | None,
    watch: bool,
    every: float,
    auth_token: str | None,
    auth_token_file: Path | None,
    timeout: float,
    encryption_key: Key | None,
    network: Network,
) -> None:
    """What TARGET is: a file (replica or ordinary database), or a primary's URL."""
    from nearlite import watching  # the other commands do not need it

    token = chosen_token(auth_token, auth_token_file)

    def look() -> dict[str, Any]:
        if is_url(target):
            return inspection.primary_status(target, token=token, timeout=timeout, network=network)
        found = inspection.file_status(existing(target), encryption_key)
        if against is None or found["kind"] != "replica":
            return found
        primary = inspection.primary_status(
            against, token=token, timeout=timeout, network=network, since=found["position"]
        )
        return inspection.compare(found, primary)

    if watch:
        watching.watch(look, every=every, as_json=as_json, console=Console())
    else:
        watching.say(look(), as_json=as_json)


@cli.command()
@click.argument("path", type=DATABASE)
@click.option("--against", metavar="URL", help="Also compare with the primary at URL.")
@click.option(
    "--repair",
    is_flag=True,
    help="Compare every page with the primary first, and replace those that differ.",
)
@token_options
@takes_key
@network_options
@timeout_option
def verify(
    *,
    path: Path,
    against: str | None,
    repair: bool,
    auth_token: str | None,
    auth_token_file: Path | None,
    timeout: float,
    encryption_key: Key | None,
    network: Network,
) -> int:
    """Check the database at PATH: integrity_check, and the state hash of a replica."""
    good = True
    token = chosen_token(auth_token, auth_token_file)
    if repair:
        if against is None:
            raise click.UsageError("--repair needs the primary: --against URL")
        done = inspection.repair(
            path, against, token=token, timeout=timeout, network=network, key=encryption_key
        )
        amount = f"{done.pages:,} pages, {done.bytes:,} bytes in {done.seconds:.3f} s"
        print(f"{'ok':<7} repair: at {done.position}, {amount}", flush=True)
    for check in inspection.verify(
        path, against, token=token, timeout=timeout, network=network, key=encryption_key
    ):
        print(f"{'ok' if check.passed else 'FAILED':<7} {check.name}: {check.text}", flush=True)
        good = good and check.passed
    return EXIT_OK if good else EXIT_FAILED


@cli.command()
@click.argument("source")
@click.argument("out", type=NEW_FILE)
@token_options
@takes_key
@network_options
@timeout_option
def backup(
    *,
    source: str,
    out: Path,
    auth_token: str | None,
    auth_token_file: Path | None,
    timeout: float,
    encryption_key: Key | None,
    network: Network,
) -> int:
    """Write the state of SOURCE (a file or a primary's URL) to OUT, an ordinary database.

    OUT is compact, needs no other file and is writable. It appears complete or not at all. With a key it is
    sealed as well.
    """
    if out.exists():
        print(f"nearlite: {out} exists and was not touched; choose another name", file=sys.stderr)
        return EXIT_REFUSED
    token = chosen_token(auth_token, auth_token_file)
    if is_url(source):
        inspection.backup_primary(
            source, out, token=token, timeout=timeout, network=network, key=encryption_key
        )
    else:
        inspection.backup_file(existing(source), out, encryption_key)
    print(f"{out}: {out.stat().st_size:,} bytes")
    return EXIT_OK


@cli.command()
@click.argument("target")
@click.option("--sync-url", metavar="URL", help="Primary of the replica TARGET, for its writes.")
@click.option("-c", "--command", help="Execute this instead of reading standard input.")
@token_options
@takes_key
@network_options
@timeout_option
def shell(
    *,
    target: str,
    sync_url: str | None,
    command: str | None,
    auth_token: str | None,
    auth_token_file: Path | None,
    timeout: float,
    encryption_key: Key | None,
    network: Network,
) -> int:
    """SQL by hand on TARGET: a file, a replica (with --sync-url), or a primary's URL."""
    import io

    from nearlite.shell import Shell  # the other commands do not need it

    options: dict[str, Any] = {"isolation_level": None}
    if is_url(target) or sync_url is not None:
        options["auth_token"] = chosen_token(auth_token, auth_token_file)
        options["network_timeout"] = timeout
        options |= network.parameters()
    if encryption_key is not None and not is_url(target):
        options["encryption_key"] = encryption_key
    if sync_url is not None:
        options["sync_url"] = sync_url
    elif not is_url(target):
        existing(target)
    with closing(nearlite.connect(target, **options)) as connection:
        interactive = command is None and sys.stdin.isatty()
        lines = sys.stdin if command is None else io.StringIO(command)
        good = Shell(connection, Console(), interactive=interactive).run(lines)
    return EXIT_OK if good else EXIT_FAILED


@cli.command()
@click.option("--rows", default=100_000, show_default=True, help="Rows of the table that is read.")
def bench(*, rows: int) -> None:
    """Measure reads, syncs and forwarded writes on this machine, against Python's own sqlite3."""
    from nearlite import microbench

    microbench.run(rows, wide_console())


@cli.command()
def demo() -> None:
    """The main job on real data: a primary, a replica and a stock reader, measured."""
    from nearlite import demo as demonstration

    demonstration.run(wide_console())


@cli.command()
@click.argument("source", type=DATABASE)
@click.argument("out", type=NEW_FILE)
@needs_key
def encrypt(*, source: Path, out: Path, encryption_key: Key) -> int:
    """Write the state of the database SOURCE to OUT, sealed with a key.

    OUT appears complete or not at all. SOURCE may be in use and stays as it is: remove it yourself.
    """
    return _resealed(encrypt_file, source, out, encryption_key)


@cli.command()
@click.argument("source", type=DATABASE)
@click.argument("out", type=NEW_FILE)
@needs_key
def decrypt(*, source: Path, out: Path, encryption_key: Key) -> int:
    """Write the state of the sealed database SOURCE to OUT, in clear."""
    return _resealed(decrypt_file, source, out, encryption_key)


def _resealed(work: Callable[[Path, Path, Key], None], source: Path, out: Path, key: Key) -> int:
    if out.exists():
        print(f"nearlite: {out} exists and was not touched; choose another name", file=sys.stderr)
        return EXIT_REFUSED
    work(source, out, key)
    print(f"{out}: {out.stat().st_size:,} bytes")
    return EXIT_OK


@cli.command()
@click.argument("path", type=DATABASE)
@needs_key
@new_key_option
def rekey(*, path: Path, encryption_key: Key, new_key_file: Key) -> int:
    """Change the key of the sealed database at PATH, and of what lies beside it.

    It may be in use, but not be served. Broken off, both keys open it, and the same command goes on.
    """
    from nearlite.rekeying import rekey_file

    pages = rekey_file(path, encryption_key, new_key_file)
    print(f"{path}: {pages:,} pages sealed anew; only the new key opens it now")
    return EXIT_OK


@cli.command()
@click.argument("out", type=NEW_FILE, required=False)
def keygen(*, out: Path | None) -> int:
    """Make a key for sealed databases: printed, or written to OUT, which only you can read."""
    if out is None:
        print(new_key())
        return EXIT_OK
    try:
        write_new(out, new_key() + "\n")
    except FileExistsError:
        print(
            f"nearlite: {out} exists and was not touched: it may be the only key", file=sys.stderr
        )
        return EXIT_REFUSED
    return EXIT_OK


cli.add_command(token_commands)
cli.add_command(db)
cli.add_command(proxy)
cli.add_command(replicate)
cli.add_command(config)


def wide_console() -> Console:
    """Standard output; piped into a file, rich assumes 80 columns and folds every cell."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and ends the process with its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="nearlite", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    except (errors.Error, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("NEARLITE_TRACEBACK"):
            raise
        print(f"nearlite: {one_line(error)}", file=sys.stderr)
        code = next((c for kind, c in _EXIT_BY_ERROR if isinstance(error, kind)), EXIT_FAILED)
    sys.exit(code)


def one_line(error: Exception) -> str:
    """An error's text as one line; what is missing, where a package of an extra is."""
    if isinstance(error, ModuleNotFoundError):
        return f"this command needs {error.name}: pip install 'nearlite[all]'"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, errors.Error):
        text = "the disk is full" if errors.is_disk_full(error) else error.strerror
        return f"{error.filename}: {text}" if error.filename else text
    return " ".join(str(error).split()) or type(error).__name__
