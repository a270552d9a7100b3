"""Deltas of what stock SQLite really does to pages: each commit's pages round-trip, in few bytes."""

from __future__ import annotations

import random
from statistics import median

import delta_reference as reference
import pytest
from history import History, Moment

from nearlite._native import delta

WORDS = ["order", "shipped", "late", "because", "customs", "refund", "please", "invoice", "address"]


def told(old: Moment, new: Moment, *, check: bool = True) -> tuple[int, int]:
    """Bytes of the delta between two states, and of the frames that it stands for."""
    numbers = [
        n
        for n, page in enumerate(new.pages, 1)
        if n == 1 or n > len(old.pages) or page != old.pages[n - 1]
    ]
    size, total = new.page_size, 0
    for at in range(0, len(numbers), 100):
        part = numbers[at : at + 100]
        bases = [old.pages[n - 1] if n <= len(old.pages) else None for n in part]
        images = [new.pages[n - 1] for n in part]
        data = delta.encode(size, len(new.pages), part, bases, images)
        assert data is not None
        expected = bytearray(b"".join(images))
        if part[0] == 1:
            expected[18], expected[72:92] = 2, bytes(20)
        assert delta.decode(size, len(new.pages), part, bases, data) == expected
        if check:
            assert reference.decode(size, len(new.pages), part, bases, data) == expected
        total += len(data)
    return total, len(numbers) * (size + 24)


class People:
    """A table with an index on text, and statements that change it at random."""

    def __init__(self, history: History, rows: int, *, seed: int = 1) -> None:
        self.history, self.db, self.rng = history, history.db, random.Random(seed)
        self.rows = rows
        self.db.execute("CREATE TABLE people(id INTEGER PRIMARY KEY, mail TEXT, n INT, note TEXT)")
        self.db.execute("CREATE INDEX people_mail ON people(mail)")
        self.many(rows)
        self.state = history.look()

    def row(self) -> tuple[str, int, str]:
        rng = self.rng
        mail = f"{rng.choice(WORDS)}.{rng.randrange(10**9)}@example.org"
        return mail, rng.randrange(10**6), " ".join(rng.choices(WORDS, k=rng.randrange(3, 9)))

    def many(self, count: int) -> None:
        self.db.execute("BEGIN")
        rows = [self.row() for _ in range(count)]
        self.db.executemany("INSERT INTO people(mail, n, note) VALUES (?, ?, ?)", rows)
        self.db.execute("COMMIT")

    def any_id(self) -> int:
        return self.rng.randrange(1, self.rows + 1)

    def told(self, *, check: bool = True) -> tuple[int, int]:
        """What the changes since the last call cost."""
        before, self.state = self.state, self.history.look()
        return told(before, self.state, check=check)


# ---------------------------------------------------------------- bytes that were promised


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    history = History(tmp_path_factory.mktemp("people") / "people.db")
    yield People(history, 20_000)
    history.db.close()


def test_one_row_with_one_index_is_little_more_than_its_text(people):
    sizes = []
    for _ in range(15):
        people.db.execute("INSERT INTO people(mail, n, note) VALUES (?, ?, ?)", people.row())
        sizes.append(people.told()[0])
    assert median(sizes) <= 110


def test_a_changed_integer_is_a_dozen_bytes(people):
    sizes = []
    for _ in range(15):
        changed = (people.rng.randrange(10**6), people.any_id())
        people.db.execute("UPDATE people SET n = ? WHERE id = ?", changed)
        sizes.append(people.told()[0])
    assert median(sizes) <= 12


def test_a_deleted_row_is_a_few_bytes_a_page(people):
    for _ in range(5):
        people.db.execute("DELETE FROM people WHERE id = ?", (people.any_id(),))
        assert people.told()[0] <= 40


def test_a_hundred_rows_at_random_keys_are_a_twentieth_of_their_frames(people):
    for _ in range(3):
        people.many(100)
        size, frames = people.told()
        assert size <= frames / 20


# ---------------------------------------------------------------- whatever SQLite does


