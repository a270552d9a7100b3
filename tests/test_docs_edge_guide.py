"""docs/edge-guide.md, typed into one terminal from its first command to the last one before the deployment."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_background import eventually
from test_released_clients import npm

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "edge-guide.md").read_text()
BLOCK = re.compile(r"^```(console|js)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r"(127\.0\.0\.1:|port )(\d+)")
LISTENS = re.compile(r"^(?:serving .*|edge) at http://127\.0\.0\.1:(\d+)", re.MULTILINE)
DEADLINE = 60.0


class Terminal:
    """What a shell would do with the commands of the page; the ports of the page are free ones here."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._settings: list[str] = []  # `export` and `unset`, which hold for every later command
        self._jobs: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, str] = {}  # of the page -> here
        clean = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("NEARLITE_", "TURSO_", "PROXY_AUTH", "FLY_")) and name != "PORT"
        }
        # `nearlite` is this Python's, whatever else is installed.
        programs = folder / "programs"
        programs.mkdir()
        (programs / "nearlite").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nearlite "$@"\n'
        )
        (programs / "nearlite").chmod(0o755)
        self._environment = {**clean, "PATH": f"{programs}:{clean['PATH']}"}

    def here(self, text: str, unknown: str | None = None) -> str:
        """A text of the page with the ports that are in use instead of its own."""
        return ADDRESS.sub(
            lambda found: found[1] + self._ports.get(found[2], unknown or found[2]), text
        )

    def type(self, command: str, expected: str) -> None:
        if command.startswith(("export ", "unset ")):
            self._settings.append(self.here(command))
        elif command.startswith("kill %"):
            job = self._jobs[int(command.removeprefix("kill %")) - 1]
            job.terminate()
            assert job.wait(DEADLINE) == 0
        elif command.startswith("npm install "):
            (self._folder / "node_modules").symlink_to(npm() / "node_modules")
        elif command.endswith(" &"):
            self._start(command.removesuffix(" &"), expected)
        else:
            self._run(command, expected)

    def _script(self, command: str) -> list[str]:
        return ["bash", "-c", "\n".join([*self._settings, command])]

    def _start(self, command: str, expected: str) -> None:
        (port,) = re.findall(r"--listen 127\.0\.0\.1:(\d+)", command)
        log = self._folder / f"job{len(self._jobs)}.log"
        with log.open("wb") as output:
            job = subprocess.Popen(
                self._script("exec env " + self.here(command, unknown="0")),
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._jobs.append(job)
        self._stack.callback(self._end, job)

        def listens() -> re.Match[str] | None:
            said = log.read_text()
            assert job.poll() is None, said
            return LISTENS.search(said)

        eventually(listens)
        self._ports[port] = listens()[1]
        assert self.here(expected) in log.read_text()

    @staticmethod
    def _end(job: subprocess.Popen[bytes]) -> None:
        job.terminate()
        job.wait(DEADLINE)

    def _run(self, command: str, expected: str) -> None:
        """Once if it changes anything. What only looks is looked at until it is so: an edge syncs now and then."""
        pattern = ".*?".join(map(re.escape, self.here(expected).split("...")))
        looks = not re.search("CREATE|INSERT|UPDATE", command)
        end = time.monotonic() + DEADLINE
        while True:
            done = subprocess.run(
                self._script(self.here(command)),
                cwd=self._folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
            )
            output = (
                done.stdout if done.stdout.endswith("\n") or not done.stdout else done.stdout + "\n"
            )
            if re.fullmatch(pattern, output, re.DOTALL):
                return
            assert looks, (command, done.stdout, done.stderr)
            assert time.monotonic() < end, (command, done.stdout, done.stderr)


@pytest.mark.xdist_group("released-clients")
def test_the_guide_from_start_to_finish(tmp_path):
    before, _, deploying = PAGE.partition("## 6. Deploy")
    assert "$ " not in "".join(text for kind, text in BLOCK.findall(deploying) if kind == "console")
    typed = 0
    with ExitStack() as stack:
        terminal = Terminal(tmp_path, stack)
        for kind, text in BLOCK.findall(before):
            if kind == "js":
                name = re.match(r"// (\S+)\n", text)[1]
                (tmp_path / name).write_text(text)
                continue
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, expected = part.partition("\n")
                terminal.type(command, expected)
                typed += 1
    assert typed > 20
