"""Signed tokens: which are believed, and what they allow."""

from __future__ import annotations

import base64
import hmac
import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from serving import Client, app_of, execute, outcome, rows, serving

import nearlite
from nearlite.access import Access
from nearlite.exchange import HttpError
from nearlite.tokens import MAX_TOKEN, Either, Signed, authority, keys_of

NOW = 1_700_000_000.0
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def pem(key: Any) -> str:
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, info).decode()


def raw(key: ed25519.Ed25519PrivateKey) -> str:
    data = key.public_key().public_bytes_raw()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token(claims: Any = None, key: Any = KEY, **head: Any) -> str:
    return jwt.encode({} if claims is None else claims, key, "EdDSA", headers=head or None)


def parts(*pieces: Any) -> str:
    texts = [piece if isinstance(piece, bytes) else json.dumps(piece).encode() for piece in pieces]
    return ".".join(base64.urlsafe_b64encode(text).decode().rstrip("=") for text in texts)


def signed_payload(payload: bytes) -> str:
    """A token whose payload PyJWT would not make."""
    begun = parts({"alg": "EdDSA"}, payload)
    signature = base64.urlsafe_b64encode(KEY.sign(begun.encode())).decode().rstrip("=")
    return f"{begun}.{signature}"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def signed(*keys: Any, clock: Any = None) -> Signed:
    return Signed([key.public_key() for key in keys or [KEY]], clock or Clock())


def refused(made: str | None, database: str = "default", knows: Any = None) -> tuple[int, str]:
    with pytest.raises(HttpError) as caught:
        (knows or signed()).of_token(made, database)
    if made:
        assert made not in caught.value.message
        signature = made.rpartition(".")[2]
        assert not signature or signature not in caught.value.message
    return caught.value.status, caught.value.code


INVALID = (401, "AUTH_JWT_INVALID")
UNKNOWN = (404, "UNKNOWN_DATABASE")


# ---------------------------------------------------------------- what a token allows


@pytest.mark.parametrize(
    ("claims", "database", "write", "push"),
    [
        ({}, "any", True, False),
        ({"a": "rw"}, "any", True, False),
        ({"a": "rwa"}, "any", True, False),
        ({"a": "ro"}, "any", False, False),
        ({"a": "roa"}, "any", False, False),
        ({"id": "mine"}, "mine", True, False),
        ({"id": "mine", "a": "ro"}, "mine", False, False),
        ({"p": {"rw": {"ns": ["mine", "x"]}}}, "mine", True, False),
        ({"p": {"rwa": {"ns": ["mine"]}}}, "mine", True, False),
        ({"p": {"ro": {"ns": ["mine"]}}}, "mine", False, False),
        ({"p": {"roa": {"ns": ["mine"]}}}, "mine", False, False),
        ({"p": {"ro": {"ns": ["mine"]}, "rw": {"ns": ["mine"]}}}, "mine", True, False),
        ({"p": {"push": {"ns": ["mine"]}}}, "mine", False, True),
        ({"p": {"push": {"ns": ["mine"]}, "rw": {"ns": ["mine"]}}}, "mine", True, True),
        # With `p` the other two are not looked at.
        ({"p": {"ro": {"ns": ["mine"]}}, "a": "rw", "id": "other"}, "mine", False, False),
        ({"p": {"ro": {"ns": ["mine"], "tags": ["t"]}, "unknown": 1}}, "mine", False, False),
        # What else a token says does not matter.
        ({"sub": "somebody", "iat": NOW + 1e6, "iss": "x", "jti": "1"}, "any", True, False),
    ],
)
def test_what_claims_allow(claims: Any, database: str, write: bool, push: bool) -> None:
    assert signed().of_token(token(claims), database) == Access(write, push)


@pytest.mark.parametrize(
    "claims",
    [
        {"id": "other"},
        {"id": ""},
        {"id": "DEFAULT"},
        {"p": {}},
        {"p": {"ro": {}}},
        {"p": {"rw": {"ns": ["other"]}}},
        {"p": {"rw": {"tags": ["default"]}}},
        {"p": {"ddl": {"ns": ["default"]}}},
        {"p": {"push": {"ns": ["defaul"]}}},
    ],
)
def test_a_token_for_another_database_finds_none(claims: Any) -> None:
    assert refused(token(claims)) == UNKNOWN


