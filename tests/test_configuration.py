"""The configuration of a sidecar: what it means, and what is told of mistakes. Nothing is started here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearlite import configuration, document
from nearlite.configuration import Configuration, Secret, UpstreamSettings
from nearlite.errors import ConfigError, ProgrammingError

FOLDER = "/srv"
ENVIRONMENT = {
    "HOME": "/home/ann",
    "PRIMARY_HOSTNAME": "db.example.org",
    "PORT": "9090",
    "EMPTY": "",
}


def read(text: str, **options: Any) -> Configuration:
    options = {"environment": ENVIRONMENT, "folder": FOLDER, **options}
    return configuration.read(text, "n.yml", **options)


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, **options)
    return str(caught.value)


# ---------------------------------------------------------------------- Litestream's guide


def test_the_primary_of_the_guide() -> None:
    found = read('addr: ":9090"\n\ndbs:\n  - path: /data/db\n')
    assert found.address == ("0.0.0.0", 9090)
    (one,) = found.databases
    assert (one.path, one.name, one.upstream, one.line) == ("/data/db", "db", None, 4)
    assert (found.token, found.command, found.warnings) == (None, (), ())


def test_the_replica_of_the_guide() -> None:
    text = """\
addr: ":9090"

dbs:
  - path: /data/db
    upstream:
      url: http://$PRIMARY_HOSTNAME:9090
"""
    (one,) = read(text).databases
    assert one.upstream == UpstreamSettings("http://db.example.org:9090")
    assert one.interval == "live"


def test_a_path_there_that_is_another_one() -> None:
    (one,) = read("dbs: [{path: a.db, upstream: {url: 'http://h', path: /data/db}}]").databases
    assert one.upstream == UpstreamSettings("http://h", path="/data/db")
    assert (one.path, one.written, one.name) == ("/srv/a.db", "a.db", "a.db")


def test_a_whole_file_of_the_beta_is_accepted_and_told_once_what_has_no_effect() -> None:
    text = """\
access-key-id: AKIA
secret-access-key: ${NOT_SET_HERE}
dbs:
  - path: /data/a
    monitor-delay-interval: 10ms
    checkpoint-interval: 1m
    min-checkpoint-page-count: 500
    max-checkpoint-page-count: 10000
    shadow-retention-count: 32
    replicas:
      - url: s3://bucket/a
        retention: 24h
  - path: /data/b
    replicas:
      - url: s3://bucket/b
"""
    found = read(text)
    assert [one.roll_pages for one in found.databases] == [500, None]
    told = {text.split(" has no effect: ")[0]: text for text in found.warnings}
    assert list(told) == [
        "n.yml:1: access-key-id",
        "n.yml:2: secret-access-key",
        "n.yml:5: monitor-delay-interval",
        "n.yml:6: checkpoint-interval",
        "n.yml:8: max-checkpoint-page-count",
        "n.yml:9: shadow-retention-count",
        "n.yml:10: replicas",
    ]
    assert "AKIA" not in str(told)
    assert "nearlite backup" in told["n.yml:10: replicas"]


# ---------------------------------------------------------------------- ours


def test_every_key_of_ours() -> None:
    text = """\
addr: 127.0.0.1:0
auth-token-file: ~/token
auth-jwt-key-file: keys.pem
tls-cert: /etc/cert.pem
tls-key: /etc/key.pem
exec: app --name "Ann B" 'x y'
lag-limit: 5
dbs:
  - path: /data/a
    name: orders
    retention-bytes: 1GiB
    retention-time: 2d
    roll-bytes: 4MiB
  - path: /data/b
    lag-limit: 1m30s
    sync-interval: 10s
    encryption-key-file: key
    upstream:
      url: https://h/x
      name: stock
      auth-token: sesame
      ca-file: ca.pem
