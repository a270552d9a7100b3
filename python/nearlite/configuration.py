"""What `nearlite replicate` is told to do: the text of its configuration in, what it means out. Pure.

The shape and the keys are those of Litestream's live read replication, so that a file that was written for that
means the same here; what meant something only there is accepted, with one warning that says what happens
instead. A mistake is one ConfigError with the file, the line and the key. Secrets are in no error and no repr.

Files that a configuration names (tokens, keys, certificates) are not read here.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

import msgspec

from nearlite import document
from nearlite.document import Node, Scalar, Sequence, shown
from nearlite.errors import ConfigError
from nearlite.network import split_url
from nearlite.quantities import byte_count, seconds
from nearlite.settings import (
    LAG_LIMIT,
    RETAIN_SECONDS,
    Configuration,
    DatabaseSettings,
    Secret,
    UpstreamSettings,
)

NAMES: Final = ("nearlite.yml", "litestream.yml")
"""Where a configuration is looked for: each of them here and then in /etc, in this order."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_VARIABLE: Final = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})?")
_AT: Final = re.compile(r" - at `\$(.*)`\Z")
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]/]*):(\d{1,5})", re.ASCII)
_MISSING: Final = re.compile(r"Object missing required field `([^`]+)`")
_KINDS: Final = re.compile(r"`([a-z]+)(?: \| null)?`")
_WORDS: Final = {
    "str": "a text",
    "int": "a whole number",
    "array": "a list",
    "object": "keys with values",
    "null": "nothing",
}
_SECRETS: Final = frozenset({"auth-token", "encryption-key"})
_LEAST_ROLL: Final = 64 << 10
_LARGEST: Final = 1 << 62


# ---------------------------------------------------------------------- what stands in the file


class _Struct(msgspec.Struct, rename="kebab", frozen=True):
    """Fields are the keys, without their hyphens."""

    def __repr__(self) -> str:  # there are secrets in it
        return f"<{type(self).__name__}>"


class _Upstream(_Struct, frozen=True):
    url: str
    path: str | None = None
    name: str | None = None
    auth_token: str | None = None
    auth_token_file: str | None = None
    ca_file: str | None = None


class _Database(_Struct, frozen=True):
    path: str
    name: str | None = None
    upstream: _Upstream | None = None
    sync_interval: str | None = None
    encryption_key: str | None = None
    encryption_key_file: str | None = None
    retention_bytes: str | None = None
    retention_time: str | None = None
    roll_bytes: str | None = None
    min_checkpoint_page_count: int | None = None
    lag_limit: str | None = None


class _Config(_Struct, frozen=True):
    dbs: list[_Database]
    addr: str | None = None
    exec: str | None = None
    auth_token: str | None = None
    auth_token_file: str | None = None
    auth_jwt_key_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    lag_limit: str | None = None


# Of Litestream, without a meaning here: what happens instead.
_GLOBAL_IGNORED: Final = {
    "access-key-id": "nothing is copied to object storage here",
    "secret-access-key": "nothing is copied to object storage here",
}
_IGNORED: Final = {
    "replicas": "nothing is copied to object storage or other places here: run Litestream 0.3 beside for "
    "backups, or `nearlite backup`",
    "monitor-delay-interval": "every commit is shipped as soon as it is seen, those that come together in one piece",
    "monitor-interval": "every commit is shipped as soon as it is seen",
    "checkpoint-interval": "the WAL is archived and emptied when it has grown to roll-bytes",
    "max-checkpoint-page-count": "the WAL is emptied only when that blocks nobody; see roll-bytes",
    "shadow-retention-count": "history is kept by size and age: retention-bytes, retention-time",
}


def places(folder: str = ".") -> Iterator[str]:
    """Paths at which a configuration is looked for when none is named."""
    for name in NAMES:
        yield os.path.join(folder, name)
        yield os.path.join("/etc", name)