@pytest.mark.parametrize(
    "claims",
    [
        {"a": "admin"},
        {"a": None},
        {"a": ["rw"]},
        {"id": None},
        {"id": 7},
        {"id": ["default"]},
        {"p": "rw"},
        {"p": None},
        {"p": ["rw"]},
        {"p": {"rw": ["default"]}},
        {"p": {"rw": {"ns": "default"}}},
        {"p": {"rw": {"ns": [1]}}},
        {"p": {"rw": None}},
        {"exp": "2038-01-01"},
        {"exp": True},
        {"exp": None},
        {"exp": [NOW + 60]},
        {"nbf": "now"},
        {"aud": "another service"},
        {"aud": []},
    ],
)
def test_claims_of_another_shape_are_refused(claims: Any) -> None:
    made = signed_payload(json.dumps(claims).encode())
    assert refused(made) == INVALID


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"null", b"{", b'{"a":"rw"}x', b"\xff\xfe", b'{"exp":1e999}', b'{"a":' * 3000],
)
def test_what_is_no_object_is_refused(payload: bytes) -> None:
    assert refused(signed_payload(payload)) == INVALID


# ---------------------------------------------------------------- times


def test_a_token_expires_with_a_minute_of_grace() -> None:
    clock = Clock()
    knows = signed(clock=clock)
    made = token({"exp": int(NOW) + 100})
    assert knows.of_token(made, "x").until == NOW + 160
    clock.now = NOW + 159
    assert knows.of_token(made, "x").write  # remembered, or not
    assert signed(clock=clock).of_token(made, "x").write
    clock.now = NOW + 160
    assert refused(made, knows=knows) == (401, "AUTH_JWT_EXPIRED")
    assert refused(made, knows=signed(clock=clock)) == (401, "AUTH_JWT_EXPIRED")


def test_a_token_is_not_good_before_its_time() -> None:
    clock = Clock()
    knows = signed(clock=clock)
    made = token({"nbf": int(NOW) + 100})
    assert refused(made, knows=knows) == (401, "AUTH_JWT_IMMATURE")
    clock.now = NOW + 40
    assert knows.of_token(made, "x") == Access()


@pytest.mark.parametrize("exp", [0, -1, -1e300, 0.5])
def test_times_long_ago(exp: float) -> None:
    assert refused(token({"exp": exp})) == (401, "AUTH_JWT_EXPIRED")


@pytest.mark.parametrize("exp", [1e300, 2**70])
def test_times_that_no_calendar_has(exp: float) -> None:
    assert signed().of_token(signed_payload(json.dumps({"exp": exp}).encode()), "x").write
    assert refused(token({"nbf": 1e300})) == (401, "AUTH_JWT_IMMATURE")


# ---------------------------------------------------------------- signatures


def test_keys_are_tried_in_turn() -> None:
    for knows in (signed(KEY, OTHER), signed(OTHER, KEY)):
        assert knows.of_token(token(), "x") == Access()
        assert knows.of_token(token(key=OTHER), "x") == Access()
        # The first key that fits decides: what is wrong beside the signature is not tried again.
        assert refused(token({"exp": 1}), knows=knows) == (401, "AUTH_JWT_EXPIRED")
    assert refused(token(key=OTHER)) == INVALID