def statements(people: People) -> list[str]:
    """Some statements, as one transaction."""
    rng, i, j = people.rng, people.any_id(), people.any_id()
    low, high = min(i, j), min(min(i, j) + 40, max(i, j))
    mail, n, note = people.row()
    choices = [
        f"INSERT INTO people(mail, n, note) VALUES ('{mail}', {n}, '{note}')",
        f"INSERT INTO people(mail, n, note) SELECT mail || 'x', n, note FROM people WHERE id < {n % 90}",
        f"UPDATE people SET n = n + 1 WHERE id BETWEEN {low} AND {high}",
        f"UPDATE people SET note = note || ' {note}' WHERE id BETWEEN {low} AND {high}",
        f"UPDATE people SET note = substr(note, 9) WHERE id = {i}",
        f"UPDATE people SET mail = '{mail}' WHERE id = {i}",
        f"UPDATE OR IGNORE people SET id = id + 1000000 WHERE id BETWEEN {low} AND {low + 3}",
        f"DELETE FROM people WHERE id = {i}",
        f"DELETE FROM people WHERE id BETWEEN {low} AND {high}",
        f"INSERT INTO people(note) VALUES (hex(randomblob({n % 9000})))",
        "UPDATE people SET note = NULL WHERE length(note) > 500",
        "CREATE TABLE IF NOT EXISTS more(a PRIMARY KEY, b) WITHOUT ROWID",
        """CREATE TRIGGER IF NOT EXISTS log AFTER DELETE ON people BEGIN
        UPDATE people SET n = n - 1 WHERE id = old.id - 1; END""",
        "CREATE INDEX IF NOT EXISTS people_n ON people(n, note)",
        "DROP INDEX IF EXISTS people_n",
    ]
    return rng.choices(choices, k=rng.choice((1, 1, 3, 8)))


@pytest.mark.parametrize("wipe", [0, 1])
@pytest.mark.parametrize(
    ("page_size", "auto_vacuum", "rows"),
    [
        (512, 0, 300),
        (512, 1, 300),
        (1024, 2, 600),
        (4096, 0, 3000),
        (4096, 1, 3000),
        (65536, 0, 9000),
    ],
)
def test_a_random_history_round_trips(tmp_path, page_size, auto_vacuum, rows, wipe):
    history = History(tmp_path / "x.db", page_size=page_size, auto_vacuum=auto_vacuum)
    people = People(history, rows, seed=page_size + auto_vacuum)
    history.db.execute(f"PRAGMA secure_delete = {wipe}")
    small = 0
    for _ in range(25):
        history.db.execute("BEGIN")
        for statement in statements(people):
            history.db.execute(statement)
        history.db.execute("COMMIT")
        size, frames = people.told()
        small += size < frames / 4
    history.db.execute("PRAGMA incremental_vacuum(5)").fetchall()
    people.told()
    history.db.execute("VACUUM")
    people.told()
    assert small >= 12, "deltas are worth their name"
    history.db.close()


def test_a_database_that_grows_from_nothing_round_trips(tmp_path):
    history = History(tmp_path / "x.db", page_size=512)
    before = history.step("CREATE TABLE t(a)")
    for n in range(40):
        now = history.step(*[f"INSERT INTO t VALUES ({n * 1000 + i})" for i in range(25)])
        told(before, now)
        before = now
    history.db.close()


def test_full_text_and_blobs_round_trip(tmp_path):
    history = History(tmp_path / "x.db")
    before = history.step("CREATE VIRTUAL TABLE t USING fts5(x)", "CREATE TABLE b(x)")
    rng = random.Random(3)
    for n in range(12):
        text = " ".join(rng.choices(WORDS, k=60))
        now = history.step(
            f"INSERT INTO t VALUES ('{text}')", f"INSERT INTO b VALUES (randomblob({n * 1700}))"
        )
        told(before, now)
        before = now
    told(before, history.step("DELETE FROM b WHERE rowid % 2", "DELETE FROM t WHERE rowid % 3"))
    history.db.close()