"""
    found = read(text)
    assert found.address == ("127.0.0.1", 0)
    assert found.token == Secret(None, "/home/ann/token")
    assert found.jwt_key_file == "/srv/keys.pem"
    assert (found.tls_cert, found.tls_key) == ("/etc/cert.pem", "/etc/key.pem")
    assert found.command == ("app", "--name", "Ann B", "x y")
    one, two = found.databases
    assert (one.name, one.retain_bytes, one.retain_seconds) == ("orders", 1 << 30, 172_800.0)
    assert (one.roll_bytes, one.lag_limit) == (4 << 20, 5.0)
    assert (two.interval, two.lag_limit) == (10.0, 90.0)
    assert two.key == Secret(None, "/srv/key")
    expected = UpstreamSettings("https://h/x", None, "stock", Secret("sesame", None), "/srv/ca.pem")
    assert two.upstream == expected


def test_a_replica_that_looks_now_and_then_may_lag_by_that() -> None:
    (one,) = read("dbs: [{path: a, sync-interval: 60, upstream: {url: 'http://h'}}]").databases
    assert one.lag_limit == 90.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":9090", ("0.0.0.0", 9090)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:80", ("::1", 80)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        (":65536", None),
        ("9090", None),
        ("h", None),
        ("::1:80", None),
        ("http://h:80", None),
        ("", None),
    ],
)
def test_addresses(text: str, expected: tuple[str, int] | None) -> None:
    assert configuration.address_of(text) == expected


def test_anchors_and_merges() -> None:
    text = """\
dbs:
  - &first
    path: /data/a
    roll-bytes: 1MiB
  - <<: *first
    path: /data/b
  - path: /data/c
    <<: [*first]