def forgeries() -> dict[str, str]:
    good = token({"a": "ro"})
    head, payload, signature = good.split(".")
    public = KEY.public_key().public_bytes_raw()
    stronger = parts({"alg": "EdDSA"}, {"a": "rw"}).split(".")[1]

    def hs256(secret: bytes) -> str:
        begun = parts({"alg": "HS256", "typ": "JWT"}, {})
        tag = hmac.new(secret, begun.encode(), sha256).digest()
        return f"{begun}.{base64.urlsafe_b64encode(tag).decode().rstrip('=')}"

    flipped = base64.urlsafe_b64decode(signature + "==")
    flipped = flipped[:-1] + bytes([flipped[-1] ^ 1])
    # The same signature with S + L, which a lenient verifier takes for another one of the same text.
    order = (1 << 252) + 27742317777372353535851937790883648493
    sig = base64.urlsafe_b64decode(signature + "==")
    malleable = sig[:32] + (int.from_bytes(sig[32:], "little") + order).to_bytes(32, "little")
    rsa_key = rsa.generate_private_key(65537, 2048)
    return {
        "none": parts({"alg": "none"}, {}) + ".",
        "None": parts({"alg": "None"}, {}) + "." + signature,
        "no algorithm": parts({"typ": "JWT"}, {}) + "." + signature,
        "hs256 with the PEM": hs256(pem(KEY).encode()),
        "hs256 with the raw key": hs256(public),
        "hs256 with its text": hs256(raw(KEY).encode()),
        "rs256": jwt.encode({}, rsa_key, "RS256"),
        "es256": jwt.encode({}, ec.generate_private_key(ec.SECP256R1()), "ES256"),
        "ed448": jwt.encode({}, ed448.Ed448PrivateKey.generate(), "EdDSA"),
        "its own key": token(key=OTHER, jwk={"kty": "OKP", "crv": "Ed25519", "x": raw(OTHER)}),
        "a key elsewhere": token(
            key=OTHER, jku="https://elsewhere.example/", kid="../../etc/passwd"
        ),
        "another payload": f"{head}.{stronger}.{signature}",
        "no signature": f"{head}.{payload}.",
        "half a signature": f"{head}.{payload}.{signature[:43]}",
        "a bit of it": f"{head}.{payload}."
        + base64.urlsafe_b64encode(flipped).decode().rstrip("="),
        "malleable": f"{head}.{payload}."
        + base64.urlsafe_b64encode(malleable).decode().rstrip("="),
        "zeros": f"{head}.{payload}." + base64.urlsafe_b64encode(bytes(64)).decode().rstrip("="),
        "two parts": f"{head}.{payload}",
        "four parts": f"{good}.{signature}",
        "detached": token({}, b64=False, crit=["b64"]),
        "critical": token({}, crit=["exp"], exp=1),
        "empty": "",
        "dots": "..",
        "garbage": "\x00\udcff.😀.x",
        "head that is a list": parts([], {}) + "." + signature,
        "deep head": parts(b"[" * 5000, {}) + "." + signature,
    }


FORGED = forgeries()


@pytest.mark.parametrize("name", FORGED)
def test_forged_tokens_are_refused(name: str) -> None:
    assert refused(FORGED[name]) == INVALID


def test_a_token_names_its_key_as_it_likes() -> None:
    assert signed().of_token(token(kid="what key is that"), "x") == Access()


def test_a_token_has_a_largest_size() -> None:
    names = [f"database-{number}" for number in range(900)]
    fits = token({"p": {"rw": {"ns": names[:500]}}})
    assert len(fits) < MAX_TOKEN
    assert signed().of_token(fits, "database-7").write
    assert refused(token({"p": {"rw": {"ns": names}}})) == INVALID


@given(st.integers(0), st.integers(0, 255))
def test_a_token_with_another_byte_is_never_good(at: int, byte: int) -> None:
    good = token({"a": "ro", "id": "x"})
    changed = bytearray(good.encode())
    changed[at % len(changed)] = byte
    text = changed.decode("latin-1")
    try:
        allowed = signed().of_token(text, "x")
    except HttpError as error:
        assert error.status == 401
    else:  # base64 has bits that mean nothing: what was signed is the same
        head, payload, _ = good.split(".")
        assert text.split(".")[:2] == [head, payload]
        assert allowed == Access(False, False)


def test_a_verified_token_costs_no_second_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    knows = signed()
    made = token({"exp": int(NOW) + 1000})
    knows.of_token(made, "x")
    monkeypatch.setattr(knows, "_payload", lambda _token: pytest.fail("it was verified again"))
    assert knows.of_token(made, "y").write
    with pytest.raises(HttpError):
        monkeypatch.undo()
        knows.of_token(made + "A", "x")


def test_what_is_remembered_is_bounded() -> None:
    knows = signed()
    for number in range(1100):
        knows.of_token(token({"jti": str(number)}), "x")
    assert len(knows._known) == 1024


# ---------------------------------------------------------------- keys


def test_keys_as_people_give_them() -> None:
    expected = [KEY.public_key().public_bytes_raw(), OTHER.public_key().public_bytes_raw()]
    for text in (pem(KEY) + pem(OTHER), f"\n{pem(KEY)}# a comment\n\n{pem(OTHER)}\n"):
        assert [key.public_bytes_raw() for key in keys_of(text)] == expected
    for text in (raw(KEY), f"  {raw(KEY)}\n", raw(KEY) + "="):
        assert [key.public_bytes_raw() for key in keys_of(text)] == expected[:1]


