"""The configuration of a sidecar as it is found on this machine, and what the files that it names hold."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from nearlite import errors
from nearlite._native.sealing import Key
from nearlite.access import Authority
from nearlite.configuration import places, read
from nearlite.document import LARGEST, text_of
from nearlite.errors import ConfigError
from nearlite.http import Token, checked_token
from nearlite.keys import key_of
from nearlite.network import Network
from nearlite.renewed import Renewed
from nearlite.settings import Configuration, DatabaseSettings, Secret
from nearlite.tls import server_context
from nearlite.tokens import authority

_LARGEST_KEYS: Final = 1 << 20  # bytes

_T = TypeVar("_T")


def found_at(path: str | None) -> str:
    """Where the configuration is. Raises ProgrammingError: nowhere."""
    if path is not None:
        return path
    for place in places():
        if os.path.isfile(place):
            return place
    looked = ", ".join(places())
    raise errors.ProgrammingError(
        f"there is no configuration; looked for {looked}. Name one with --config PATH"
    )


def configured(path: str | None, *, expand: bool) -> Configuration:
    """The configuration that is to be used.

    Raises:
      ConfigError: it has a mistake.
      OSError: it cannot be read.
    """
    place = found_at(path)
    with open(place, "rb") as file:
        data = file.read(LARGEST + 1)
    text = text_of(data, place)
    return read(text, place, environment=os.environ, folder=os.getcwd(), expand=expand)


class Secrets:
    """What the files that a configuration names hold. Raises ConfigError: one of them cannot be used.

    Args:
      configuration: that names them.

    Attributes:
      authority: knows who may read.
      tls: what the server speaks, or None.
      tokens, networks, keys: of databases with an upstream, by name.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._file = configuration.file
        self._lines = configuration.lines
        token = self._text("auth-token", configuration.token)
        keys = []
        if configuration.jwt_key_file is not None:
            keys.append(self._content("auth-jwt-key-file", configuration.jwt_key_file))
        self.authority: Authority = self._checked(
            "auth-jwt-key-file", lambda: authority(token, keys)
        )
        self.tls: ssl.SSLContext | None = None
        certificate = configuration.tls_cert
        if certificate is not None:
            key = None if configuration.tls_key is None else Path(configuration.tls_key)
            self.tls = self._checked("tls-cert", lambda: server_context(Path(certificate), key))
        self.tokens: dict[str, Token] = {}
        self.networks: dict[str, Network] = {}
        self.keys: dict[str, Key | None] = {}
        for number, one in enumerate(configuration.databases):
            if one.upstream is not None:
                self._of_replica(f"dbs[{number}]", one)

    def _of_replica(self, at: str, one: DatabaseSettings) -> None:
        upstream, key = one.upstream, one.key
        assert upstream is not None
        token = upstream.token
        self.tokens[one.name] = None
        if token is not None and token.file is not None:
            self._content(f"{at}.upstream.auth-token-file", token.file)
            self.tokens[one.name] = Renewed(Path(token.file))
        elif token is not None:
            text = token.text
            where = f"{at}.upstream.auth-token"
            self.tokens[one.name] = self._checked(where, lambda: checked_token(text))
        network = Network.of(upstream.ca_file or True)
        where = f"{at}.upstream.ca-file"
        if upstream.ca_file is not None:
            self._checked(where, network.context)
        self.networks[one.name] = network
        self.keys[one.name] = None
        if key is not None:
            given: str | Path = Path(key.file) if key.file is not None else key.text or ""
            where = f"{at}.encryption-key" + ("" if key.file is None else "-file")
            self.keys[one.name] = self._checked(where, lambda: key_of(given))

    def _error(self, key: str, why: str) -> ConfigError:
        return ConfigError(self._file, self._lines.get(key, 1), key, why)

    def _checked(self, key: str, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
        except errors.Error as error:
            why = str(error)
        raise self._error(key, why)

    def _content(self, key: str, path: str) -> str:
        try:
            with open(path, "rb") as file:
                found = file.read(_LARGEST_KEYS).decode().strip()
        except OSError as error:
            raise self._error(key, f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._error(key, f"{path} is no text") from None
        if not found:
            raise self._error(key, f"{path} is empty")
        return found

    def _text(self, key: str, secret: Secret | None) -> str | None:
        if secret is None:
            return None
        if secret.file is None:
            return secret.text
        return self._content(f"{key}-file", secret.file)


def described(one: DatabaseSettings, *, served: bool) -> str:
    """A database of a configuration, in one line."""
    where = f", served at /db/{one.name}/" if served else ""
    upstream = one.upstream
    if upstream is None:
        return f"{one.path}: a primary, named {one.name}{where}"
    kind = "live replica" if one.interval == "live" else f"replica (every {one.interval:g} s)"
    there = f"name {upstream.name}"
    if upstream.name is None:
        there = f"path {upstream.path or one.written}"
        if upstream.path is None:
            there += f", or else name {one.name}"
    sealed = ", sealed" if one.key is not None else ""
    return f"{one.path}: a {kind} of {upstream.url} ({there}){sealed}, named {one.name}{where}"


def check_served(configuration: Configuration) -> None:
    """Raise ConfigError if a primary could be reached by nobody."""
    if configuration.address is not None:
        return
    for number, one in enumerate(configuration.databases):
        if one.upstream is None:
            raise ConfigError(
                configuration.file,
                one.line,
                f"dbs[{number}]",
                'is a primary, and nobody can reach it: give addr (":9090"), or an upstream to make it a replica',
            )
