"""Killed at random moments, a training ends with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_training_killed_at_20_random_moments_ends_with_the_same_weights(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    command = [sys.executable, "-m", "tests.ppap.killed_trainings", str(tmp_path), "20"]
    done = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    survey = json.loads(done.stdout)
    assert survey["kills"] == 20
    assert survey["resumed"] > 0
    assert survey["trainings"] > 0
    assert survey["different"] == 0
    assert survey["left"] == 0
