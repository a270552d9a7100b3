"""Connections of one process that share replicas, dropped and opened in any order."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import serving

import nearlite
from nearlite import sharing
from nearlite.applications import PrimaryApp
from nearlite.primary import Primary

EITHER = True


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "primary.db"
    with serving(PrimaryApp(path, lambda: Primary.open(path))) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_dropped_connection_may_be_collected_while_another_replica_is_being_created(
    url: str, tmp_path: Path
) -> None:
    gc.disable()
    try:
        dropped = nearlite.connect(tmp_path / "a.db", sync_url=url)
        del dropped
        opened: list[object] = []

        def open_other() -> None:
            with nearlite.connect(
                tmp_path / "b.db", sync_url=url, progress=lambda _: gc.collect()
            ) as connection:
                opened.append(connection.execute("SELECT 1").fetchone())
            connection.close()

        thread = threading.Thread(target=open_other, daemon=True)
        thread.start()
        thread.join(10)
        assert opened == [(1,)]
    finally:
        gc.enable()


def test_a_replica_is_shared_and_closed_by_its_last_connection(url: str, tmp_path: Path) -> None:
    first = nearlite.connect(tmp_path / "a.db", sync_url=url)
    second = nearlite.connect(tmp_path / "a.db", sync_url=url)
    assert first._replica is second._replica
    first.close()
    assert second.execute("SELECT 1").fetchone() == (1,)
    second.close()
    assert not sharing._entries
    assert not (tmp_path / "a.db-wal").exists()


def test_a_failed_opening_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(nearlite.OfflineError):
        nearlite.connect(tmp_path / "a.db", sync_url="http://127.0.0.1:9")
    assert not sharing._entries
