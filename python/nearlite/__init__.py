"""SQLite near you: embedded replicas of a SQLite primary."""
