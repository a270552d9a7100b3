"""`python -m nearlite` is the `nearlite` command."""

from __future__ import annotations

from nearlite.cli import main

main()
