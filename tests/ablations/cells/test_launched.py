"""Under torchrun, several processes make what one engine makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ablations.cells.experts import Experts
from ablations.cells.results import Row
from ablations.cells.samples import Samples
from ablations.machine.engine import run
from ablations.machine.store import Store
from ablations.sweeps import Lab, Recipe

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
from tests.ablations.cells.test_launched import targets
from ablations.cells.launched import run
from ablations.machine.store import Store
print(run(targets(), Store(sys.argv[1])).computed)
"""


def targets() -> list[Samples]:
    """Samples by two data-free experts of a transformer, which has no batch norms to differ."""
    from dataclasses import replace

    from ablations.settings.catalogue import BUDGETS, load_setting

    budget = replace(BUDGETS["smoke"], synthetic=20, steps=4)
    lab = Lab(load_setting("fashion"), budget, "smoke-custom", ("vit",))
    row = next(lab.row("two", Recipe(experts=2)))
    assert isinstance(row, Row)
    return [score.samples for score in row.figures.scores]


def test_two_processes_make_what_one_engine_makes(tmp_path: Path) -> None:
    alone, shared = Store(tmp_path / "alone"), Store(tmp_path / "shared")
    assert run(targets(), alone, 2, quiet=True).computed == 3
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "shared")],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["3", "3"]
    assert alone.find() == shared.find()
    (samples,) = targets()
    experts = samples.guidance[0].model.experts
    assert isinstance(experts, Experts)
    for key in (experts.key, samples.key):
        ours, theirs = alone.get(key).arrays, shared.get(key).arrays
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            tolerance = 1 if array.dtype == np.uint8 else 1e-4
            np.testing.assert_allclose(
                array.astype(np.float64), theirs[name].astype(np.float64), atol=tolerance
            )
