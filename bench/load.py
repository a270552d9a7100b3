"""Load on an HTTP server with wrk: a rate and a p99 for a fixed number of connections.

wrk because a Python client would be the slower half of the measurement: it would take more of the
two cores than the servers do. Debian and macOS package it under that name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Requests are formatted once, before the clock starts. `done` reports in microseconds.
_SCRIPT = """
local bodies = { %s }
local paths = { %s }
local requests, next = {}, 0
init = function(args)
  for i, body in ipairs(bodies) do
    requests[i] = wrk.format("POST", paths[i], { ["Content-Type"] = "application/json" }, body)
  end
end
request = function()
  next = next %% #requests + 1
  return requests[next]
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"requests": %%d, "us": %%d, "p50": %%f, "p99": %%f, "refused": %%d, "broken": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw.

    Attributes:
      requests: answers with a 2xx status.
      per_second: requests divided by the time of the run.
      p50, p99: seconds from request to answer.
    """

    requests: int
    per_second: float
    p50: float
    p99: float


def load(
    url: str,
    bodies: Sequence[str],
    *,
    connections: int,
    seconds: int,
    paths: Sequence[str] = (),
) -> Load:
    """POST `bodies` in turn over kept-alive connections, one request at a time on each.

    `paths`: where each of them goes; none: all to that of `url`.

    Raises:
      RuntimeError: wrk is missing, or any answer was not 2xx: a rate of errors is no figure.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("wrk is missing: apt-get install wrk (or brew install wrk)")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "load.lua"
        lists = (", ".join(f"[==[{text}]==]" for text in texts) for texts in (bodies, paths))
        script.write_text(_SCRIPT % tuple(lists))
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        answer = subprocess.run(
            [*command, "-s", str(script), url],
            check=True,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
    seen = json.loads(answer.stdout.splitlines()[-1])
    if seen["refused"] or seen["broken"]:
        raise RuntimeError(f"{url}: {seen['refused']} refused, {seen['broken']} broken answers")
    rate = seen["requests"] / (seen["us"] * 1e-6)
    return Load(seen["requests"], rate, seen["p50"] * 1e-6, seen["p99"] * 1e-6)


def pipeline(sql: str, *arguments: int | str) -> str:
    """Body of a Hrana pipeline request with one autocommit statement."""
    values = [
        {"type": "integer", "value": str(value)}
        if isinstance(value, int)
        else {"type": "text", "value": value}
        for value in arguments
    ]
    execute = {"type": "execute", "stmt": {"sql": sql, "args": values}}
    return json.dumps({"requests": [execute, {"type": "close"}]})
