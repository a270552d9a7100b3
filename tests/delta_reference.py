"""A slow decoder of page deltas, written from SQLite's btree.c and the format alone: the oracle.

It names things as btree.c does (pageFindSlot, freeSpace, ...), shares nothing with csrc/delta.c, and
leaves every bound to Python: an index beyond the end of a page, or a number that does not fit, refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

BLANK, FRESH, CELLS, WIPE, REBUILD, COMMITS, OTHER, LAID = 1, 2, 4, 8, 16, 32, 64, 128
INSERT, DELETE, MOVE = range(3)
HISTORY = 16384


class RefusedError(Exception):
    """Not a delta of these pages."""


def need(condition: object) -> None:
    """Refuse unless the condition holds."""
    if not condition:
        raise RefusedError


def u16(data: bytes | bytearray, at: int) -> int:
    """Two bytes, big-endian."""
    need(0 <= at <= len(data) - 2)
    return data[at] << 8 | data[at + 1]


def put(data: bytearray, at: int, value: int) -> None:
    """The other way; the upper bits are dropped, as C does."""
    need(0 <= at <= len(data) - 2)
    data[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")


class Reader:
    """Bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = bytes(data), 0

    def take(self, size: int) -> bytes:
        need(size <= len(self.data) - self.at)
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self) -> int:
        value, shift = 0, 0
        while True:
            need(shift < 35)
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                need(value < 1 << 32)
                return value

    @property
    def left(self) -> int:
        return len(self.data) - self.at


def sqlite_varint(data: bytes, at: int) -> tuple[int, int]:
    """Value and length of one of SQLite's."""
    value = 0
    for i in range(9):
        need(at + i < len(data))
        byte = data[at + i]
        if i == 8:
            return value << 8 | byte, 9
        value = value << 7 | byte & 127
        if byte < 128:
            return value, i + 1
    raise AssertionError


def cell_size(kind: int, usable: int, data: bytes, at: int) -> int:
    """Bytes of the cell at an offset, as far as it lies on the page."""
    start, payload = at, 0
    if kind in (2, 5):
        at += 4
    value, n = sqlite_varint(data, at)
    at += n
    if kind != 5:
        payload = value
    if kind == 13:
        at += sqlite_varint(data, at)[1]
    low = (usable - 12) * 32 // 255 - 23
    high = usable - 35 if kind == 13 else (usable - 12) * 64 // 255 - 23
    local = payload
    if payload > high:
        local = low + (payload - low) % (usable - 4)
        local = (local if local <= high else low) + 4
    size = max(4, at + local - start)
    need(start + size <= len(data))
    return size


