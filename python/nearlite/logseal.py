"""The files of a log as they lie on the disk: as they are, or beside a sealed database sealed as well.

A sealed file is one record (csrc/codec.c) under its own name, so that none can be put in another's place;
a sealed journal is one for each of its writes, numbered from 0, each behind its length (u32).
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Final, Protocol

from nearlite._native.sealing import BLOCK_SIZE, SEAL_SIZE, Codec, Key
from nearlite.errors import EncryptionError
from nearlite.logformat import DamagedError

_LENGTH: Final = struct.Struct(">I")


class Seal(Protocol):
    """Between what a log means and what lies on the disk."""

    sealed: bool

    def file(self, name: str, parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """What a file of that name holds on the disk, in parts."""

    def opened(self, name: str, data: bytes) -> bytes:
        """What was written into a file of that name. Raises DamagedError."""

    def entry(self, name: str, number: int, data: bytes) -> bytes:
        """What is appended to a journal of that name as its write `number`."""

    def journal(self, name: str, data: bytes) -> bytes:
        """What was written to a journal, as far as it is whole."""

    def slot_size(self, page_size: int) -> int:
        """Bytes that a page takes in the database file."""

    def slots_begin(self) -> int:
        """Where the first one lies."""

    def page(self, number: int, slot: bytes) -> bytes:
        """The page in a slot. Raises SealBrokenError."""

    def frames(self, first: int, data: bytes) -> bytes:
        """WAL frames from number `first` on, of 24 bytes and a page each. Raises SealBrokenError."""


class Clear:
    """Files as they are."""

    sealed = False

    def file(self, _name: str, parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The parts."""
        return parts

    def opened(self, _name: str, data: bytes) -> bytes:
        """The data."""
        return data

    def entry(self, _name: str, _number: int, data: bytes) -> bytes:
        """The data."""
        return data

    def journal(self, _name: str, data: bytes) -> bytes:
        """The data."""
        return data

    def slot_size(self, page_size: int) -> int:
        """That of the page."""
        return page_size

    def slots_begin(self) -> int:
        """At once."""
        return 0

    def page(self, _number: int, slot: bytes) -> bytes:
        """The slot."""
        return slot

    def frames(self, _first: int, data: bytes) -> bytes:
        """The data."""
        return data


class Sealed:
    """Files sealed by the data keys of the database. Any thread.

    Args:
      database: an existing sealed database; its header block is read, without a lock.
      key: of it.

    Raises:
      WrongKeyError: it is not, or the file is not sealed.
    """

    sealed = True

    def __init__(self, database: Path, key: Key) -> None:
        with database.open("rb") as file:
            block = file.read(BLOCK_SIZE)
        self._codec = Codec.open(block, key)
        self._lock = threading.Lock()

    def file(self, name: str, parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """One record."""
        with self._lock:
            return (self._codec.seal_record(name, 0, b"".join(parts)),)

    def opened(self, name: str, data: bytes) -> bytes:
        """The record. Raises DamagedError."""
        return self._opened(name, 0, data)

    def _opened(self, name: str, number: int, data: bytes | memoryview) -> bytes:
        try:
            with self._lock:
                return self._codec.open_record(name, number, data)
        except EncryptionError as error:
            raise DamagedError(str(error)) from error

    def entry(self, name: str, number: int, data: bytes) -> bytes:
        """A length and a record."""
        with self._lock:
            record = self._codec.seal_record(name, number, data)
        return _LENGTH.pack(len(record)) + record

    def journal(self, name: str, data: bytes) -> bytes:
        """Records up to the first that does not open."""
        found, at, number = bytearray(), 0, 0
        while at + _LENGTH.size + SEAL_SIZE <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            if length > len(data) - at:
                break  # torn by a crash, as is what does not open
            try:
                found += self._opened(name, number, data[at : at + length])
            except DamagedError:
                break
            at += length
            number += 1
        return bytes(found)

    def slot_size(self, page_size: int) -> int:
        """A page and its seal."""
        return page_size + SEAL_SIZE

    def slots_begin(self) -> int:
        """Behind the header block."""
        return BLOCK_SIZE

    def page(self, number: int, slot: bytes) -> bytes:
        """The page that was sealed."""
        with self._lock:
            return self._codec.open_page(number, slot)

    def frames(self, first: int, data: bytes) -> bytes:
        """The frames that were sealed."""
        with self._lock:
            return self._codec.open_frames(first, data)
