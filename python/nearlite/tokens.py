"""Signed tokens (JWT) with Ed25519, as libSQL's servers take them: who signed one, and what it allows.

A token says which databases its holder may read, write and push pages to. With the claim ``p`` they are named
one by one, ``{"p": {"rw": {"ns": ["orders"]}, "ro": {"ns": ["stock"]}, "push": {"ns": ["orders"]}}}``;
without it ``id`` names the only one (absent: all of them) and ``a`` is ``ro`` or ``rw`` (absent: ``rw``).

No other algorithm than EdDSA is even looked at, and keys are never taken for anything else than what they are
given as: what a token's head says of itself is not believed.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from nearlite.access import (
    Access,
    Authority,
    OneToken,
    Open,
    bearer,
    unauthorized,
    unknown_database,
)
from nearlite.errors import NotSupportedError, ProgrammingError
from nearlite.exchange import HttpError, Scope

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_TOKEN: Final = 16 << 10
"""Characters of a token."""
LEEWAY: Final = 60.0
"""Seconds by which clocks may differ."""
ALGORITHM: Final = "EdDSA"
_REMEMBERED: Final = 1024
"""Tokens whose signature is not verified again."""
_PEM: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
# Whoever has one of these as a public key accepts signatures that nobody made (RFC 7748, 8032: small order).
_WEAK: Final = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


class Names(msgspec.Struct, frozen=True):
    """Databases by name; tags are of those who have several servers, and name none here."""

    ns: list[str] = []
    tags: list[str] = []


class Permissions(msgspec.Struct, frozen=True):
    """The claim ``p``. What else is in it allows nothing."""

    ro: Names = Names()
    rw: Names = Names()
    roa: Names = Names()
    rwa: Names = Names()
    push: Names = Names()


class Claims(msgspec.Struct, frozen=True):
    """What is looked at of a token's content."""

    exp: float | msgspec.UnsetType = msgspec.UNSET
    nbf: float | msgspec.UnsetType = msgspec.UNSET
    aud: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    a: Literal["ro", "rw", "roa", "rwa"] | msgspec.UnsetType = msgspec.UNSET
    p: Permissions | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Grants:
    """What one token allows.

    Attributes:
      read, write, push: names of databases; None: every one.
      until: Unix time from which it is good for nothing.
      holder: a digest of it, whom streams are counted for.
    """

    read: frozenset[str] | None
    write: frozenset[str] | None
    push: frozenset[str] | None
    until: float
    holder: bytes | None = field(default=None, compare=False)

    def access(self, database: str) -> Access | None:
        """To one database; None: the token does not name it."""
        write = self.write is None or database in self.write
        push = self.push is None or database in self.push
        if not (write or push or self.read is None or database in self.read):
            return None
        return Access(write, push, self.until, self.holder)


_claims: Final = msgspec.json.Decoder(Claims)


def grants_of(claims: Claims) -> Grants:
    """What claims allow, times aside."""
    until = float("inf") if isinstance(claims.exp, msgspec.UnsetType) else claims.exp + LEEWAY
    nothing: frozenset[str] = frozenset()
    if not isinstance(claims.p, msgspec.UnsetType):
        p = claims.p
        return Grants(
            frozenset(p.ro.ns + p.roa.ns),
            frozenset(p.rw.ns + p.rwa.ns),
            frozenset(p.push.ns),
            until,
        )
    named = None if isinstance(claims.id, msgspec.UnsetType) else frozenset([claims.id])
    writes = isinstance(claims.a, msgspec.UnsetType) or claims.a in ("rw", "rwa")
    return Grants(named, named if writes else nothing, nothing, until)