"""
    assert [(one.path, one.roll_bytes) for one in read(text).databases] == [
        ("/data/a", 1 << 20),
        ("/data/b", 1 << 20),
        ("/data/c", 1 << 20),
    ]


# ---------------------------------------------------------------------- variables


def test_variables_are_replaced_in_values_alone() -> None:
    text = "# $UNKNOWN\ndbs:\n- path: ${HOME}/$PORT$$x\n  name: 'p$PORT'\n"
    (one,) = read(text).databases
    assert (one.path, one.name) == ("/home/ann/9090$x", "p9090")


def test_a_variable_cannot_add_keys() -> None:
    evil = {"X": "a\n  name: evil"}
    assert "cannot be its name" in refusal("dbs:\n- path: $X\n", environment=evil)


def test_numbers_may_come_out_of_variables() -> None:
    (one,) = read("dbs: [{path: a, min-checkpoint-page-count: $PORT}]").databases
    assert one.roll_pages == 9090


def test_a_variable_that_is_not_set() -> None:
    told = "n.yml:2: dbs[0].path: the variable NOWHERE is not set; a $ itself is written $$"
    assert refusal("dbs:\n- path: /$NOWHERE/db\n") == told


def test_an_empty_variable_is_no_value_of_a_path() -> None:
    assert refusal("dbs:\n- path: $EMPTY\n") == "n.yml:2: dbs[0].path: is empty"


@pytest.mark.parametrize("text", ["a$", "a$ b", "${HOME", "$1"])
def test_a_dollar_that_begins_nothing(text: str) -> None:
    told = refusal(f'addr: "{text}"\ndbs: [{{path: a}}]')
    assert told.startswith("n.yml:1: addr: a $ that begins no variable; a $ itself is written $$")


def test_variables_may_be_left_alone() -> None:
    (one,) = read("dbs: [{path: /$X, name: x}]", expand=False).databases
    assert one.path == "/$X"


# ---------------------------------------------------------------------- mistakes

RULE = "1 to 64 of A-Z, a-z, 0-9, dot, hyphen and underscore, a letter or digit first"
MISTAKES = [
    ("", "n.yml:1: the file is empty; it begins with `dbs:`"),
    ("# nothing\n", "n.yml:1: the file is empty; it begins with `dbs:`"),
    ("~", "n.yml:1: the file is empty; it begins with `dbs:`"),
    ("- a", "n.yml:1: here stand no keys with values, such as `dbs:`"),
    ("addr: ':1'", "n.yml:1: dbs: is missing"),
    ("dbs:", "n.yml:1: dbs: expected a list, got nothing"),
    ("dbs: x", "n.yml:1: dbs: expected a list, got a text"),
    ("dbs: []", "n.yml:1: dbs: names no database"),
    ("dbs:\n- x", "n.yml:2: dbs[0]: expected keys with values, got a text"),
    ("dbs:\n- name: x", "n.yml:2: dbs[0].path: is missing"),
    ("dbs:\n- path:", "n.yml:2: dbs[0].path: expected a text, got nothing"),
    ("dbs:\n- path: [a]", "n.yml:2: dbs[0].path: expected a text, got a list"),
    ("dbs:\n- path: {a: b}", "n.yml:2: dbs[0].path: expected a text, got keys with values"),
    (
        "dbs:\n- path: a\n  upstream: http://h",
        "n.yml:3: dbs[0].upstream: expected keys with values, got a text",
    ),
    ("dbs:\n- path: a\n  upstream: {}", "n.yml:3: dbs[0].upstream.url: is missing"),
    (
        "dbs:\n- path: a\n  upstrem: {}",
        'n.yml:3: dbs[0].upstrem: there is no such key; did you mean "upstream"?',
    ),
    (
        "addr: ':1'\ndbs:\n- path: a\n  upstream:\n    Url: http://h",
        'n.yml:5: dbs[0].upstream.Url: there is no such key; did you mean "url"?',
    ),
    ("dbs: []\ndb: x", 'n.yml:2: db: there is no such key; did you mean "dbs"?'),
    (
        "dbs:\n- path: a\n- path: ./a",
        "n.yml:3: dbs[1].path: '/srv/a' is also that of the database in line 2",
    ),
    (
        "dbs:\n- path: a/db\n- path: b/db",
        "n.yml:3: dbs[1].name: 'db' is also that of the database in line 2; give one of them another `name:`",
    ),
    ("dbs:\n- path: a\n  path: b", "n.yml:3: path: stands here twice; the first time in line 2"),
    ("dbs: []\n---\ndbs: []", "n.yml:3: a second document begins here; one file is one"),
    ("dbs:\n\t- path: a", "n.yml:2: a tab; YAML is indented with spaces"),
    ("dbs:\n- path: !!python/object:os.system x", "n.yml:2: tags (!) mean nothing here"),
    ("dbs: *x", "n.yml:1: an alias (*) without its anchor (&) before it"),
    ("dbs: &x [*x]", "n.yml:1: an alias (*) without its anchor (&) before it"),
    ('dbs:\n- path: "a\\0b"', "n.yml:2: a character that no name and no value can have"),
    ('dbs:\n- path: "\\ud800"', "n.yml:2: a character that no name and no value can have"),
    ('dbs:\n- path: "\\U00110000"', "n.yml:2: this is not YAML"),
    ("dbs:\n- path: a\x01", "n.yml:2: a character that YAML does not allow: U+0001"),
    ("? [a]\n: b", "n.yml:1: a key is a word"),
    ("a: &a x\n<<: *a", "n.yml:2: << takes what *NAME stands for, a mapping"),
    (
        "addr: 9090\ndbs: [{path: a}]",
        "n.yml:1: addr: '9090' is not HOST:PORT or :PORT; write \":9090\"",
    ),
    ("tls-key: k\ndbs: [{path: a}]", "n.yml:1: tls-key: needs tls-cert"),
    ("tls-cert: k\ndbs: [{path: a}]", "n.yml:1: tls-cert: needs addr: nothing is served without"),
    ("exec: a 'b\ndbs: [{path: a}]", "n.yml:1: exec: a quotation mark or a backslash is left open"),
    ("exec: ' '\ndbs: [{path: a}]", "n.yml:1: exec: names no program"),
    (
        "auth-token: x\nauth-token-file: y\ndbs: [{path: a}]",
        "n.yml:2: auth-token-file: says the same as auth-token; give one",
    ),
    ("auth-token: ' '\ndbs: [{path: a}]", "n.yml:1: auth-token: is empty"),
    (
        "dbs:\n- path: a\n  roll-bytes: 10 apples",
        "n.yml:3: dbs[0].roll-bytes: '10 apples' is no size such as 4MiB or 1GB",
    ),
    ("dbs:\n- path: a\n  roll-bytes: 1", "n.yml:3: dbs[0].roll-bytes: is at least 65,536 bytes"),
    (
        "dbs:\n- path: a\n  retention-time: soon",
        "n.yml:3: dbs[0].retention-time: 'soon' is no time above 0 such as 10s, 1m30s or 24h",
    ),
    (
        "lag-limit: 0\ndbs: [{path: a}]",
        "n.yml:1: lag-limit: '0' is no time above 0 such as 10s, 1m30s or 24h",
    ),
    (
        "dbs:\n- path: a\n  min-checkpoint-page-count: many",
        "n.yml:3: dbs[0].min-checkpoint-page-count: expected a whole number, got a text",
    ),
    (
        "dbs:\n- path: a\n  min-checkpoint-page-count: 0",
        "n.yml:3: dbs[0].min-checkpoint-page-count: is from 1 to 16,777,216 pages",
    ),
    (
        "dbs:\n- path: a\n  min-checkpoint-page-count: 1\n  roll-bytes: 1MiB",
        "n.yml:3: dbs[0].min-checkpoint-page-count: says the same as roll-bytes in another unit; give one of them",
    ),
    (
        "dbs:\n- path: a\n  sync-interval: live",
        "n.yml:3: dbs[0].sync-interval: is for a replica; this database has no upstream",
    ),
    (
        "dbs:\n- path: a\n  encryption-key: x",
        "n.yml:3: dbs[0].encryption-key: is for a replica; this database has no upstream",
    ),
    (
        "dbs:\n- path: a\n  upstream: {url: http://h}\n  retention-bytes: 1GB",
        "n.yml:4: dbs[0].retention-bytes: is for a primary, whose history it is; this database has an upstream",
    ),
    (
        "dbs:\n- path: a\n  upstream: {url: http://h}\n  sync-interval: often",
        "n.yml:4: dbs[0].sync-interval: 'often' is neither live nor a time such as 10s or 1m",
    ),
    (
        "dbs:\n- path: a\n  upstream: {url: ftp://h}",
        "n.yml:3: dbs[0].upstream.url: 'ftp://h' is not http://HOST:PORT or https://HOST",
    ),
    (
        "dbs:\n- path: a\n  upstream: {url: 'http://h?x=y'}",
        "n.yml:3: dbs[0].upstream.url: ends with its path, without ? and #",
    ),
    (
        "dbs:\n- path: a\n  upstream: {url: http://h, name: x, path: y}",
        "n.yml:3: dbs[0].upstream.name: says the same as path; give one of them",
    ),
    (
        "dbs:\n- path: a\n  name: .x",
        f"n.yml:3: dbs[0].name: '.x' is no name: {RULE}",
    ),
    (
        "dbs:\n- path: /data/my database",
        f"n.yml:2: dbs[0].path: its base name cannot be its name in URLs; give it a `name:` of {RULE}",
    ),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES, ids=[told for _, told in MISTAKES])
def test_a_mistake_is_told_with_file_line_and_key(text: str, told: str) -> None:
    assert refusal(text) == told


def test_the_parts_of_an_error_can_be_had() -> None:
    with pytest.raises(ConfigError) as caught:
        read("dbs:\n- path: a\n  upstrem: {}")
    error = caught.value
    assert (error.file, error.line, error.key) == ("n.yml", 3, "dbs[0].upstrem")
    assert isinstance(error, ProgrammingError)


def test_a_file_that_is_not_utf_8_is_told_with_the_line() -> None:
    with pytest.raises(ConfigError, match=r"^n.yml:2: the file is not UTF-8 text$"):
        document.text_of(b"dbs:\n- path: \xff", "n.yml")


def test_a_byte_order_mark_is_none_of_the_text() -> None:
    assert document.text_of(b"\xef\xbb\xbfdbs:", "n.yml") == "dbs:"


# ---------------------------------------------------------------------- secrets

SECRET = "pa-SECRET-55"


@pytest.mark.parametrize(
    "text",
    [
        f"auth-token: {SECRET}\nauth-token-file: x\ndbs: [{{path: a}}]",
        f"auth-token: [{SECRET}]\ndbs: [{{path: a}}]",
        f"auth-token: {SECRET}: x",
        f"auth-token: '{SECRET}\ndbs: [{{path: a}}]",
        f"auth-token:{SECRET}: x\ndbs: []",
        f"auth-token:\n  {SECRET}\n: x",
        f"auth-token: *{SECRET}\ndbs: []",
        f"auth-token: !{SECRET}\ndbs: []",
        f"auth-token: @{SECRET}\ndbs: []",
        f"auth-token: %{SECRET}\ndbs: []",
        f'auth-token: "\\{SECRET}"\ndbs: []',
        f"auth-token: |{SECRET}\ndbs: []",
        f"auth-token: x${SECRET.replace('-', '_')}\ndbs: []",
        f"dbs:\n- path: a\n  upstream: {{url: 'http://u:{SECRET}@h'}}",
        f"dbs:\n- path: a\n  upstream: {{url: 'u:{SECRET}@h'}}",
        f"dbs:\n- path: a\n  upstream: {{url: http://h, auth-token: {SECRET}, auth-token-file: x}}",
        f"dbs:\n- path: a\n  encryption-key: {SECRET}",
    ],
)
def test_no_error_shows_a_secret(text: str) -> None:
    told = refusal(text)
    assert "SECRET" not in told


def test_no_repr_shows_a_secret() -> None:
    text = f"""\
