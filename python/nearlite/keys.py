"""Encryption keys as users give them: bytes, text, files, the environment, or whatever a KMS answers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from nearlite._native.sealing import KEY_SIZE, Key, random_key
from nearlite.errors import WrongKeyError

EncryptionKey: TypeAlias = (
    bytes | bytearray | memoryview | str | os.PathLike[str] | Key | Callable[[], bytes | str]
)

_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}\Z")
_LINE: Final = re.compile(rb"[ -~]{30}[ -~\r]\n\Z")
"""32 bytes that somebody typed: of random ones not one in 10^16 is a line."""
_LARGEST_FILE: Final = 4096


def key_of(given: EncryptionKey) -> Key:
    """A key that files can be sealed with.

    Args:
      given: 32 bytes; ``"hex:"`` and 64 digits; ``"file:"`` and a path, or a path object: what a file
        holds; ``"env:"`` and the name of an environment variable; any other text: a passphrase; or a
        callable that answers bytes or text, as a key management service does. A file and a variable hold
        a text of these forms, or a file 32 bytes; a line's end behind it is not part of it.

    Raises:
      WrongKeyError: it is no key. What was given is not part of the message.
    """
    if isinstance(given, Key):
        return given
    if isinstance(given, os.PathLike):
        return _of_file(os.fspath(given))
    if callable(given):
        answered = given()
        if not isinstance(answered, (bytes, bytearray, memoryview, str)):
            kind = type(answered).__name__
            raise WrongKeyError(f"the callable that is to give the key answered a {kind}")
        return key_of(answered)
    if isinstance(given, str):
        return _of_text(given)
    if isinstance(given, (bytes, bytearray, memoryview)):
        view = memoryview(given)
        if not view.c_contiguous:
            raise WrongKeyError("a memoryview that is to be a key lies in one piece")
        return Key.of_bytes(view.cast("B"))  # its items may have more than a byte each
    raise WrongKeyError(
        f"an encryption key is bytes, text, a path or a callable, not a {type(given).__name__}"
    )


def _of_text(text: str) -> Key:
    kind, colon, rest = text.partition(":")
    if colon and kind == "hex":
        if not _HEX.match(rest):
            raise WrongKeyError('"hex:" is to be followed by 64 hexadecimal digits')
        return Key.of_bytes(bytes.fromhex(rest))
    if colon and kind == "file":
        return _of_file(rest)
    if colon and kind == "env":
        value = os.environ.get(rest)
        if not value:
            raise WrongKeyError(
                f"the environment variable {rest}, which is to hold the key, is not set"
            )
        return _of_content(value)
    return Key.of_phrase(text.encode("utf-8", "surrogatepass"))


def _of_content(text: str) -> Key:
    """What a file or a variable holds: it names no further one."""
    text = text.removesuffix("\n").removesuffix("\r")
    if text.startswith(("file:", "env:")):
        raise WrongKeyError("a key that was looked up names another place to look at")
    return _of_text(text)


def _of_file(path: str) -> Key:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        why = getattr(error, "strerror", None) or error
        raise WrongKeyError(f"the key file {path} cannot be read: {why}") from error
    if len(content) == KEY_SIZE and not _LINE.match(content):
        return Key.of_bytes(content)
    if len(content) > _LARGEST_FILE:
        raise WrongKeyError(f"the key file {path} is longer than any key")
    try:
        return _of_content(content.decode())
    except UnicodeDecodeError:
        raise WrongKeyError(f"the key file {path} holds neither 32 bytes nor text") from None


def write_new(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a key to a file that is not there yet, and to the disk. Raises FileExistsError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def new_key() -> str:
    """A new random key, as text: ``"hex:"`` and 64 digits."""
    return f"hex:{random_key().hex()}"
