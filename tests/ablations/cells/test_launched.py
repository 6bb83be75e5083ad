"""Under torchrun, several processes make what one engine makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ablations.cells.experts import Experts
from ablations.cells.launched import launched
from ablations.cells.results import Row
from ablations.cells.samples import Samples
from ablations.errors import UserError
from ablations.machine.engine import run
from ablations.machine.store import Store
from ablations.sweeps import Lab, Recipe
from tests.ppap.accelerated import forget_accelerators

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
from tests.ablations.cells.test_launched import targets
from ablations.cells.launched import launched, run
from ablations.machine.store import Store
outcome = run(targets(), Store(sys.argv[1]))
sys.stdout.write(f"{outcome.computed} by {launched().num_processes}\\n")  # whole, at once
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
    stores = alone, shared = Store(tmp_path / "alone"), Store(tmp_path / "shared")
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
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3 by 2", "3 by 2"]
    assert alone.find() == shared.find()
    (samples,) = targets()
    experts = samples.guidance[0].model.experts
    assert isinstance(experts, Experts)
    # By what they predict: a transformer's key biases move predictions by rounding alone, and so
    # does rounding move them.
    banks = [experts.bank(lambda cell, store=store: store.get(cell.key)) for store in stores]
    x_t, t = torch.rand(8, 1, 32, 32) * 2 - 1, torch.arange(0, 1000, 125)
    with torch.no_grad():
        torch.testing.assert_close(*(bank(x_t, t) for bank in banks), atol=1e-4, rtol=1e-4)
    ours, theirs = (store.get(samples.key).arrays for store in stores)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array.astype(np.int64), theirs[name].astype(np.int64), atol=1)


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_accelerators()
    assert launched().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but accelerate sees 1"):
        launched()
