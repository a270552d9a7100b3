"""`nearlite proxy`: an edge, with every option also out of the environment.

The variables of other names are those that guides to a database CDN of one's own use, and those that
platforms set (PORT, FLY_REGION): what was deployed by them is deployed again as it is.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final, Literal

import click

from nearlite._native.sealing import Key
from nearlite.hooks import Lines
from nearlite.limits import Limits
from nearlite.network import UPSTREAM_PROTOCOLS, Network, UpstreamProtocol
from nearlite.options import (
    NEW_FILE,
    Interval,
    Listen,
    Size,
    chosen_token,
    console_option,
    jwt_options,
    limit_options,
    log_options,
    network_options,
    takes_key,
    tls_options,
)
from nearlite.renewed import Renewed

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_LOOPBACK: Final = "127.0.0.1:3000"


def _address() -> str:
    """Where it listens if nobody says: on all interfaces where a platform has said at which port."""
    port = os.environ.get("PORT")
    return _LOOPBACK if not port else f":{port}"


@click.command()
@click.option(
    "--upstream",
    metavar="URL",
    required=True,
    envvar=["NEARLITE_UPSTREAM", "TURSO_DATABASE_URL"],
    show_envvar=True,
    help="The primary, or an edge nearer to it; or a database of Turso Cloud, or sqld.",
)
@click.option(
    "--upstream-protocol",
    type=click.Choice(UPSTREAM_PROTOCOLS),
    default="auto",
    show_default=True,
    envvar="NEARLITE_UPSTREAM_PROTOCOL",
    show_envvar=True,
    help="What the upstream speaks: nl/v1 (nearlite), libSQL's sync (Turso Cloud), or that of sqld. auto: it is asked.",
)
@click.option(
    "--path",
    type=NEW_FILE,
    default="local.db",
    show_default=True,
    envvar="NEARLITE_PATH",
    show_envvar=True,
    help="File of the replica; created when missing.",
)
@click.option(
    "--listen",
    type=Listen(),
    default=_address,
    show_default=f":$PORT, or {_LOOPBACK}",
    envvar="NEARLITE_LISTEN",
    show_envvar=True,
    help="Address to listen on; port 0 takes a free one. Beyond loopback a token is required.",
)
@click.option(
    "--sync-interval",
    type=Interval(),
    default="60",
    show_default=True,
    envvar=["NEARLITE_SYNC_INTERVAL", "TURSO_SYNC_INTERVAL"],
    show_envvar=True,
    help="Seconds between two looks at the upstream; live: every change as it happens.",
)
@click.option(
    "--live", is_flag=True, envvar="NEARLITE_LIVE", show_envvar=True, help="--sync-interval live."
)
@click.option(
    "--auth-token",
    envvar=["NEARLITE_AUTH_TOKEN", "PROXY_AUTH_TOKEN"],
    show_envvar=True,
    help="Bearer token of the clients. On the command line other users of the machine can see it.",
)
@click.option(
    "--auth-token-file",
    type=_FILE,
    envvar="NEARLITE_AUTH_TOKEN_FILE",
    show_envvar=True,
    help="Read that token from a file; its surrounding white space is dropped.",
)
@jwt_options
@click.option(
    "--upstream-token",
    envvar=["NEARLITE_UPSTREAM_TOKEN", "TURSO_AUTH_TOKEN"],
    show_envvar=True,
    help="Bearer token for the upstream; see --auth-token.",
)
@click.option(
    "--upstream-token-file",
    type=_FILE,
    envvar="NEARLITE_UPSTREAM_TOKEN_FILE",
    show_envvar=True,
    help="Read that token from a file, again whenever the file changes.",
)
@click.option(
    "--region",
    envvar=["NEARLITE_REGION", "FLY_REGION"],
    show_envvar=True,
    help="Where this edge is, for logs, answers and the page to look at.",
)
@click.option(
    "--max-staleness",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    envvar="NEARLITE_MAX_STALENESS",
    show_envvar=True,
    help="With an upstream that cannot be asked for so long, reads are refused. Default: never.",
)
@tls_options
@click.option(
    "--no-auth",
    is_flag=True,
    envvar="NEARLITE_NO_AUTH",
    show_envvar=True,
    help="Listen beyond loopback without a token, knowingly.",
)
@click.option(
    "--roll-bytes",
    type=Size(),
    default="16MiB",
    show_default=True,
    envvar="NEARLITE_ROLL_BYTES",
    help="Empty the replica's WAL when it has grown to this size.",
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
    envvar="NEARLITE_METRICS",
    help="Count requests, and tell what was counted at GET /metrics, for Prometheus; the token is asked for.",
)
@console_option
@log_options
@limit_options
@takes_key
@network_options
def proxy(
    *,
    upstream: str,
    upstream_protocol: UpstreamProtocol,
    path: Path,
    listen: tuple[str, int],
    sync_interval: float | Literal["live"],
    live: bool,
    auth_token: str | None,
    auth_token_file: Path | None,
    jwt_keys: list[str],
    upstream_token: str | None,
    upstream_token_file: Path | None,
    region: str | None,
    max_staleness: float | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    no_auth: bool,
    roll_bytes: int,
    shared_cache: bool,
    metrics: bool,
    console: bool | None,
    lines: Lines | None,
    limits: Limits,
    encryption_key: Key | None,
    network: Network,
) -> None:
    """An edge: a replica of the database at --upstream behind the SQL of `nearlite serve`.

    Reads are answered from the replica at --path, writes and transactions by the upstream. It serves
    further replicas and edges as well, and goes on reading while the upstream is away.
    """
    from nearlite import serve as http_server  # needs the server extra
    from nearlite.access import Guiding, Open
    from nearlite.applications import RelayApp
    from nearlite.relay import Relay
    from nearlite.tls import server_context
    from nearlite.tokens import authority

    host, port = listen
    knows = authority(chosen_token(auth_token, auth_token_file), jwt_keys)
    trusting = isinstance(knows, Open)
    if tls_cert is None and tls_key is not None:
        raise click.UsageError("--tls-key needs --tls-cert")
    http_server.check_exposure(host, trusting=trusting and not no_auth)
    shown = http_server.shows_console(host, trusting=trusting, asked=console)
    tls = None if tls_cert is None else server_context(tls_cert, tls_key)
    if tls is None and not trusting:
        http_server.warn_of_clear(host)
    if max_staleness is not None and not math.isfinite(max_staleness):
        raise click.UsageError("--max-staleness is a number of seconds")
    http_server.end_when_told()
    with http_server.bind(host, port) as listening:
        relay = Relay.open(
            path,
            upstream,
            token=upstream_token if upstream_token_file is None else Renewed(upstream_token_file),
            network=network,
            sync_interval="live" if live else sync_interval,
            roll_bytes=roll_bytes,
            key=encryption_key,
            region=region,
            protocol=upstream_protocol,
        )
        app = RelayApp(
            path,
            lambda: relay,
            authority=knows if trusting else Guiding(knows),
            shared_cache=shared_cache,
            limits=limits,
            metrics=metrics,
            hooks=lines,
            console=shown,
            edge=True,
            region=region,
            max_staleness=max_staleness,
        )
        interval = "live" if live or sync_interval == "live" else f"{sync_interval:g} s"

        def tell(url: str) -> str:
            where = url.rpartition(":")[2]
            return (
                f"edge at {url}: port {where}, region {region or '-'}, interval {interval}, path {path}, "
                f"upstream {relay.upstream.transport.url}"
            )

        http_server.run_at(listening, host, app, tls, tell)