class BtreePage:
    """One page under way, edited by SQLite's functions."""

    def __init__(self, data: bytearray, head: int) -> None:
        self.data, self.head, self.usable = data, head, len(data)
        self.kind = data[head]
        need(self.kind in (2, 5, 10, 13))
        self.array = head + (12 if self.kind in (2, 5) else 8)
        self.count = u16(data, head + 3)
        need(self.array + 2 * self.count <= self.usable)

    @property
    def content(self) -> int:
        return u16(self.data, self.head + 5) or 65536

    def pointer(self, index: int) -> int:
        need(index < self.count)
        return u16(self.data, self.array + 2 * index)

    def cell(self, index: int) -> bytes:
        at = self.pointer(index)
        return bytes(self.data[at : at + cell_size(self.kind, self.usable, self.data, at)])

    def set_count(self, count: int) -> None:
        self.count = count
        put(self.data, self.head + 3, count)

    @staticmethod
    def zero_page(data: bytearray, head: int, kind: int) -> BtreePage:
        need(kind in (2, 5, 10, 13))
        data[head : head + 8] = bytes([kind, 0, 0, 0, 0, 0, 0, 0])
        put(data, head + 5, len(data))
        return BtreePage(data, head)

    def page_find_slot(self, size: int) -> int:
        link = self.head + 1
        at = u16(self.data, link)
        while at and at <= self.usable - size:
            have = u16(self.data, at + 2)
            if size <= have < size + 4:
                if self.data[self.head + 7] > 57:
                    return 0
                put(self.data, link, u16(self.data, at))
                self.data[self.head + 7] = (self.data[self.head + 7] + have - size) & 255
                return at
            if have >= size:
                if at + have > self.usable:
                    return 0
                put(self.data, at + 2, have - size)
                return at + have - size
            link, at = at, u16(self.data, at)
            if at <= link:
                return 0
        return 0

    def free_bytes(self) -> int:
        total = self.data[self.head + 7] + self.content
        at = u16(self.data, self.head + 1)
        while at:
            need(at <= self.usable - 4)
            total += u16(self.data, at + 2)
            following = u16(self.data, at)
            need(following == 0 or following > at)
            at = following
        return total - (self.array + 2 * self.count)

    def move_up(self) -> int | None:
        """The short way of defragmentPage; answers where the content begins, None: not possible."""
        first, top = u16(self.data, self.head + 1), self.content
        if first == 0 or first > self.usable - 4 or top >= first:
            return None
        second, size, more = u16(self.data, first), u16(self.data, first + 2), 0
        if second > self.usable - 4 or (second and u16(self.data, second)):
            return None
        if second:
            more = u16(self.data, second + 2)
            if first + size > second or second + more > self.usable:
                return None
            between = self.data[first + size : second]
            self.data[first + size + more : second + more] = between
            size += more
        elif first + size > self.usable:
            return None
        self.data[top + size : first + size] = self.data[top:first]
        for index in range(self.count):
            at = self.pointer(index)
            shift = size if at < first else more if at < second else 0
            put(self.data, self.array + 2 * index, at + shift)
        return top + size

    def lay_down(self, cells: Sequence[bytes]) -> int:
        """Cells in the order of the keys from the end on; answers where the content begins."""
        top = self.usable
        for index, cell in enumerate(cells):
            top -= len(cell)
            need(top >= self.array + 2 * len(cells))
            self.data[top : top + len(cell)] = cell
            put(self.data, self.array + 2 * index, top)
        self.data[self.head + 7] = 0
        return top

    def defragment_page(self, fragments: int) -> None:
        top = self.move_up() if self.data[self.head + 7] <= fragments else None
        if top is None:
            top = self.lay_down([self.cell(i) for i in range(self.count)])
        end = self.array + 2 * self.count
        need(end <= top <= self.usable)
        put(self.data, self.head + 5, top)
        put(self.data, self.head + 1, 0)
        self.data[end:top] = bytes(top - end)

    def allocate_space(self, size: int) -> int:
        gap, top = self.array + 2 * self.count, self.content
        need(gap <= top <= self.usable and size <= self.usable)
        if u16(self.data, self.head + 1) and gap + 2 <= top:
            slot = self.page_find_slot(size)
            if slot:
                need(slot > gap)
                return slot
        if gap + 2 + size > top:
            free = self.free_bytes()
            need(free >= size + 2)
            self.defragment_page(min(4, free - 2 - size))
            top = self.content
            need(gap + 2 + size <= top)
        put(self.data, self.head + 5, top - size)
        return top - size

    def put_cell(self, index: int, cell: bytes, at: int) -> None:
        need(index <= self.count and at + len(cell) <= self.usable)
        need(self.array + 2 * self.count + 2 <= self.usable)
        self.data[at : at + len(cell)] = cell
        start, end = self.array + 2 * index, self.array + 2 * self.count
        self.data[start + 2 : end + 2] = self.data[start:end]
        put(self.data, start, at)
        self.set_count(self.count + 1)

    def insert_cell(self, index: int, cell: bytes) -> None:
        need(index <= self.count)
        at = self.allocate_space(len(cell))
        need(self.array + 2 * self.count + 2 <= at)
        self.put_cell(index, cell, at)

    def free_space(self, start: int, size: int, wipe: bool) -> None:
        head, end, fragments, top = self.head, start + size, 0, self.content
        link = head + 1
        while (following := u16(self.data, link)) and following < start:
            need(following > link)
            link = following
        need(following <= self.usable - 4)
        if following and end + 3 >= following:
            need(end <= following)
            fragments = following - end
            end = following + u16(self.data, following + 2)
            need(end <= self.usable)
            following = u16(self.data, following)
        if link > head + 1:
            before = link + u16(self.data, link + 2)
            need(before <= start)
            if before + 3 >= start:
                fragments += start - before
                start = link
        need(fragments <= self.data[head + 7])
        self.data[head + 7] -= fragments
        if wipe:
            self.data[start:end] = bytes(end - start)
        if start <= top:
            need(start == top and link == head + 1)
            put(self.data, head + 1, following)
            put(self.data, head + 5, end)
            return
        if start != link:
            put(self.data, link, start)
        put(self.data, start, following)
        put(self.data, start + 2, end - start)

    def free_array(self, index: int, count: int, wide: bool, wipe: bool) -> None:
        need(count and index + count <= self.count)
        runs: list[list[int]] = []

        def free_runs() -> None:
            for start, end in runs:
                self.free_space(start, end - start, wipe)
            runs.clear()

        for i in range(index, index + count):
            at = self.pointer(i)
            end = at + len(self.cell(i))
            for run in runs:
                if run[0] == end:
                    run[0] = at
                    break
                if run[1] == at:
                    run[1] = end
                    break
            else:
                if len(runs) == 10:
                    free_runs()
                runs.append([at, end])
        free_runs()
        moved = 2 * (self.count - index - (0 if wide else count))
        start = self.array + 2 * index
        need(start + 2 * count + moved <= self.usable)
        self.data[start : start + moved] = self.data[start + 2 * count : start + 2 * count + moved]
        self.set_count(self.count - count)
        if self.count == 0:
            self.zero_page(self.data, self.head, self.kind)

    def lay(self, cells: Sequence[bytes], pointers: bytes) -> None:
        need(self.array + 2 * len(cells) <= self.usable)
        for i, cell in enumerate(cells):
            at = u16(pointers, 2 * i)
            need(at + len(cell) <= self.usable)
            self.data[at : at + len(cell)] = cell
        self.data[self.array : self.array + 2 * len(cells)] = pointers
        self.set_count(len(cells))

    def rebuild_page(self, cells: Sequence[bytes]) -> None:
        need(self.array + 2 * len(cells) <= self.usable)
        top = self.lay_down(cells)
        put(self.data, self.head + 1, 0)
        self.set_count(len(cells))
        put(self.data, self.head + 5, top)


