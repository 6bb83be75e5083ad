"""Freed memory is kept when asked for, unless the environment has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from ppap.compute.allocator import keep_freed_memory, return_freed_memory

took = keep_freed_memory() if {keep} else False

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        pair = torch.ones(2**20), torch.ones(2**20)
        del pair
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(int(took), faults())
return_freed_memory()
print(faults())
"""


def count(keep: bool, **environment: str) -> tuple[bool, int, int]:
    """Whether it took effect, page faults of 40 tensors of 4 MiB, and those after a return."""
    program = FAULTS.format(keep=keep)
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    took, kept, after = found.stdout.split()
    return took == "1", int(kept), int(after)


glibc = pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="malloc is not glibc's",
)


@glibc
def test_tensors_use_again_what_was_freed() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    took, kept, after = count(keep=True)
    assert took
    # Each tensor would have its pages faulted in, 4 MiB's worth.
    assert kept < 2**22 // page
    # Once returned, two tensors' pages come back, and stay.
    assert 2**22 // page < after < 4 * 2**22 // page


@glibc
@pytest.mark.parametrize(
    "setting",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_what_the_environment_sets_stays(setting: dict[str, str]) -> None:
    took, kept, _ = count(keep=True, **setting)
    assert not took
    assert kept == pytest.approx(count(keep=False, **setting)[1], rel=0.2)