def address_of(text: str) -> tuple[str, int] | None:
    """Host and port of ``:9090``, ``HOST:PORT`` or ``[IPv6]:PORT``; None: it is none."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        return None
    return match[1].strip("[]") or "0.0.0.0", int(match[2])  # noqa: S104 - ":9090" is all of them


def read(
    text: str,
    file: str,
    *,
    environment: Mapping[str, str],
    folder: str,
    expand: bool = True,
) -> Configuration:
    """What a configuration means.

    Args:
      text: of the file.
      file: its name, for errors and warnings.
      environment: for ``$VAR`` and ``${VAR}``, and HOME for ``~/``.
      folder: that relative paths of databases are relative to.
      expand: whether variables are looked for; otherwise a ``$`` is one.

    Raises:
      ConfigError: the first mistake that was found.
    """
    return _Reading(file, environment, folder, expand=expand).configuration(text)


class _Reading:
    """Args as `read`."""

    def __init__(
        self, file: str, environment: Mapping[str, str], folder: str, *, expand: bool
    ) -> None:
        self._file = file
        self._environment = environment
        self._folder = folder
        self._expands = expand
        self._lines: dict[str, int] = {}  # of every key and item, by its path
        self._warned: dict[str, str] = {}  # by key

    # ------------------------------------------------------------------ errors

    def _error(self, key: str, why: str) -> ConfigError:
        """`key`: its path; the line is that of what is there, or of the nearest around it."""
        at = key
        while at and at not in self._lines:
            at = at.rpartition("[" if at.endswith("]") else ".")[0]
        return ConfigError(self._file, self._lines.get(at, 1), key, why)

    def _warn(self, line: int, key: str, why: str) -> None:
        self._warned.setdefault(key, f"{self._file}:{line}: {key} has no effect: {why}")

    # ------------------------------------------------------------------ from nodes to structs

    def configuration(self, text: str) -> Configuration:
        root = document.parse(text, self._file)
        ours = self._mapping(root, "", _Config, _GLOBAL_IGNORED)
        try:
            # Not strict: every scalar is a text here, and what is to be a number is read out of it.
            given = msgspec.convert(ours, _Config, strict=False)
        except msgspec.ValidationError as error:
            raise self._told(str(error)) from None
        return self._whole(given)

    def _told(self, message: str) -> ConfigError:
        """What the validation found, with the line; its messages have no values in them."""
        at = _AT.search(message)
        key = at[1].lstrip(".") if at else ""
        what = _AT.sub("", message)
        missing = _MISSING.fullmatch(what)
        if missing is not None:
            around = f"{key}.{missing[1]}" if key else missing[1]
            return self._error(around, "is missing")
        what = _KINDS.sub(lambda match: _WORDS.get(match[1], match[1]), what)
        return self._error(key, what[:1].lower() + what[1:])

    def _mapping(
        self, node: Node, at: str, struct: type[_Struct], ignored: Mapping[str, str]
    ) -> object:
        """A mapping's values for `struct`; of another kind, as it is: the validation says so."""
        self._lines.setdefault(at, node.line)
        if not isinstance(node, document.Mapping):
            return self._plain(node, at)
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        found: dict[str, object] = {}
        for key, (line, value) in node.entries.items():
            path = f"{at}.{key}" if at else key
            if key in ignored:
                self._warn(abs(line), key, ignored[key])
                continue
            if key not in fields:
                self._lines[at] = abs(line)
                raise self._unknown(at, key, [*fields, *ignored])
            self._lines[path] = abs(line)
            if key == "upstream":
                found[key] = self._mapping(value, path, _Upstream, {})
            elif key == "dbs" and isinstance(value, Sequence):
                found[key] = [
                    self._mapping(item, f"{path}[{number}]", _Database, _IGNORED)
                    for number, item in enumerate(value.items)
                ]
            else:
                found[key] = self._plain(value, path)
        return found

    def _unknown(self, at: str, key: str, known: list[str]) -> ConfigError:
        near = difflib.get_close_matches(key.lower().replace("_", "-")[:64], known, n=1, cutoff=0.6)
        told = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(sorted(known))}"
        error = self._error(at, "")
        where = f"{at}.{shown(key)}" if at else shown(key)
        return ConfigError(self._file, error.line, where, f"there is no such key; {told}")

    def _plain(self, node: Node, at: str) -> object:
        """A value as Python has it."""
        self._lines.setdefault(at, node.line)
        if isinstance(node, Scalar):
            return None if node.nothing else self._expanded(node, at)
        if isinstance(node, Sequence):
            return []  # no key but `dbs` is a list, and that is what is told
        return {}

    def _expanded(self, node: Scalar, at: str) -> str:
        if not self._expands or "$" not in node.text:
            return node.text
        secret = at.rpartition(".")[2] in _SECRETS

        def value(match: re.Match[str]) -> str:
            if match[1]:
                return "$"
            name = match[2] or match[3]
            if name is None:
                raise self._error(at, "a $ that begins no variable; a $ itself is written $$")
            found = self._environment.get(name)
            if found is None:
                # Of a secret with a $ in it, what follows is a part.
                which = "a variable in it" if secret else f"the variable {name}"
                raise self._error(at, f"{which} is not set; a $ itself is written $$")
            return found

        return _VARIABLE.sub(value, node.text)

    # ------------------------------------------------------------------ from structs to settings

    def _whole(self, given: _Config) -> Configuration:
        if not given.dbs:
            raise self._error("dbs", "names no database")
        address = None
        if given.addr is not None:
            address = address_of(given.addr)
            if address is None:
                hint = f'; write ":{given.addr}"' if given.addr.isdecimal() else ""
                raise self._error("addr", f"{_quoted(given.addr)} is not HOST:PORT or :PORT{hint}")
        elif given.tls_cert is not None:
            raise self._error("tls-cert", "needs addr: nothing is served without")
        if given.tls_key is not None and given.tls_cert is None:
            raise self._error("tls-key", "needs tls-cert")
        limit = self._seconds("lag-limit", given.lag_limit)
        databases = tuple(
            self._database(f"dbs[{number}]", one, limit) for number, one in enumerate(given.dbs)
        )
        self._distinct(databases)
        return Configuration(
            file=self._file,
            databases=databases,
            address=address,
            command=self._command(given.exec),
            token=self._secret("auth-token", given.auth_token, given.auth_token_file),
            jwt_key_file=self._file_of("auth-jwt-key-file", given.auth_jwt_key_file),
            tls_cert=self._file_of("tls-cert", given.tls_cert),
            tls_key=self._file_of("tls-key", given.tls_key),
            warnings=tuple(self._warned.values()),
            lines=self._lines,
        )

    def _command(self, text: str | None) -> tuple[str, ...]:
        if text is None:
            return ()
        try:
            words = shlex.split(text)
        except ValueError:
            raise self._error("exec", "a quotation mark or a backslash is left open") from None
        if not words:
            raise self._error("exec", "names no program")
        return tuple(words)

    def _database(self, at: str, given: _Database, limit: float | None) -> DatabaseSettings:
        written = self._home(given.path)
        if not written:
            raise self._error(f"{at}.path", "is empty")
        path = os.path.normpath(os.path.join(self._folder, written))
        name = os.path.basename(path) if given.name is None else given.name
        if _NAME.fullmatch(name) is None:
            rule = "1 to 64 of A-Z, a-z, 0-9, dot, hyphen and underscore, a letter or digit first"
            if given.name is None:
                why = f"its base name cannot be its name in URLs; give it a `name:` of {rule}"
                raise self._error(f"{at}.path", why)
            raise self._error(f"{at}.name", f"{_quoted(name)} is no name: {rule}")
        upstream = given.upstream
        self._refuse(at, given, replica=upstream is not None)
        interval = self._interval(f"{at}.sync-interval", given.sync_interval)
        own = self._seconds(f"{at}.lag-limit", given.lag_limit)
        lag = own if own is not None else limit
        if lag is None:
            lag = LAG_LIMIT + (0.0 if interval == "live" else interval)
        retain = self._seconds(f"{at}.retention-time", given.retention_time)
        pages = given.min_checkpoint_page_count
        if pages is not None and not 1 <= pages <= 1 << 24:
            raise self._error(f"{at}.min-checkpoint-page-count", "is from 1 to 16,777,216 pages")
        return DatabaseSettings(
            path=path,
            written=written,
            name=name,
            line=self._lines[at],
            upstream=None if upstream is None else self._upstream(f"{at}.upstream", upstream),
            interval=interval,
            key=self._secret(
                f"{at}.encryption-key", given.encryption_key, given.encryption_key_file
            ),
            roll_bytes=self._bytes(f"{at}.roll-bytes", given.roll_bytes, least=_LEAST_ROLL),
            roll_pages=pages,
            retain_bytes=self._bytes(f"{at}.retention-bytes", given.retention_bytes, least=0),
            retain_seconds=RETAIN_SECONDS if retain is None else retain,
            lag_limit=lag,
        )

    def _refuse(self, at: str, given: _Database, *, replica: bool) -> None:
        """Keys of a primary on a replica, and the other way round."""
        primarys: dict[str, object] = {
            "retention-bytes": given.retention_bytes,
            "retention-time": given.retention_time,
        }
        replicas: dict[str, object] = {
            "sync-interval": given.sync_interval,
            "encryption-key": given.encryption_key,
            "encryption-key-file": given.encryption_key_file,
            "lag-limit": given.lag_limit,
        }
        for key, value in (primarys if replica else replicas).items():
            if value is None:
                continue
            why = (
                "is for a primary, whose history it is; this database has an upstream"
                if replica
                else "is for a replica; this database has no upstream"
            )
            raise self._error(f"{at}.{key}", why)
        if given.roll_bytes is not None and given.min_checkpoint_page_count is not None:
            why = "says the same as roll-bytes in another unit; give one of them"
            raise self._error(f"{at}.min-checkpoint-page-count", why)

    def _upstream(self, at: str, given: _Upstream) -> UpstreamSettings:
        parts = split_url(given.url)
        if parts is None or parts.scheme not in ("http", "https", "libsql"):
            why = f"{_quoted(given.url)} is not http://HOST:PORT or https://HOST"
            if "@" in given.url:
                why = "is not http://HOST:PORT or https://HOST"
            raise self._error(f"{at}.url", why)
        if parts.username is not None or parts.password is not None:
            raise self._error(f"{at}.url", "has a password in it; give auth-token-file instead")
        if parts.query or parts.fragment:
            raise self._error(f"{at}.url", "ends with its path, without ? and #")
        if given.name is not None:
            if given.path is not None:
                raise self._error(f"{at}.name", "says the same as path; give one of them")
            if _NAME.fullmatch(given.name) is None:
                raise self._error(f"{at}.name", f"{_quoted(given.name)} is no name of a database")
        if given.path == "":
            raise self._error(f"{at}.path", "is empty")
        return UpstreamSettings(
            url=given.url,
            path=None if given.path is None else self._home(given.path),
            name=given.name,
            token=self._secret(f"{at}.auth-token", given.auth_token, given.auth_token_file),
            ca_file=self._file_of(f"{at}.ca-file", given.ca_file),
        )

    def _distinct(self, databases: tuple[DatabaseSettings, ...]) -> None:
        sides: tuple[tuple[str, Callable[[DatabaseSettings], str]], ...] = (
            ("path", lambda one: one.path),
            ("name", lambda one: one.name),
        )
        for key, of in sides:
            seen: dict[str, DatabaseSettings] = {}
            for number, one in enumerate(databases):
                before = seen.setdefault(of(one), one)
                if before is one:
                    continue
                why = f"{_quoted(of(one))} is also that of the database in line {before.line}"
                if key == "name":
                    why += "; give one of them another `name:`"
                raise self._error(f"dbs[{number}].{key}", why)

    # ------------------------------------------------------------------ values

    def _home(self, text: str) -> str:
        home = self._environment.get("HOME")
        if home and (text == "~" or text.startswith("~/")):
            return home + text[1:]
        return text

    def _file_of(self, key: str, text: str | None) -> str | None:
        if text == "":
            raise self._error(key, "is empty")
        return None if text is None else os.path.join(self._folder, self._home(text))

    def _secret(self, key: str, text: str | None, file: str | None) -> Secret | None:
        if text is None and file is None:
            return None
        if text is not None and file is not None:
            raise self._error(f"{key}-file", f"says the same as {key.rpartition('.')[2]}; give one")
        where = key if text is not None else f"{key}-file"
        if text is not None and not text.strip():
            raise self._error(where, "is empty")
        return Secret(text, self._file_of(where, file))

    def _interval(self, key: str, text: str | None) -> float | Literal["live"]:
        if text is None or text == "live":
            return "live"
        found = seconds(text)
        if found is None or not 0 < found < 1e9:
            raise self._error(key, f"{_quoted(text)} is neither live nor a time such as 10s or 1m")
        return found

    def _seconds(self, key: str, text: str | None) -> float | None:
        if text is None:
            return None
        found = seconds(text)
        if found is None or not 0 < found < 1e9:
            raise self._error(key, f"{_quoted(text)} is no time above 0 such as 10s, 1m30s or 24h")
        return found

    def _bytes(self, key: str, text: str | None, *, least: int) -> int | None:
        if text is None:
            return None
        found = byte_count(text)
        if found is None or found >= _LARGEST:
            raise self._error(key, f"{_quoted(text)} is no size such as 4MiB or 1GB")
        if found < least:
            raise self._error(key, f"is at least {least:,} bytes")
        return found


def _quoted(text: str) -> str:
    """A value in an error."""
    return ascii(text[:60]) + ("..." if len(text) > 60 else "")