auth-token: {SECRET}
dbs:
- path: a
  encryption-key: {SECRET}
  upstream: {{url: http://h, auth-token: {SECRET}}}
"""
    found = read(text)
    assert found.token is not None
    assert found.token.text == SECRET
    assert "SECRET" not in repr(found)
    assert "SECRET" not in repr(document.parse(text, "n.yml"))


# ---------------------------------------------------------------------- bounds


def test_a_billion_laughs_are_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    began = time.monotonic()
    told = refusal("\n".join(lines))
    assert told.endswith(": more than 100,000 values, aliases followed")
    assert time.monotonic() - began < 5


def test_a_deep_text_is_bounded() -> None:
    assert refusal("dbs: " + "[" * 100_000).startswith("n.yml:1: more than 16 levels")
    assert refusal("- " * 50_000 + "x").startswith("n.yml:1: more than 16 levels")


def test_a_large_text_is_refused() -> None:
    huge = "#" * (document.LARGEST + 1)
    assert "is longer than" in refusal(huge)
    with pytest.raises(ConfigError, match="larger than 262,144 bytes"):
        document.text_of(huge.encode(), "n.yml")


def test_a_thousand_databases_are_read_in_no_time() -> None:
    text = "dbs:\n" + "".join(f"- path: /data/{n}.db\n" for n in range(1000))
    assert len(read(text).databases) == 1000


# ---------------------------------------------------------------------- whatever a text is

WORDS = st.sampled_from(
    [
        *(
            "dbs:",
            "addr:",
            "path:",
            "upstream:",
            "url:",
            "name:",
            "auth-token:",
            "exec:",
            "roll-bytes:",
        ),
        *(
            "http://h:1",
            "a",
            "$PORT",
            "${X}",
            "$",
            "~",
            "null",
            "[",
            "]",
            "{",
            "}",
            ",",
            "- ",
            "\n",
            "\n  ",
        ),
        *(
            "\n- ",
            "\n    ",
            "\t",
            "'",
            '"',
            "&a ",
            "*a",
            "<<: ",
            "? ",
            ": ",
            "!!str ",
            "|\n",
            ">\n",
            "#",
            "---\n",
        ),
        *(
            "%YAML 1.1\n",
            "\\",
            "\\x",
            "10s",
            "1MiB",
            "live",
            ":9090",
            "é",
            "\u2028",
            "\ufeff",
            "\x85",
        ),
    ]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=40).map("".join)


def check(text: str) -> None:
    """The text gives a configuration, or one error with a line of its own."""
    try:
        found = read(text)
    except ConfigError as error:
        lines = (
            text.count("\n")
            + text.count("\r")
            + text.count("\x85")
            + text.count("\u2028")
            + text.count("\u2029")
        )
        assert 1 <= error.line <= lines + 2
        assert "\n" not in str(error)
        assert str(error).startswith(f"n.yml:{error.line}: ")
    else:
        assert found.databases
        assert len({one.name for one in found.databases}) == len(found.databases)
        assert replace(found) == found


@given(TEXTS)
def test_any_text_is_a_configuration_or_one_error_with_a_line(text: str) -> None:
    check(text)


@given(st.text())
def test_so_is_any_text_at_all(text: str) -> None:
    check(text)


@given(st.binary())
def test_any_bytes_are_a_text_or_one_error(data: bytes) -> None:
    try:
        text = document.text_of(data, "n.yml")
    except ConfigError as error:
        assert str(error).startswith(f"n.yml:{error.line}: ")
    else:
        check(text)


VALUES = st.one_of(
    st.none(),
    st.integers(-5, 1 << 40),
    st.sampled_from(["a", "b/c", "10s", "1MiB", "live", "http://h:9", "$$"]),
)


@given(
    st.dictionaries(
        st.sampled_from(["addr", "exec", "auth-token", "lag-limit", "tls-cert"]), VALUES
    ),
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["path", "name", "roll-bytes", "sync-interval", "lag-limit", "retention-time"]
            ),
            VALUES,
        ),
        max_size=4,
    ),
)
def test_what_a_program_writes_is_read_as_it_meant_it(
    top: dict[str, Any], dbs: list[dict[str, Any]]
) -> None:
    import yaml

    check(yaml.safe_dump({**top, "dbs": dbs}))
