"""A primary that keeps too little of its history for a repair."""

from __future__ import annotations

from pathlib import Path

import primaries
import pytest

from nearlite import errors
from nearlite.repair import Repair


def test_a_repair_whose_beginning_is_forgotten_blames_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise errors.HistoryGoneError("the log does not tell", action="start over")

    with primaries.primary(tmp_path) as served:
        remote = served.remote()
        remote.execute("CREATE TABLE t(a)")
        remote.commit()
        replica = served.replica(sync_interval=None)
        monkeypatch.setattr(Repair, "_receive", gone)
        with pytest.raises(errors.SyncError, match="the primary forgets"):
            replica._replica.repair("a test")
