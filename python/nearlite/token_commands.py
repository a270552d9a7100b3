"""`nearlite token`: keys and signed tokens for those who run a server."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nearlite.errors import ProgrammingError
from nearlite.options import NEW_FILE

_KEY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def token() -> None:
    """Signed tokens (JWT): make a key, make tokens with it, look what is in one."""


@token.command()
@click.argument("private", type=NEW_FILE)
def keygen(*, private: Path) -> int:
    """Make a key that signs tokens: PRIVATE, which only you can read, and PRIVATE.pub for servers."""
    from nearlite.minting import make_keys

    try:
        public = make_keys(private)
    except FileExistsError as error:
        print(
            f"nearlite: {error.filename} exists and was not touched: it may be the only key",
            file=sys.stderr,
        )
        return 5  # cli.EXIT_REFUSED
    print(f"{private} signs tokens: keep it secret. Servers get {public} (--auth-jwt-key-file)")
    return 0


@token.command()
@click.option("--key", required=True, type=_KEY_FILE, help="The private key, as `keygen` makes it.")
@click.option("--read-only", is_flag=True, help="Its holder may read, and write nothing.")
@click.option(
    "--database",
    "databases",
    multiple=True,
    metavar="NAME",
    help="It is for this database; may be given several times. Default: for all of the server.",
)
@click.option(
    "--push",
    is_flag=True,
    help="Its holder may also push pages, which can make anything of the database (by default of the one of a "
    "server that has one).",
)
@click.option(
    "--expires",
    default="30d",
    show_default=True,
    metavar="SPAN",
    help="From now: 12h, 30d, 1y, or never.",
)
def mint(
    *, key: Path, read_only: bool, databases: tuple[str, ...], push: bool, expires: str
) -> int:
    """Print a token."""
    from nearlite import minting

    if read_only and push:
        raise click.UsageError("--read-only and --push: who pushes pages writes")
    if "" in databases:
        raise click.UsageError("--database is a name")
    try:
        seconds = minting.span(expires)
    except ProgrammingError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from None
    signs = minting.private_key(key)
    print(minting.mint(signs, databases=databases, write=not read_only, push=push, seconds=seconds))
    return 0


@token.command()
@click.argument("token", metavar="TOKEN")
@click.option(
    "--key", type=_KEY_FILE, help="Also look whether it is good: public keys, or the private one."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def inspect(*, token: str, key: Path | None, as_json: bool) -> int:
    """What TOKEN allows, and until when; - reads it from standard input."""
    from nearlite import minting

    text = (sys.stdin.read(1 << 20) if token == "-" else token).strip()  # noqa: S105
    seen = minting.look(text, minting.public_keys(key) if key is not None else [])
    print(minting.as_json(seen) if as_json else minting.as_text(seen))
    return 1 if seen.good is False else 0
