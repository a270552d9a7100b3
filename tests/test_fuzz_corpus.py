"""Replays the fuzzers' corpus under AddressSanitizer and UBSan; csrc/fuzz/Makefile fuzzes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
CORE = ["fail.c", "frame.c", "pageset.c", "btree_page.c", "compact.c", "ranges.c"]
CORE += ["aead.c", "key.c", "header_block.c", "codec.c"]
CORE += sorted(p.name for p in [*CSRC.glob("delta*.c"), *CSRC.glob("simd_*.c")])
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in CSRC.glob("fuzz/fuzz_*.c"))

# One worker compiles the objects once for all targets.
pytestmark = pytest.mark.xdist_group("fuzz_corpus")


def compile_c(*arguments):
    flags = ["-std=gnu11", "-O0", "-g", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all", "-DTARGET_REPLAY", "-I", str(CSRC)]
    flags += ["-isystem", str(CSRC / "vendor")]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    done = subprocess.run(
        [*compiler, *flags, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Objects of the pure core: it links without SQLite."""
    folder = tmp_path_factory.mktemp("core")
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(compile_c, "-c", CSRC / name, "-o", folder / f"{name}.o") for name in CORE
        ]
        for job in jobs:
            job.result()
    return sorted(folder.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_violates_no_invariant(target, core, tmp_path):
    program = tmp_path / target
    compile_c(CSRC / "fuzz" / f"fuzz_{target}.c", *core, "-o", program, "-lcrypto")
    inputs = sorted((CSRC / "fuzz" / "corpus" / target).iterdir())
    done = subprocess.run([program, *inputs], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(inputs)} inputs\n"


def test_every_target_says_its_invariant_first_and_has_a_corpus():
    assert TARGETS == ["checksum", "compact", "delta", "frames", "pageset", "ranges", "seal"]
    for target in TARGETS:
        text = (CSRC / "fuzz" / f"fuzz_{target}.c").read_text()
        assert text.startswith("/*\n** Invariant: ")
        assert len(list((CSRC / "fuzz" / "corpus" / target).iterdir())) > 5


def test_the_committed_corpus_is_what_its_script_makes(tmp_path):
    script = CSRC / "fuzz" / "corpus.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=60)
    for target in TARGETS:
        made = {p.name: p.read_bytes() for p in (tmp_path / target).iterdir()}
        kept = {p.name: p.read_bytes() for p in (CSRC / "fuzz/corpus" / target).iterdir()}
        assert made == kept