class Decoder:
    """One set."""

    def __init__(
        self, page_size: int, pages: int, numbers: Sequence[int], bases: Sequence[bytes | None]
    ) -> None:
        self.size, self.pages, self.numbers = page_size, pages, numbers
        self.bases = list(bases)
        if numbers[0] == 1 and (first := self.bases[0]):
            self.bases[0] = first[:18] + b"\2" + first[19:72] + bytes(20) + first[92:]
        self.history, self.dictionary = b"", b""
        self.most = page_size // 6 + 1

    def head(self, index: int) -> int:
        return 100 if self.numbers[index] == 1 else 0

    def decode(self, delta: bytes) -> bytes:
        reader, out = Reader(delta), []
        for index in range(len(self.numbers)):
            base = self.bases[index]
            self.dictionary = self.dictionary if base is None else base
            size = reader.varint()
            need(size // 2 <= 2 * self.size)
            record = self.unpack(reader, size // 2) if size & 1 else reader.take(size // 2)
            self.history = (self.history + record)[-HISTORY:]
            out.append(self.run(index, record))
        need(reader.left == 0)
        return b"".join(out)

    def unpack(self, reader: Reader, size: int) -> bytes:
        before = self.history + self.dictionary
        record = bytearray()
        while True:
            token = reader.take(1)[0]
            literals = token >> 4
            record += reader.take(literals + (reader.varint() if literals == 15 else 0))
            need(len(record) <= size)
            if len(record) == size:
                need(token & 15 == 0)
                return bytes(record)
            need(token & 15)
            copied = (token & 15) + 3 + (reader.varint() if token & 15 == 15 else 0)
            distance = reader.varint()
            need(distance and copied <= size - len(record))
            start = len(record) - distance
            if start >= 0:
                for i in range(copied):
                    record.append(record[start + i])
            else:
                need(-start <= len(before))
                at = len(before) + start
                part = len(self.history) if at < len(self.history) else len(before)
                need(at + copied <= part)
                record += before[at : at + copied]
            if len(record) == size:
                return bytes(record)

    def run(self, index: int, record: bytes) -> bytes:
        reader, head = Reader(record), self.head(index)
        bits = reader.take(1)[0] if record else 0
        need(bits & CELLS or not bits & (WIPE | REBUILD | LAID))
        need(not (bits & REBUILD and bits & LAID))
        base = self.bases[index]
        if bits & OTHER:
            other = reader.varint()
            need(other < len(self.bases))
            base = self.bases[other]
        page = bytearray(self.size if base is None or bits & BLANK else base)
        if bits & FRESH:
            BtreePage.zero_page(page, head, reader.take(1)[0])
        if bits & COMMITS:
            need(head)
            counter = (int.from_bytes(page[24:28], "big") + reader.varint()) % 2**32
            page[24:28] = page[92:96] = counter.to_bytes(4, "big")
            page[28:32] = self.pages.to_bytes(4, "big")
        if bits & CELLS:
            self.edit(BtreePage(page, head), bits, reader)
        at = 0
        while reader.left:
            at += reader.varint()
            replaced = reader.take(reader.varint())
            need(at + len(replaced) <= self.size)
            page[at : at + len(replaced)] = replaced
            at += len(replaced)
        return bytes(page)

    def edit(self, page: BtreePage, bits: int, reader: Reader) -> None:
        cells: list[bytes] | None = None
        budget = 2 * self.most
        if bits & (REBUILD | LAID):
            need(page.count <= self.most)
            cells = [page.cell(i) for i in range(page.count)]
        what = 0
        while not what & 4:
            what = reader.varint()
            at, kind = what >> 3, what & 3
            if kind == DELETE:
                how = reader.varint()
                if cells is None:
                    page.free_array(at, how // 2 + 1, bool(how & 1), bool(bits & WIPE))
                else:
                    need(at < len(cells) and at + how // 2 + 1 <= len(cells))
                    del cells[at : at + how // 2 + 1]
                continue
            need(kind != 3)
            new = self.moved(reader) if kind == MOVE else [self.literal(page, reader)]
            for k, cell in enumerate(new):
                need(budget)
                budget -= 1
                if cells is None:
                    page.insert_cell(at + k, cell)
                else:
                    need(at + k <= len(cells) < self.most)
                    cells.insert(at + k, cell)
        if bits & LAID and cells is not None:
            page.lay(cells, reader.take(2 * len(cells)))
        elif cells is not None:
            page.rebuild_page(cells)

    def literal(self, page: BtreePage, reader: Reader) -> bytes:
        return reader.take(cell_size(page.kind, self.size, reader.data, reader.at))

    def moved(self, reader: Reader) -> list[bytes]:
        index, first, more = reader.varint(), reader.varint(), reader.varint()
        need(index < len(self.bases))
        base = self.bases[index]
        need(base is not None)
        assert base is not None
        source = BtreePage(bytearray(base), self.head(index))
        need(first + more < source.count)
        return [source.cell(first + i) for i in range(more + 1)]


def decode(
    page_size: int, pages: int, numbers: Sequence[int], bases: Sequence[bytes | None], delta: bytes
) -> bytes:
    """The pages, one after the other.

    Raises:
      RefusedError: malformed.
    """
    return Decoder(page_size, pages, numbers, bases).decode(delta)
