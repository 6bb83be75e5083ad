"""Ray computes what this machine's own workers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.cells.synthesis import Synthesis
from ablations.errors import UserError
from ablations.machine.engine import run
from ablations.machine.pools import RayPool
from ablations.machine.store import Store
from ablations.sweeps import SWEEPS, Lab
from tests.ablations.machine.test_engine import tree
from tests.ablations.toy import Failing, Number, Sum

pytestmark = pytest.mark.filterwarnings("ignore")  # ray's own


def contents(store: Store) -> dict[str, Any]:
    found = {}
    for key in store.find():
        artifact = store.get(key)
        meta = {name: value for name, value in artifact.meta.items() if name != "provenance"}
        found[key] = meta, {name: array.tolist() for name, array in artifact.arrays.items()}
    return found


def test_ray_and_local_artifacts_agree_and_failures_are_told(tmp_path: Path, lab: Lab) -> None:
    """A toy tree with a cell that runs alone and one that fails, and real cells of a sweep."""
    shard = lab.synthetic().shards[0]
    assert isinstance(shard, Synthesis)
    failing = Failing("raise")
    targets = [tree(), shard, Sum((failing, Number(1)))]
    local, cluster = Store(tmp_path / "local"), Store(tmp_path / "ray")
    ours = run(targets, local, 2, quiet=True)
    theirs = run(targets, cluster, quiet=True, pool=RayPool(cluster, workers=2))
    assert contents(local) == contents(cluster)
    assert np.ptp(local.get(shard.key).arrays["images"]) > 100
    for outcome in (ours, theirs):
        (failure,) = outcome.failures
        assert failure.cell == failing
        assert failure.reason == "ZeroDivisionError: by nothing"
    assert ours.computed == theirs.computed == 7


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--ray-address"):
        RayPool(Store(tmp_path), "nowhere://")


def test_sweeps_are_built_without_ray(lab: Lab) -> None:
    assert list(SWEEPS["ranges"].build(lab))
