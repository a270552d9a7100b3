"""Which table a page belongs to, and so which tables a set of changed pages has changed.

A b-tree whose content differs between two states differs on a page that can be reached from its root over
pages that do not differ: that page belongs to it in both states. So it is enough to know the owner of
every changed page in the newer one, and no change is missed.

Owners are found by climbing: of every page the one that refers to it is kept, four bytes a page. They are
read once out of SQLite's ``dbstat`` table, which visits every page; afterwards the changed pages
themselves say what they refer to now. A page that has left its table keeps its old owner until it is used
again, so that a table may be named that has not changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from struct import Struct
from typing import Any, Final

from nearlite._native.database import Database
from nearlite.btree import refers_to
from nearlite.dbapi.binding import encode

_PAGE: Final = "SELECT data FROM sqlite_dbpage('main') WHERE pgno = ?"
_SCHEMA: Final = "SELECT tbl_name, rootpage, sql FROM sqlite_schema"
_TREES: Final = "SELECT name, path, pageno FROM dbstat ORDER BY name"
_U32: Final = Struct(">I")
_RESERVED, _COOKIE, _AUTO_VACUUM = 20, 40, 52  # offsets in page 1
SCHEMA: Final = "sqlite_schema"


def rows_of(database: Database, sql: str, *values: Any) -> Iterator[Any]:
    """Rows of a statement."""
    statement = database.prepare(sql)
    try:
        yield from statement.run(encode(values))
        while statement.more:
            yield from statement.fetch()
    finally:
        statement.reset()


class Tables:
    """The owners of the pages of one database. Every call happens inside a read transaction.

    Args:
      database: a connection to it.
      page_size: bytes.
    """

    def __init__(self, database: Database, page_size: int) -> None:
        self._database = database
        self._page_size = page_size
        self._reading = database.prepare(_PAGE, persistent=True)
        self._cookie = -1
        self._schema: set[tuple[Any, ...]] = set()
        self._roots: dict[int, str] = {}
        self._referrers = array("I")
        self._build()

    def _page(self, number: int) -> bytes:
        statement = self._reading
        try:
            rows = statement.run(encode((number,)))
            while not rows and statement.more:
                rows = statement.fetch()
            return bytes(rows[0][0])
        finally:
            statement.reset()

    def _build(self) -> None:
        self._read_schema(self._page(1))
        self._referrers = array("I", [0]) * (self._pages + 1)
        paths: dict[str, int] = {}
        tree, before = None, 0
        for name, path, number in rows_of(self._database, _TREES):
            if name != tree:
                tree = name
                paths.clear()
            paths[path] = number
            above, _, last = path.rstrip("/").rpartition("/")
            if path != "/" and number <= self._pages:
                # An overflow page is "/..cell+n": of the first one the cell's page, then the one before.
                _, chain, place = last.partition("+")
                of_a_chain = chain and int(place, 16) > 0
                self._referrers[number] = before if of_a_chain else paths.get(f"{above}/", 0)
            before = number

    def _read_schema(self, first: bytes) -> set[str]:
        """Names of the tables that were made, dropped or altered since the last look."""
        ((self._pages,),) = rows_of(self._database, "PRAGMA page_count")
        self._usable = self._page_size - first[_RESERVED]
        self._auto_vacuum = _U32.unpack_from(first, _AUTO_VACUUM)[0] != 0
        cookie = _U32.unpack_from(first, _COOKIE)[0]
        if cookie == self._cookie:
            return set()
        before, self._cookie = self._schema, cookie
        self._schema = set(rows_of(self._database, _SCHEMA))
        self._roots = {root: name for name, root, _ in self._schema if root}
        self._roots[1] = SCHEMA
        return {str(entry[0]) for entry in before ^ self._schema} | {SCHEMA}

    def all_names(self) -> frozenset[str]:
        """Every table there is."""
        return frozenset(self._roots.values())

    # ------------------------------------------------------------------ changes

    def changed(self, pages: Collection[int] | None) -> frozenset[str]:
        """Names of the tables that have changed since the last call, or some more; None: any page may have."""
        altered = self._read_schema(self._page(1))
        if pages is None:
            self._build()
            return self.all_names() | altered
        short = self._pages + 1 - len(self._referrers)
        if short > 0:
            self._referrers.frombytes(bytes(self._referrers.itemsize * short))
        del self._referrers[self._pages + 1 :]
        present = [number for number in pages if 1 < number <= self._pages]
        self._refer({number for number in present if not self._holds_pointers(number)})
        owners = _Owners(self._referrers, self._roots)
        return frozenset(name for number in present if (name := owners.of(number))) | altered

    def _holds_pointers(self, number: int) -> bool:
        """Whether it is one of the pages by which auto-vacuum finds parents."""
        return self._auto_vacuum and (number - 2) % (self._usable // 5 + 1) == 0

    def _refer(self, changed: set[int]) -> None:
        """Read what the changed pages refer to now."""
        claims: dict[int, list[int]] = {}
        for number in changed | {1}:
            for child in refers_to(self._page(number), number, self._usable):
                if 1 < child <= self._pages:
                    claims.setdefault(child, []).append(number)
        alive = _Alive(claims, changed, self._referrers, self._roots)
        for child, claimants in claims.items():
            # A page that was freed still says what it said when it was in use.
            living = [number for number in claimants if len(claimants) == 1 or alive.is_so(number)]
            self._referrers[child] = (living or claimants)[0]


class _Owners:
    """Climbs to the root of a page's tree."""

    def __init__(self, referrers: array[int], roots: dict[int, str]) -> None:
        self._referrers = referrers
        self._known: dict[int, str | None] = dict(roots)

    def of(self, number: int) -> str | None:
        """The table of a page, or None when it is in no tree."""
        way = []
        known = self._known
        while number not in known:
            way.append(number)
            known[number] = None  # a ring, of pages that were freed, ends here
            number = self._referrers[number]
            if number == 0 or number >= len(self._referrers):
                known[number] = None
        name = known[number]
        for passed in way:
            known[passed] = name
        return name


class _Alive:
    """Whether a changed page is in a tree now, where that is in doubt."""

    def __init__(
        self,
        claims: dict[int, list[int]],
        changed: set[int],
        referrers: array[int],
        roots: dict[int, str],
    ) -> None:
        self._claims = claims
        self._changed = changed
        self._referrers = referrers
        self._roots = roots

    def is_so(self, number: int) -> bool:
        """Some way leads from a root to it, by what pages refer to now."""
        seen = {number}
        waiting = [number]
        while waiting:
            at = waiting.pop()
            if at in self._roots:
                return True
            above = self._claims.get(at)
            if above is None:
                before = self._referrers[at]
                # A changed page that referred to it and does so no more is not above it.
                above = [] if before in self._changed or before == 0 else [before]
            for each in above:
                if each not in seen:
                    seen.add(each)
                    waiting.append(each)
        return False
