"""`nearlite replicate` and `nearlite config`: the sidecar, and what its configuration says."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys

import click

from nearlite.configuration import address_of
from nearlite.errors import ConfigError
from nearlite.hooks import Lines
from nearlite.options import log_options

_LOG = logging.getLogger("nearlite.sidecar")


_no_expand = click.option(
    "-no-expand-env",
    "--no-expand-env",
    is_flag=True,
    help="Take $VAR in the configuration as it stands.",
)


@click.group()
def config() -> None:
    """The configuration of `nearlite replicate`."""


@config.command()
@click.argument("path", required=False)
@_no_expand
def check(*, path: str | None, no_expand_env: bool) -> int:
    """Say what `nearlite replicate` would do with the configuration at PATH; nothing is started."""
    from nearlite.configured import Secrets, check_served, configured, described

    try:
        configuration = configured(path, expand=not no_expand_env)
        check_served(configuration)
        Secrets(configuration)
    except ConfigError as error:
        print(f"nearlite: {error}", file=sys.stderr)
        return 1
    for warning in configuration.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for one in configuration.databases:
        print(described(one, served=configuration.address is not None))
    return 0


# ---------------------------------------------------------------------- the sidecar


@click.command()
@click.option(
    "-config",
    "--config",
    "config_path",
    metavar="PATH",
    help="The configuration. Default: ./nearlite.yml, /etc/nearlite.yml, ./litestream.yml, /etc/litestream.yml.",
)
@click.option(
    "-addr",
    "--addr",
    metavar="HOST:PORT",
    help="Address to listen on, instead of the configuration's; port 0 takes a free one.",
)
@click.option(
    "-exec",
    "--exec",
    "command",
    metavar="COMMAND",
    help="Application to start when every replica is complete, instead of the configuration's.",
)
@_no_expand
@log_options
@click.pass_context
def replicate(
    context: click.Context,
    *,
    config_path: str | None,
    addr: str | None,
    command: str | None,
    no_expand_env: bool,
    lines: Lines | None,
) -> int:
    """The sidecar: live replicas of databases that any program writes.

    Databases of the configuration without an upstream are primaries, and their changes are served; those
    with one are replicas, and kept equal to it. No SQL is served.
    """
    from nearlite.configured import Secrets, check_served, configured
    from nearlite.sidecar_process import SidecarProcess

    configuration = configured(config_path, expand=not no_expand_env)
    if addr is not None:
        address = address_of(addr)
        if address is None:
            raise click.UsageError(f"--addr: {addr!r} is not HOST:PORT or :PORT")
        configuration = dataclasses.replace(configuration, address=address)
    if command is not None:
        try:
            words = tuple(shlex.split(command))
        except ValueError:
            raise click.UsageError("--exec: a quotation mark is left open") from None
        if not words:
            raise click.UsageError("--exec names no program")
        configuration = dataclasses.replace(configuration, command=words)
    check_served(configuration)
    if context.params.get("log_level") is None:
        _LOG.setLevel(logging.INFO)
    for warning in configuration.warnings:
        _LOG.warning("%s", warning)
    return SidecarProcess(configuration, Secrets(configuration), lines).run()
