"""Repair of a replica of 1 GB with 100 damaged pages: time and bytes, both ways.

The peer is what a replica had to do before: download everything again.
"""

from __future__ import annotations
