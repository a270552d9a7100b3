"""A thousand transactions a second for a while, and three readers on a live replica (see steady.py).

Ten seconds in the default run; minutes in `make soak`. How late the readers are is measured by `make bench`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from soaking import Soak
from steady import steady

RATE = 1000
SECONDS = 10.0
MIB = 1 << 20


@pytest.mark.soak
def test_a_thousand_transactions_a_second_reach_the_readers_of_a_live_replica(
    tmp_path: Path, soak: Soak
) -> None:
    seconds = soak.seconds(SECONDS)
    found = steady(tmp_path, rate=RATE, seconds=seconds)  # raises for what a reader must not see
    assert found.commits == int(RATE * seconds) + 1
    # Those that are due at once are committed together.
    assert found.transactions > found.commits / 10
    assert found.reads > 100
    # Not a matter of speed: one that cannot keep up falls behind further and further.
    assert found.lag_p99 < 2.0
    # 16 MiB make the primary roll, 4 MB make the replica checkpoint; several times that went through both.
    assert found.primary_wal < 40 * MIB
    assert found.replica_wal < 40 * MIB
    longest = round(found.lag_longest * 1000)
    soak.count(commits=found.commits, reads=found.reads, ms_of_lag_at_most=longest)
