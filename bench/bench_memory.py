"""Peak memory of replicating 1 GB: of the process that serves it and of the one that receives it.

Bad would be: memory that grows with the database. Both sides stream; the bar is absolute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pairs import Pairs, Sample
from peers import remove_database
from systems import LIBSQL, OURS, System
from workload import fill

Open = Iterator[Callable[[], Sample]]
ROWS_OF_1_GB = 262_000  # one 4096-byte page each: 1.07e9 bytes

# A process of its own, so that its peak is the replica's and not that of the benchmark.
_REPLICA = """
import sys
sys.path.insert(0, {bench!r})
from peers import peak_memory
from systems import LIBSQL, OURS
system = next(s for s in (OURS, LIBSQL) if s.name == sys.argv[1])
with system.replica(sys.argv[3], sys.argv[2]) as replica:
    replica.sync()
    newest = replica.execute("SELECT max(id) FROM page").fetchone()
print(newest[0], peak_memory())
"""


@contextmanager
def bootstrap_of_1_gb(system: System, folder: Path) -> Open:
    """Peak resident sets of both processes, bytes."""
    path = folder / "replica.db"
    with system.serve(folder) as server:
        fill(server, ROWS_OF_1_GB)

        def sample() -> Sample:
            remove_database(path)
            code = _REPLICA.format(bench=str(Path(__file__).parent))
            answer = subprocess.run(
                [sys.executable, "-c", code, system.name, server.url, str(path)],
                check=True,
                capture_output=True,
                text=True,
                timeout=900,
            )
            newest, peak = answer.stdout.split()
            assert int(newest) == ROWS_OF_1_GB
            return {"memory_replica": float(peak), "memory_primary": float(server.peak_memory())}

        yield sample
        remove_database(path)


def bench_memory_of_bootstrapping_1_gb(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        *("memory_replica", "memory_primary"),
        ours=partial(bootstrap_of_1_gb, OURS, tmp_path / "nearlite"),
        peer=partial(bootstrap_of_1_gb, LIBSQL, tmp_path / "libsql"),
        rounds=1,
        warmup=0,
    )
