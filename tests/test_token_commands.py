"""`nearlite token`."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner, Result

from nearlite.cli import cli
from nearlite.tokens import Signed, keys_of


def run(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(
        cli, ["token", *map(str, arguments)], input=given, standalone_mode=False
    )


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing.pem"
    assert run("keygen", path).return_value == 0
    return path


def minted(key: Path, *options: object) -> tuple[str, dict[str, Any]]:
    text = run("mint", "--key", key, *options).output.strip()
    public = key.with_name(key.name + ".pub").read_text()
    return text, jwt.decode(text, public, ["EdDSA"])


def test_a_key_is_made_in_two_halves(key: Path) -> None:
    public = key.with_name(key.name + ".pub")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "PRIVATE" not in public.read_text()
    assert len(keys_of(public.read_text())) == 1


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    for name in ("a", "b"):
        path = tmp_path / name
        there = path if name == "a" else tmp_path / "b.pub"
        there.write_text("the only one")
        done = run("keygen", path)
        assert done.return_value == 5
        assert there.read_text() == "the only one"
        assert [found.name for found in tmp_path.glob(f"{name}*")] == [there.name]


def test_what_a_token_says(key: Path) -> None:
    now = time.time()
    _, plain = minted(key)
    assert (plain["a"], plain.get("p"), plain.get("id")) == ("rw", None, None)
    assert abs(plain["exp"] - now - 30 * 86_400) < 60
    _, reader = minted(key, "--read-only", "--expires", "never")
    assert (reader["a"], "exp" in reader) == ("ro", False)
    _, named = minted(key, "--database", "x", "--database", "y", "--read-only", "--expires", "12h")
    assert named["p"] == {"ro": {"ns": ["x", "y"]}}
    assert abs(named["exp"] - now - 43_200) < 60
    _, pushes = minted(key, "--push")
    assert pushes["p"] == {"rw": {"ns": ["default"]}, "push": {"ns": ["default"]}}
    text, pushes = minted(key, "--push", "--database", "x")
    assert pushes["p"] == {"rw": {"ns": ["x"]}, "push": {"ns": ["x"]}}
    allowed = Signed(keys_of(key.with_name(key.name + ".pub").read_text())).of_token(text, "x")
    assert (allowed.write, allowed.push) == (True, True)


@pytest.mark.parametrize("wrong", ["", "0d", "-1d", "30", "1.5h", "30 days", "9999999d"])
def test_spans_that_are_none(key: Path, wrong: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nearlite", "token", "mint", "--key", key, "--expires", wrong],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ) if wrong == "0d" else run("mint", "--key", key, "--expires", wrong)  # fmt: skip
    if isinstance(done, Result):
        assert "never" in str(done.exception)
    else:
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_what_signs_has_to_be_a_private_key(key: Path, tmp_path: Path) -> None:
    public = key.with_name(key.name + ".pub")
    for path in (public, tmp_path / "other"):
        if path != public:
            path.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
        done = run("mint", "--key", path)
        assert "holds no private key of Ed25519" in str(done.exception)
        assert "c2VjcmV0" not in str(done.exception) + done.output


def test_a_token_is_inspected(key: Path, tmp_path: Path) -> None:
    text, _ = minted(key, "--database", "orders", "--read-only", "--expires", "never")
    seen = run("inspect", text)
    assert seen.output == (
        "reads:     orders\nuntil:     for ever\nverdict:   not looked at: give --key\n"
    )
    for path in (key, key.with_name(key.name + ".pub")):
        seen = run("inspect", "-", "--key", path, "--json", given=f"{text}\n")
        told = {"reads": ["orders"], "writes": [], "pushes": [], "begins": None, "expires": None}
        assert json.loads(seen.output) == {**told, "good": True}
        assert seen.return_value == 0
    other = tmp_path / "other"
    run("keygen", other)
    seen = run("inspect", text, "--key", other)
    assert seen.return_value == 1
    assert "no key of this server has signed it" in seen.output
    signature = text.rpartition(".")[2]
    assert signature not in seen.output
    everything, _ = minted(key)
    assert "writes:    every database" in run("inspect", everything, "--key", key).output


def test_what_is_no_token(key: Path) -> None:
    for text in ("x", "a.b.c", "", "A" * 20_000, jwt.encode({"a": 1}, "k" * 32)):
        done = run("inspect", text, "--key", key)
        assert done.exception is not None
        assert not text or text not in str(done.exception)
