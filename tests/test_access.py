"""Who may ask, and for what."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import Client, app_of, serving

import nearlite
from nearlite.access import Access, Authority, OneToken, Open, is_foreign
from nearlite.exchange import HttpError
from nearlite.tokens import authority


def scope_of(**headers: str) -> dict[str, object]:
    return {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


def refusal(authority: Authority, **headers: str) -> tuple[int, str]:
    with pytest.raises(HttpError) as caught:
        authority.access(scope_of(**headers), "default")
    return caught.value.status, caught.value.code


def test_one_token_gives_everything_but_pushing() -> None:
    known = OneToken("right")
    assert known.access(scope_of(authorization="Bearer right"), "x") == Access(True, False)
    assert known.access(scope_of(authorization="bEARER  right "), "x") == Access(True, False)
    assert known.of_token("right", "x") == Access(True, False)
    for given in ("Bearer wrong", "Bearer ", "Basic right", "right", "Bearer right\udcff"):
        with pytest.raises(HttpError) as caught:
            known.access(
                {"headers": [(b"authorization", given.encode(errors="surrogateescape"))]}, "x"
            )
        assert caught.value.status == 401
        assert "right" not in str(caught.value).replace("right one", "")
    assert refusal(known) == (401, "AUTH_HTTP_HEADER_MISSING")
    assert refusal(known, authorization="Bearer wrong") == (401, "UNAUTHORIZED")
    assert refusal(known, authorization="Basic right") == (
        401,
        "AUTH_HTTP_HEADER_UNSUPPORTED_SCHEME",
    )
    with pytest.raises(HttpError):
        known.of_token(None, "x")
    assert "right" not in repr(known)


def test_pushing_is_allowed_by_itself() -> None:
    assert authority("t", push=True).of_token("t", "x") == Access(True, True)
    assert authority(None, push=True).of_token(None, "x") == Access(True, True)
    assert authority(None).of_token("whatever", "x") == Access(True, False)


def test_without_a_token_pages_from_elsewhere_may_not_even_connect() -> None:
    assert refusal(Open(), origin="https://elsewhere.example", host="db") == (403, "FORBIDDEN")
    with pytest.raises(HttpError):
        Open().meet(scope_of(origin="https://elsewhere.example", host="db"))
    Open().meet(scope_of(origin="http://localhost:3000", host="db"))
    OneToken("t").meet(scope_of(origin="https://elsewhere.example", host="db"))


def test_a_push_needs_the_permission(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        refused = Client(port).request("POST", "/sync/1/1/2", b"")
        assert (refused.status, refused.json["code"]) == (403, "FORBIDDEN")
        assert "token" in refused.json["message"]


def test_a_token_must_not_be_empty(tmp_path: Path) -> None:
    with pytest.raises(nearlite.ProgrammingError, match="empty"):
        nearlite.asgi(tmp_path / "data.db", auth_token="")


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({"host": "127.0.0.1:80"}, False),
        ({"host": "db.example"}, False),  # no browser, perhaps behind a proxy
        ({"origin": "http://127.0.0.1:80", "host": "127.0.0.1:80"}, False),
        ({"origin": "http://localhost:3000", "host": "db.example"}, False),
        ({"origin": "http://192.168.1.7:80", "host": "192.168.1.7:80"}, False),
        ({"origin": "http://[fd00::7]:80", "host": "[fd00::7]:80"}, False),
        ({"origin": "http://db:80", "host": "db:80"}, False),
        ({"origin": "https://db.example", "host": "db.example"}, False),
        ({"origin": "http://elsewhere.example", "host": "127.0.0.1:80"}, True),
        ({"origin": "http://192.168.1.8:80", "host": "192.168.1.7:80"}, True),
        ({"origin": "https://elsewhere.example", "host": "db.example"}, True),
        ({"origin": "null", "host": "127.0.0.1:80"}, True),
        ({"origin": "null"}, True),
        ({"origin": "null", "host": ""}, True),
        ({"origin": "http://[", "host": "["}, True),
        # A name that leads here, whoever owns it: page and server are of one origin.
        ({"origin": "http://elsewhere.example:80", "host": "elsewhere.example:80"}, True),
        ({"origin": "http://elsewhere.example.", "host": "elsewhere.example."}, True),
        ({"origin": "http://127.0.0.1.example", "host": "127.0.0.1.example"}, True),
        ({"host": "elsewhere.example:80", "accept-language": "en"}, True),
        ({"host": "[", "accept-language": "en"}, True),
        ({"host": "127.0.0.1:80", "accept-language": "en"}, False),
        ({"host": "[::1]:80", "accept-language": "en"}, False),
        ({"host": "db.localhost:80", "accept-language": "en"}, False),
        ({"host": "db.example", "accept-language": "en", "sec-fetch-mode": "cors"}, False),
    ],
)
def test_whom_a_server_without_a_token_takes_for_a_page_from_elsewhere(
    headers: dict[str, str], foreign: bool
) -> None:
    assert is_foreign(scope_of(**headers)) is foreign
    if foreign:
        assert refusal(Open(), **headers) == (403, "FORBIDDEN")
    else:
        Open().access(scope_of(**headers), "default")
