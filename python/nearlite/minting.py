"""Makes keys and signed tokens, and says what is in a token."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nearlite.errors import ProgrammingError
from nearlite.exchange import HttpError
from nearlite.keys import write_new
from nearlite.tokens import ALGORITHM, MAX_TOKEN, Grants, Signed, claims_of, day, grants_of, keys_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DEFAULT: Final = "default"
"""Name of the database of a server that has one."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_SPAN: Final = re.compile(r"([0-9]{1,6})\s*([smhdwy])", re.ASCII)
_LARGEST_KEY: Final = 64 << 10


def span(text: str) -> int | None:
    """Seconds of ``30d``, ``12h`` ...; None: ``never``. Raises ProgrammingError."""
    if text == "never":
        return None
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None or not int(match[1]):
        raise ProgrammingError(
            f"{text!r} is neither 'never' nor a span of time; write for example 12h, 30d or 1y"
        )
    return int(match[1]) * _UNITS[match[2]]


def make_keys(private: Path) -> Path:
    """Make a key that signs; where its public half lies.

    Raises:
      FileExistsError: one of the two files is there; neither was touched.
    """
    public = private.with_name(private.name + ".pub")
    if public.exists():
        raise FileExistsError(17, "exists", str(public))
    key = Ed25519PrivateKey.generate()
    clear = serialization.NoEncryption()
    pkcs8 = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, clear)
    write_new(private, pkcs8.decode(), mode=0o600)
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, info)
    write_new(public, pem.decode(), mode=0o644)
    return public


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs, as `make_keys` writes it. Raises ProgrammingError, which shows none of it."""
    with path.open("rb") as file:
        content = file.read(_LARGEST_KEY)
    try:
        key = serialization.load_pem_private_key(content, None)
    except Exception:  # noqa: BLE001 - whatever the parser says, it is not to be shown
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ProgrammingError(
            f"{path} holds no private key of Ed25519 in PEM without a password; `nearlite token keygen` makes one"
        )
    return key


def mint(
    key: Ed25519PrivateKey,
    *,
    databases: Sequence[str] = (),
    write: bool = True,
    push: bool = False,
    seconds: int | None = None,
) -> str:
    """A token.

    Args:
      key: that signs.
      databases: it is for; none: for all of the server, or with `push`, which has to be allowed by name, for
        the one of a server that has one.
      write: its holder may write.
      push: and send pages, which can make anything of a database.
      seconds: from now, until it expires; None: never.
    """
    now = int(time.time())
    claims: dict[str, object] = {"iat": now}
    if seconds is not None:
        claims["exp"] = now + seconds
    level = "rw" if write else "ro"
    names = list(databases) or ([DEFAULT] if push else [])
    if names:
        claims["p"] = {level: {"ns": names}} | ({"push": {"ns": names}} if push else {})
    else:
        claims["a"] = level
    token = jwt.encode(claims, key, ALGORITHM)
    if len(token) > MAX_TOKEN:
        raise ProgrammingError(
            f"a token for so many databases is longer than {MAX_TOKEN} characters, which is the limit"
        )
    return token


@dataclass(frozen=True)
class Seen:
    """What a token says, and whether that is so.

    Attributes:
      grants: what it allows.
      begins, expires: Unix times, or None.
      good: it is good now; None: nobody has looked at the signature.
      why: why it is not.
    """

    grants: Grants
    begins: float | None
    expires: float | None
    good: bool | None
    why: str


def look(token: str, keys: Sequence[Ed25519PublicKey]) -> Seen:
    """What a token says. Raises ProgrammingError: it is none."""
    if len(token) > MAX_TOKEN:
        raise ProgrammingError(f"it is longer than {MAX_TOKEN} characters: no server accepts it")
    try:
        payload = jwt.PyJWS().decode_complete(token, options={"verify_signature": False})["payload"]
        claims = claims_of(payload)
    except HttpError as error:
        raise ProgrammingError(error.message) from None
    except (jwt.InvalidTokenError, ValueError):
        raise ProgrammingError("this is not a signed JWT") from None
    good, why = None, ""
    if keys:
        try:
            Signed(keys).grants(token)
            good = True
        except HttpError as error:
            good, why = False, error.message
    begins = claims.nbf if isinstance(claims.nbf, float) else None
    expires = claims.exp if isinstance(claims.exp, float) else None
    return Seen(grants_of(claims), begins, expires, good, why)


def public_keys(path: Path) -> list[Ed25519PublicKey]:
    """The keys in a file, public ones or one that signs. Raises ProgrammingError."""
    with path.open("rb") as file:
        content = file.read(_LARGEST_KEY)
    if b"PRIVATE KEY" in content:
        return [private_key(path).public_key()]
    return keys_of(content.decode("utf-8", "replace"))


def as_json(seen: Seen) -> str:
    """One object."""

    def names(found: frozenset[str] | None) -> object:
        return "*" if found is None else sorted(found)

    return json.dumps(
        {
            "reads": names(seen.grants.read),
            "writes": names(seen.grants.write),
            "pushes": names(seen.grants.push),
            "begins": seen.begins,
            "expires": seen.expires,
            "good": seen.good,
            **({"why": seen.why} if seen.why else {}),
        }
    )


def as_text(seen: Seen) -> str:
    """A line for each thing."""
    lines = []
    grants = seen.grants
    for verb, found in (
        ("writes", grants.write),
        ("reads", grants.read),
        ("pushes to", grants.push),
    ):
        if found is None:
            lines.append((verb, "every database"))
        elif found:
            lines.append((verb, ", ".join(sorted(found))))
    if not lines:
        lines.append(("allows", "nothing"))
    if seen.begins is not None:
        lines.append(("from", day(seen.begins)))
    lines.append(("until", "for ever" if seen.expires is None else day(seen.expires)))
    told = "not looked at: give --key" if seen.good is None else "good" if seen.good else seen.why
    lines.append(("verdict", told))
    return "\n".join(f"{name + ':':<11}{text}" for name, text in lines)
