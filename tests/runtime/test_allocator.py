"""The allocator that keeps its memory: what a process with it does, and where it is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kldm.runtime.allocator import SWITCH

FAULTS = """
import resource
import torch
from kldm.runtime.allocator import keep_memory

{before}

def work(turns):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

work(40)
print(bool(keep_memory.cache_info().currsize and keep_memory()), work(10))
"""
PAGES = 10 * 40_000_000 // 4096
"""That the second piece of work writes to."""

GIVEN_BACK = """
from pathlib import Path
import torch
from kldm.runtime.allocator import give_back, keep_memory

def in_use():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_memory()
torch.ones(100_000_000)
kept = in_use()
give_back()
print(kept - in_use())
"""

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs glibc"
)


def said(program: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", SWITCH, "GLIBC"))}
    environment = clean | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def counted(before: str, **environment: str) -> tuple[bool, int]:
    """Whether a process keeps its memory, and its page faults in work that it did before."""
    kept, faults = said(FAULTS.format(before=before), **environment)
    return kept == "True", int(faults)


@glibc
def test_memory_is_kept_where_it_is_asked_for() -> None:
    kept, faults = counted("keep_memory()")
    assert kept
    assert faults < PAGES // 10


@glibc
def test_kept_memory_can_be_given_back() -> None:
    (freed,) = map(int, said(GIVEN_BACK))
    assert freed == pytest.approx(400_000_000, rel=0.05)


@pytest.mark.parametrize(
    "environment",
    [{SWITCH: "0"}, {"MALLOC_TOP_PAD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=131072"}],
    ids=str,
)
@glibc
def test_it_is_left_alone(environment: dict[str, str]) -> None:
    kept, faults = counted("keep_memory()", **environment)
    assert not kept
    assert faults > PAGES // 2


@glibc
def test_importing_changes_nothing() -> None:
    kept, faults = counted("import kldm, kldm.training.loop, kldm.sampling.generation, kldm.cli")
    assert not kept
    assert faults > PAGES // 2


@glibc
def test_another_allocator_rules(tmp_path: Path) -> None:
    """One that is preloaded, here a malloc that passes everything on."""
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t size) { return __libc_malloc(size); }\n"
    )
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a C compiler")
    assert not counted("keep_memory()", LD_PRELOAD=str(library))[0]
