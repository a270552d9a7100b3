"""Other Pythons of this machine, with environments of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run as a user would: nothing of this process's variant or path of modules gets in."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NL_", "PYTHON", "NEARLITE"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def pythons() -> list[Path]:
    """Every CPython from 3.10 to 3.13 on this machine, this one first; one per version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {sys.version_info[:2]: Path(sys.executable)}
    for minor in range(10, 14):
        candidates = [
            *sorted(pyenv.glob(f"3.{minor}.*/bin/python3")),
            shutil.which(f"python3.{minor}"),
        ]
        for candidate in filter(None, candidates):
            probe = [str(candidate), "-c", "import venv, sys; print(sys.implementation.name)"]
            done = subprocess.run(probe, capture_output=True, text=True, timeout=60)
            if done.stdout.strip() == "cpython":
                found.setdefault((3, minor), Path(candidate))
    return list(found.values())


def environment(python: Path, folder: Path) -> Path:
    run(python, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    return folder / "bin" / "python"


def pip(target: Path, *arguments: object, **variables: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", target]
    run(*command, "install", "--quiet", *arguments, cwd=target.parent.parent, **variables)


def has_suite(python: Path) -> bool:
    """Whether an interpreter comes with CPython's own tests of sqlite3."""
    code = "import importlib.util as u; u.find_spec('test.test_sqlite3') or u.find_spec('sqlite3.test').name"
    return subprocess.run([python, "-c", code], capture_output=True, timeout=60).returncode == 0