def test_what_is_no_key_is_refused_and_not_shown() -> None:
    pkcs8 = KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    zero = base64.urlsafe_b64encode(bytes(32)).decode()
    one = base64.urlsafe_b64encode(b"\x01" + bytes(30) + b"\x80").decode()
    for text, why in (
        ("", "32 bytes"),
        ("secret" * 10, "32 bytes"),
        (raw(KEY)[:-1], "32 bytes"),
        (pkcs8, "private key"),
        (pem(KEY) + pkcs8, "private key"),
        (pem(rsa.generate_private_key(65537, 2048)), "Ed25519"),
        (pem(ed448.Ed448PrivateKey.generate()), "Ed25519"),
        (pem(KEY)[:60], "whole"),
        (pem(KEY).replace("M", "%"), "not a public key"),
        ("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", "CERTIFICATE"),
        (zero, "weak"),
        (one, "weak"),
    ):
        with pytest.raises(nearlite.ProgrammingError, match=why) as caught:
            keys_of(text)
        assert not any(line in str(caught.value) for line in text.split() if len(line) > 30)


# ---------------------------------------------------------------- a server


def test_one_token_beside_signed_ones() -> None:
    knows = authority("a.static.token", [raw(KEY)], push=True)
    assert isinstance(knows, Either)
    assert knows.of_token("a.static.token", "x") == Access(True, True)
    assert knows.of_token(token({"a": "ro"}), "x") == Access(False, False)
    assert refused("a.static.tokeN", knows=knows) == INVALID
    assert refused("another", knows=knows) == (401, "UNAUTHORIZED")
    assert refused(None, knows=knows) == (401, "UNAUTHORIZED")
    assert "static" not in repr(knows)


def test_a_server_that_takes_signed_tokens(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    made = {
        "good": token(),
        "forged": token(key=OTHER),
        "expired": token({"exp": 1}),
        "elsewhere": token({"id": "other"}),
    }
    app = app_of(tmp_path / "data.db", auth_jwt_key=[pem(KEY)])
    with serving(app) as port:
        for name, status, code in (
            ("good", 200, None),
            ("forged", 401, "AUTH_JWT_INVALID"),
            ("expired", 401, "AUTH_JWT_EXPIRED"),
            ("elsewhere", 404, "UNKNOWN_DATABASE"),
        ):
            client = Client(port, made[name])
            body = json.dumps({"requests": [execute("SELECT 1")]}).encode()
            for _ in range(3):  # the short cut, too
                for path in ("/v2/pipeline", "/v3/pipeline"):
                    reply = client.request("POST", path, body)
                    assert (reply.status, reply.json.get("code")) == (status, code)
            for path in ("/nl/v1/status", "/nl/v1/authorized", "/info"):
                assert client.request("GET", path).status in (status, 204)
        anonymous = Client(port)
        reply = anonymous.request("POST", "/v3/pipeline", body)
        assert (reply.status, reply.json["code"]) == (401, "AUTH_HTTP_HEADER_MISSING")
        assert reply.headers["www-authenticate"] == "Bearer"
        reply = anonymous.request("POST", "/v3/pipeline", body, authorization="Basic x")
        assert reply.json["code"] == "AUTH_HTTP_HEADER_UNSUPPORTED_SCHEME"
    for text in made.values():
        assert text not in caplog.text
        assert text.rpartition(".")[2] not in caplog.text


def test_an_expired_token_ends_the_short_cut(tmp_path: Path, monkeypatch: Any) -> None:
    """Heads that were seen before are not parsed again; their tokens end all the same."""
    from nearlite import server, tokens

    clock = Clock()
    app = app_of(tmp_path / "data.db")
    app._authority = signed(clock=clock)
    monkeypatch.setattr(server, "now", clock)
    with serving(app) as port:
        client = Client(port, token({"exp": int(NOW) + 100}))
        for _ in range(3):
            assert rows(outcome(client.pipeline(execute("SELECT 1"))["results"][0])) == [[1]]
        clock.now += 100 + tokens.LEEWAY
        reply = client.request("POST", "/v3/pipeline", b'{"requests":[]}')
        assert (reply.status, reply.json["code"]) == (401, "AUTH_JWT_EXPIRED")
