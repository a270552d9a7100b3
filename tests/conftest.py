"""What all tests share: hypothesis profiles and the choice of build.

Files named ``test_*_faults.py`` need fault points, so they are collected only in the test build
(NEARLITE_FFI=test). A plain ``pytest`` runs them all the same: tests/test_debug_build.py runs them, and
everything that touches SQLite's private functions, a second time in that build.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
settings.register_profile(
    "nightly",
    max_examples=5_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

collect_ignore_glob = [] if os.environ.get("NEARLITE_FFI") else ["test_*_faults.py"]
