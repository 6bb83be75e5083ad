"""A trajectory is the same on any CPU: its tolerance is for the recording, not for the reader."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cpus import CPUS
from tests.golden.check import TRAJECTORY_TOLERANCE, load, trajectories

ROOT = Path(__file__).parents[2]
# The longest: rounding has most steps to grow.
FILE = Path(__file__).parent / "diffusion_linear_250_learned.npz"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# The CPUs may differ among each other by this share of what the recording is allowed.
SHARE = 0.1

Trajectories = dict[str, np.ndarray]


def compute() -> Trajectories:
    """Both trajectories of the file in both dtypes, and the instruction set they ran on."""
    found: Trajectories = {"capability": np.array(torch.backends.cpu.get_cpu_capability())}
    for name, dtype in DTYPES.items():
        for figure, value in trajectories(load(FILE), dtype).items():
            found[f"{figure} {name}"] = value
    return found


@pytest.fixture(scope="module")
def by_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trajectories]:
    """What this CPU and those it plays compute; each in a process, for torch looks but once."""
    folder = tmp_path_factory.mktemp("cpus")
    code = (
        f"import sys, numpy; from {__name__} import compute; numpy.savez(sys.argv[1], **compute())"
    )
    running = []
    for cpu, variables in CPUS.items():
        environment = os.environ | variables | {"OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
        command = [sys.executable, "-c", code, str(folder / f"{cpu}.npz")]
        running.append(subprocess.Popen(command, env=environment))
    found = {"this": compute()}
    for cpu, process in zip(CPUS, running, strict=True):
        assert process.wait() == 0
        with np.load(folder / f"{cpu}.npz") as archive:
            found[cpu] = dict(archive)
    return found


def test_the_cpus_are_not_one_and_the_same(by_cpu: dict[str, Trajectories]) -> None:
    assert by_cpu["avx2"]["capability"] == "AVX2"
    assert by_cpu["sse4.1"]["capability"] == "DEFAULT"


@pytest.mark.parametrize("figure", ["ddim_loop", "ddpm_loop"])
@pytest.mark.parametrize(("dtype", "share"), [("float32", SHARE), ("float64", SHARE / 1e5)])
def test_no_instruction_set_decides_whether_a_trajectory_is_within_its_tolerance(
    by_cpu: dict[str, Trajectories], figure: str, dtype: str, share: float
) -> None:
    found = {cpu: figures[f"{figure} {dtype}"] for cpu, figures in by_cpu.items()}
    recorded = load(FILE).arrays[figure]
    scale = np.abs(recorded).max()
    for one, other in combinations(found, 2):
        apart = np.abs(found[one] - found[other]).max() / scale
        assert apart <= share * TRAJECTORY_TOLERANCE, f"{one} and {other} differ by {apart:.1e}"
    for cpu, value in found.items():
        error = np.abs(value - recorded).max() / scale
        assert error <= (1 - SHARE) * TRAJECTORY_TOLERANCE, f"{cpu} is {error:.1e} off"