def keys_of(text: str) -> list[Ed25519PublicKey]:
    """Public keys out of a text.

    Args:
      text: PEM blocks ``PUBLIC KEY``, one or several, or the 32 bytes of one key in URL-safe base64.

    Raises:
      ProgrammingError: there is none in it. What was given is not part of the message.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    stripped = text.strip()
    if "-----" not in stripped:
        return [_strong(Ed25519PublicKey.from_public_bytes(_raw(stripped)))]
    found = []
    for block in _PEM.finditer(stripped):
        if "PRIVATE" in block[1]:
            raise ProgrammingError(
                "a private key was given; the server needs the public one, and nobody but the signer the other"
            )
        if block[1] != "PUBLIC KEY":
            raise ProgrammingError(f"a PEM block is a {block[1]}, not a PUBLIC KEY")
        try:
            key = serialization.load_pem_public_key(block[0].encode())
        except Exception:  # noqa: BLE001 - whatever the parser says, it is not to be shown
            raise ProgrammingError("a PEM block is not a public key") from None
        if not isinstance(key, Ed25519PublicKey):
            raise ProgrammingError("a public key is not one of Ed25519")
        found.append(_strong(key))
    if not found:
        raise ProgrammingError("there is no PEM block PUBLIC KEY that is whole")
    return found


def _raw(text: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise ProgrammingError(
            "a public key is PEM (PUBLIC KEY), or its 32 bytes in URL-safe base64 without padding"
        )
    return raw


def _strong(key: Ed25519PublicKey) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives import serialization

    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    if raw[:31] + bytes([raw[31] & 0x7F]) in _WEAK:
        raise ProgrammingError(
            "a public key is a weak one: signatures of it can be made by anybody"
        )
    return key


class Signed:
    """Knows tokens that one of its keys has signed. Event loop thread only.

    Args:
      keys: public ones, tried in turn until one fits the signature.
      clock: Unix time.
    """

    def __init__(
        self, keys: Iterable[Ed25519PublicKey], clock: Callable[[], float] = time.time
    ) -> None:
        from jwt import PyJWS

        self._keys = list(keys)
        self._clock = clock
        self._jws = PyJWS([ALGORITHM])
        self._known: OrderedDict[bytes, Grants] = OrderedDict()

    def access(self, scope: Scope, database: str) -> Access:
        """See `Authority`."""
        return self.of_token(bearer(scope), database)

    def of_token(self, token: str | None, database: str) -> Access:
        """See `Authority`."""
        if token is None:
            raise unauthorized("There is no token", "AUTH_JWT_MISSING")
        found = self.grants(token).access(database)
        if found is None:
            raise unknown_database(database)
        return found

    def meet(self, scope: Scope) -> None:
        """See `Authority`."""

    def grants(self, token: str) -> Grants:
        """What a token allows. Raises HttpError 401: nothing, now."""
        if len(token) > MAX_TOKEN:
            raise _invalid(f"it is longer than {MAX_TOKEN} characters")
        digest = blake2b(token.encode("utf-8", "surrogateescape"), digest_size=32).digest()
        grants = self._known.get(digest)
        if grants is None:
            grants = replace(self._verified(token), holder=digest)
            self._known[digest] = grants
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if grants.until <= self._clock():
            self._known.pop(digest, None)
            raise unauthorized(
                f"The token has expired ({day(grants.until - LEEWAY)})", "AUTH_JWT_EXPIRED"
            )
        return grants

    def _verified(self, token: str) -> Grants:
        claims = claims_of(self._payload(token))
        if not isinstance(claims.aud, msgspec.UnsetType):
            raise _invalid("it is for another audience (`aud`)")
        grants = grants_of(claims)
        begins = claims.nbf
        if not isinstance(begins, msgspec.UnsetType) and begins > self._clock() + LEEWAY:
            raise unauthorized(f"The token is not good yet ({day(begins)})", "AUTH_JWT_IMMATURE")
        return grants

    def _payload(self, token: str) -> bytes:
        """What was signed. Raises HttpError 401."""
        import jwt

        for key in self._keys:
            try:
                decoded = self._jws.decode_complete(token, key, [ALGORITHM])
            except jwt.InvalidAlgorithmError:
                raise _invalid("it is not signed with EdDSA") from None
            except jwt.InvalidSignatureError:
                continue
            except (jwt.InvalidTokenError, ValueError, RecursionError):
                raise _invalid("it is not a signed JWT") from None
            if "crit" in decoded["header"]:  # older PyJWT does not look at it
                raise _invalid(
                    "its head asks for something that this server does not know (`crit`)"
                )
            payload: bytes = decoded["payload"]
            return payload
        raise _invalid("no key of this server has signed it")


def claims_of(payload: bytes) -> Claims:
    """The claims of a token. Raises HttpError 401: they do not have the shape that they should."""
    try:
        return _claims.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(f"its claims are not as they should be: {error}") from None


class Either:
    """Knows one token, and signed ones.

    Args:
      one: of whom the token is.
      signed: of whom the others are.
    """

    def __init__(self, one: OneToken, signed: Signed) -> None:
        self._one = one
        self._signed = signed

    def access(self, scope: Scope, database: str) -> Access:
        """See `Authority`."""
        return self.of_token(bearer(scope), database)

    def of_token(self, token: str | None, database: str) -> Access:
        """See `Authority`."""
        knows: Authority = self._signed
        if token is None or self._one.is_it(token) or token.count(".") != 2:
            knows = self._one
        return knows.of_token(token, database)

    def meet(self, scope: Scope) -> None:
        """See `Authority`."""


def authority(token: str | None, keys: Iterable[str] = (), *, push: bool = False) -> Authority:
    """Of a server.

    Args:
      token: whose holder may do everything, if there is one.
      keys: texts with public keys of those who sign tokens, as `keys_of` takes them.
      push: whoever needs no signed token may send pages as well.

    Raises:
      ProgrammingError: the token is empty, or a text holds no key; NotSupportedError: a package is missing.
    """
    if token == "":
        raise ProgrammingError("the token is empty: anybody could send it")
    one = None if token is None else OneToken(token, push=push)
    texts = list(keys)
    if not texts:
        return one or Open(push=push)
    try:
        signed = Signed([key for text in texts for key in keys_of(text)])
    except ImportError:
        raise NotSupportedError(
            "signed tokens need PyJWT and cryptography: install nearlite[server]"
        ) from None
    return signed if one is None else Either(one, signed)


def _invalid(why: str) -> HttpError:
    return unauthorized(f"The token is not good: {why}", "AUTH_JWT_INVALID")


def day(seconds: float) -> str:
    """A Unix time for people; one that no calendar has as a number."""
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"
