"""The databases that both sides replicate: the same SQL, so the same pages, on either server."""

from __future__ import annotations

from peers import Server

# A row of 2,900 bytes fills a 4096-byte leaf alone: rows are pages, and "change n rows" is "change
# n pages". Half of it is hexadecimal text, which compresses two to one; a blob of noise would
# flatter whoever does not try, a blob of zeros whoever does.
CREATE = "CREATE TABLE page(id INTEGER PRIMARY KEY, n INTEGER NOT NULL, text TEXT, noise BLOB)"
ROW_BYTES = 2900
ROWS_OF_20000_PAGES = 19_960  # SQLite adds interior pages and the schema
BATCH_ROWS = 5_000  # rows in one statement: a transaction of 20 MB


def fill(server: Server, rows: int) -> None:
    """Create the table and insert `rows` rows, in transactions of BATCH_ROWS."""
    server.run(CREATE)
    for first in range(1, rows + 1, BATCH_ROWS):
        last = min(rows, first + BATCH_ROWS - 1)
        server.run(
            "INSERT INTO page(id, n, text, noise) WITH RECURSIVE c(i) AS "
            f"(SELECT {first} UNION ALL SELECT i + 1 FROM c WHERE i < {last}) "
            f"SELECT i, 0, hex(randomblob({ROW_BYTES // 4})), randomblob({ROW_BYTES // 2}) FROM c"
        )


def change_every(server: Server, nth: int) -> None:
    """Change every n-th row, that is, every n-th page of the file, in one transaction."""
    server.run(f"UPDATE page SET n = n + 1 WHERE id % {nth} = 0")


def page_count(server: Server) -> int:
    """Size of the database on the server, pages."""
    return int(str(server.run("PRAGMA page_count")[0][0][0]))
