"""Subinterpreters are refused; the main interpreter goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
first = {first}
if first:
    import nearlite
def shared():
    if sys.version_info >= (3, 13):
        return interpreters.create("legacy")
    return interpreters.create(isolated=False)
kinds = {{"own": interpreters.create, "shared": shared}}
other = kinds["{kind}"]()
interpreters.run_string(other, '''
import sys
sys.path[:] = %r
for _ in range(2):
    try:
        import nearlite
    except ImportError as error:
        print(error)
''' % (sys.path,))
import nearlite
with nearlite.connect(":memory:") as connection:
    connection.create_function("f", 1, lambda a: a + 1)
    print(connection.execute("SELECT f(1)").fetchone())
interpreters.destroy(other)
print(connection.execute("SELECT f(2)").fetchone())
connection.close()
"""


@pytest.mark.parametrize("first", [True, False], ids=["after the main one", "before it"])
@pytest.mark.parametrize("kind", ["own", "shared"])
def test_a_subinterpreter_is_refused_by_name(kind: str, first: bool) -> None:
    program = PROGRAM.format(first=first, kind=kind)
    command = [sys.executable, "-W", "ignore", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr
    assert all("in a subinterpreter, only in the main one" in line for line in lines[:2]), lines
    assert lines[2:] == ["(2,)", "(3,)"]
