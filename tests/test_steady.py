"""A thousand transactions a second for a while, and three readers on a live replica (see steady.py).

Ten seconds here; NL_SOAK makes them a minute. How late the readers are is measured by `make bench`.
"""

from __future__ import annotations

import os
from pathlib import Path

from steady import steady

RATE = 1000
SECONDS = 60.0 if os.environ.get("NL_SOAK") else 10.0
MIB = 1 << 20


def test_a_thousand_transactions_a_second_reach_the_readers_of_a_live_replica(
    tmp_path: Path,
) -> None:
    found = steady(
        tmp_path, rate=RATE, seconds=SECONDS
    )  # it raises for whatever a reader must not see
    assert found.commits == RATE * SECONDS + 1
    assert (
        found.transactions > found.commits / 10
    )  # those that are due at once are committed together
    assert found.reads > 100
    # Not a matter of speed: one that cannot keep up falls behind further and further.
    assert found.lag_p99 < 2.0
    # 16 MiB make the primary roll, 4 MB make the replica checkpoint; several times that went through both.
    assert found.primary_wal < 40 * MIB
    assert found.replica_wal < 40 * MIB
