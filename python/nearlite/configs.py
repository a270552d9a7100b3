"""What one database of many is allowed and limited to: kept beside it, changed over the admin API."""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal

import msgspec

from nearlite.errors import ProgrammingError

_SIZE: Final = re.compile(r"([0-9]{1,15})\s*(?:([kmgt])(i?)b?|b)?", re.ASCII | re.IGNORECASE)
_LARGEST: Final = 1 << 47  # bytes; more than SQLite's files can have
_LONGEST_REASON: Final = 1024
_LARGEST_ROW: Final = 1_000_000_000
_LEAST: Final = 64 << 10  # bytes of a database: less would not hold its schema
DURABILITY: Final[dict[str, Literal["full", "normal"]]] = {
    "extra": "full",  # differs from full in nothing where there is a WAL
    "strong": "full",
    "relaxed": "normal",
}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One database's. None: as the server has it, or no limit.

    Attributes:
      block_reads: nothing is answered; block_writes: nothing is written.
      block_reason: told to whom that meets.
      max_db_size: bytes of the database file.
      jwt_key: public keys in place of the server's; with them no other token is good.
      txn_timeout_s: seconds that a transaction may keep others from writing.
      max_row_size: bytes of a row or value.
      durability_mode: of its own, a key of DURABILITY.
    """

    block_reads: bool = False
    block_writes: bool = False
    block_reason: str | None = None
    max_db_size: int | None = None
    jwt_key: str | None = None
    txn_timeout_s: float | None = None
    max_row_size: int | None = None
    durability_mode: str | None = None

    def told(self) -> dict[str, Any]:
        """As the admin API answers it: with names that only libSQL has, too."""
        return {**msgspec.structs.asdict(self), "allow_attach": False, "heartbeat_url": None}

    def encode(self) -> bytes:
        """As it is kept."""
        return json.dumps(msgspec.structs.asdict(self), indent=1).encode() + b"\n"


def decode(data: bytes) -> Config:
    """What is kept. Raises ProgrammingError: it is damaged."""
    try:
        return msgspec.json.decode(data, type=Config)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProgrammingError(f"the configuration is damaged: {error}") from None


_KEPT: Final = ("max_db_size", "durability_mode", "max_row_size")
_OVERWRITTEN: Final = ("block_reason", "txn_timeout_s", "jwt_key")
# Names that have a meaning at libSQL's server and none here, with the values that ask for nothing.
_NOTHING: Final[dict[str, tuple[Any, ...]]] = {
    "allow_attach": (None, False),
    "heartbeat_url": (None,),
    "bottomless_db_id": (None,),
    "shared_schema": (None, False),
    "shared_schema_name": (None,),
}


def created(asked: dict[str, Any]) -> Config:
    """Of a new database. Raises ProgrammingError with what is wrong."""
    return _made({}, {name: value for name, value in asked.items() if name != "dump_url"})


def changed(config: Config, asked: dict[str, Any]) -> Config:
    """What it becomes by a request, in the way of libSQL's: some are overwritten even when absent.

    Raises:
      ProgrammingError: what is wrong with it; nothing changes.
    """
    for name in ("block_reads", "block_writes"):
        if name not in asked:
            raise ProgrammingError(f"{name} is missing")
    now = msgspec.structs.asdict(config)
    return _made({name: now[name] for name in _KEPT}, asked)


def _made(before: dict[str, Any], asked: dict[str, Any]) -> Config:
    wanted = dict(before)
    for name, value in asked.items():
        if name in _NOTHING:
            if value not in _NOTHING[name]:
                raise ProgrammingError(f"{name} is not served here; nothing was changed")
        elif name not in Config.__struct_fields__:
            raise ProgrammingError(f"{name!r} is no setting of a database; nothing was changed")
        elif value is not None or name in _OVERWRITTEN:
            wanted[name] = value
    for name in ("max_db_size", "max_row_size"):
        if wanted.get(name) is not None:
            wanted[name] = size_of(name, wanted[name])
    try:
        config = msgspec.convert(wanted, Config)
    except msgspec.ValidationError as error:
        raise ProgrammingError(f"{error}; nothing was changed") from None
    _check(config)
    return config


def _check(config: Config) -> None:
    if config.max_db_size is not None and not _LEAST <= config.max_db_size <= _LARGEST:
        raise ProgrammingError(f"max_db_size is {_LEAST} to {_LARGEST} bytes; nothing was changed")
    if config.max_row_size is not None and not 1 <= config.max_row_size <= _LARGEST_ROW:
        raise ProgrammingError(f"max_row_size is 1 to {_LARGEST_ROW} bytes; nothing was changed")
    if config.txn_timeout_s is not None and not 0 < config.txn_timeout_s <= 86_400:
        raise ProgrammingError("txn_timeout_s is above 0 and at most a day; nothing was changed")
    if config.block_reason is not None and len(config.block_reason) > _LONGEST_REASON:
        raise ProgrammingError(
            f"block_reason has at most {_LONGEST_REASON} characters; nothing was changed"
        )
    if config.durability_mode is not None and config.durability_mode not in DURABILITY:
        known = ", ".join(DURABILITY)
        raise ProgrammingError(
            f"durability_mode is one of {known}, not {config.durability_mode!r}; nothing was changed"
        )


def size_of(name: str, value: object) -> int:
    """Bytes: a number, or text like ``10MB``, which counts in thousands, or ``10MiB``. Raises ProgrammingError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ProgrammingError(f"{name} is a number of bytes, or for example '10MB'")
    number, prefix, binary = match.groups()
    power = "kmgt".index(prefix.lower()) + 1 if prefix else 0
    unit: int = (1024 if binary else 1000) ** power
    return int(number) * unit


def forked(config: Config) -> Config:
    """Of a copy: the same, but nothing is blocked."""
    return msgspec.structs.replace(config, block_reads=False, block_writes=False, block_reason=None)
