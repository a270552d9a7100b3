"""DB-API 2.0 on a local SQLite file, shaped like the standard library's ``sqlite3``."""
