"""A real browser: Debian's Chromium, driven by playwright-core of npm (tests/browser.mjs)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from test_released_clients import CACHE, HERE, installed

DRIVER = "playwright-core@1.65.1"


class BrowserError(Exception):
    """It could not do what it was told."""


class Browser:
    """Has pages by name. Each call is a command of browser.mjs, and waits for what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __getattr__(self, command: str) -> Any:
        def do(page: str = "", *values: Any, **more: Any) -> Any:
            names = {
                "open": ("url",),
                "fill": ("where", "text"),
                "press": ("where", "key"),
                "click": ("where",),
                "text": ("where",),
                "attribute": ("where", "name"),
                "cells": ("where",),
                "until": ("where", "matches"),
                "evaluate": ("code",),
                "when": ("code",),
                "screenshot": ("path",),
                "complaints": (),
                "close": (),
            }[command]
            asked = {"do": command, "page": page, **dict(zip(names, values, strict=True)), **more}
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if not line:
                raise BrowserError("it has ended; what it said is above")
            told = json.loads(line)
            if "error" in told:
                raise BrowserError(told["error"])
            return told["answer"]

        return do


@contextmanager
def browser() -> Iterator[Browser]:
    """Open until the block ends."""
    program = shutil.which("chromium")
    assert program, "there is no Chromium: sh .ci/packages test"
    folder = installed(
        CACHE / "browser",
        DRIVER,
        *("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", DRIVER),
    )
    script = folder / "browser.mjs"
    script.write_text((Path(HERE) / "browser.mjs").read_text())
    with subprocess.Popen(
        ["node", str(script), program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    ) as process:
        try:
            yield Browser(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
