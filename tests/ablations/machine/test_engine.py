"""Cells, keys and the engine that runs them."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from ablations.errors import UserError
from ablations.machine.cell import describe
from ablations.machine.engine import Outcome, plan, run
from ablations.machine.leases import Leases
from ablations.machine.pools import LocalPool, gpu_in_turn
from ablations.machine.store import Store
from tests.ablations.toy import (
    Alone,
    Failing,
    Fragile,
    Number,
    Pid,
    Poisoner,
    ShownGpu,
    Slow,
    Sum,
    Thief,
)


def tree() -> Sum:
    return Sum((Sum((Number(1), Number(2))), Alone((Number(2), Number(3)))))


def test_equal_cells_have_equal_keys_and_every_field_counts() -> None:
    assert tree().key == tree().key
    assert len({Number(1).key, Number(2).key, Sum((Number(1),)).key, Alone((Number(1),)).key}) == 4


def test_a_new_version_has_a_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Sum((Number(1),)).key
    monkeypatch.setattr(Number, "VERSION", 2)
    assert Sum((Number(1),)).key != before


def test_fields_that_cannot_be_keyed_are_refused() -> None:
    with pytest.raises(TypeError, match="field"):
        describe(Number([1]), root=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"field cannot be a dict: \{'a': 1\}; give a number"):
        _ = Number({"a": 1}).key  # type: ignore[arg-type]


def test_numpys_numbers_are_keyed_as_others() -> None:
    for value in (np.int64(3), np.uint8(3)):
        assert Number(value).key == Number(3).key  # type: ignore[arg-type]
    assert describe((np.float32(0.5), np.bool_(True))) == [0.5, True]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_needed_is_computed_once(tmp_path: Path, workers: int) -> None:
    store = Store(tmp_path)
    assert len(plan([tree(), Number(2)], store).todo) == 6
    outcome = run([tree(), Number(2)], store, workers, quiet=True)
    assert outcome.computed == 6
    assert not outcome.failures
    assert store.get(tree().key).meta["value"] == 8
    assert plan([tree()], store).todo == ()
    assert run([tree()], store, quiet=True).computed == 0
    assert not list(tmp_path.rglob("*.lease"))


def test_only_what_is_lost_is_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    run([tree()], store, 1, quiet=True)
    Path(store.path(tree().key)).unlink()
    Path(store.path(Number(1).key)).write_bytes(b"damaged")
    assert [type(cell).__name__ for cell in plan([tree()], store).todo] == ["Sum"]
    assert run([tree()], store, 1, quiet=True).computed == 1
    assert run([tree(), Number(1)], store, 1, quiet=True).computed == 1
    assert Number(1).key in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ZeroDivisionError: by nothing"),
        ("memory", "MemoryError: too big"),
        ("user", "UserError: wrong; mend"),
        ("unpicklable", "RuntimeError: UnpicklableError: 3 wrongs"),
        ("die", "LostWorkerError: a worker ended abruptly while computing failing"),
    ],
)
def test_a_failure_is_told_and_the_others_finish(tmp_path: Path, how: str, reason: str) -> None:
    store = Store(tmp_path)
    failing = Failing(how)
    lost = Sum((failing, Number(1)))
    outcome = run([Sum((lost,)), tree(), Sum((Number(7),))], store, 2, quiet=True)
    assert store.get(tree().key).meta["value"] == 8
    assert store.get(Sum((Number(7),)).key).meta["value"] == 7
    (failure,) = outcome.failures
    assert failure.cell == failing
    assert failure.reason == reason
    assert [cell.key for cell in failure.lost] == [lost.key, Sum((lost,)).key]
    assert outcome.lost == 2


def test_each_of_two_failures_tells_what_it_costs(tmp_path: Path) -> None:
    target = Sum((Sum((Failing("raise"), Failing("memory"))),))
    outcome = run([target], Store(tmp_path), 1, quiet=True)
    assert len(outcome.failures) == 2
    for failure in outcome.failures:
        assert target in failure.lost
    assert outcome.lost == 2


def test_a_worker_that_is_lost_once_costs_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    log = str(tmp_path / "log")
    beside = [Slow((Number(n),), 30, log) for n in range(6)]
    outcome = run([Fragile(str(tmp_path / "marker")), *beside], store, 2, quiet=True)
    assert not outcome.failures
    assert all(store.holds(cell.key) for cell in beside)


def test_a_pool_outlives_its_workers_and_the_server_that_forks_them(tmp_path: Path) -> None:
    pool = LocalPool(Store(tmp_path), 2)
    try:
        for cell in (Number(1), Number(2), Number(3)):
            pool.submit(cell)
            while not (ended := pool.wait()):
                pass
            ((done, seconds),) = ended
            assert done == cell
            assert isinstance(seconds, float)
            victims = list(pool._pool._processes)
            if cell == Number(2):
                victims.append(forkserver._forkserver._forkserver_pid)
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            time.sleep(0.5)  # the pool takes note of its loss
    finally:
        pool.close()


def test_an_input_that_is_damaged_meanwhile_is_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    poisoner = Poisoner(Number(5), store.path(Number(5).key))
    target = Sum((poisoner, Number(5)))
    outcome = run([target], store, 1, quiet=True)
    assert not outcome.failures
    assert outcome.computed == 4
    assert store.get(target.key).meta["value"] == 5
    assert "damaged" in capsys.readouterr().err


def test_a_damaged_input_of_several_is_computed_again_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    log = tmp_path / "log"
    shared = Slow((), 300, str(log))
    poisoner = Poisoner(shared, store.path(shared.key))
    targets = [Slow((poisoner, shared), time, os.devnull) for time in (0, 20, 40)]
    outcome = run(targets, store, 3, quiet=True)
    assert not outcome.failures
    assert all(store.get(cell.key).meta["value"] == 300 + cell.milliseconds for cell in targets)
    # Before the poison, and once after it.
    assert log.read_text().split().count(shared.key) == 2


def test_an_input_that_is_lost_again_and_again_is_a_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    thief = Thief(Number(5), store.path(Number(5).key))
    (failure,) = run([thief], store, 1, quiet=True).failures
    assert failure.reason.startswith(f"LostInputError: number ({Number(5).key})")


def test_a_worker_that_is_lost_while_idle_costs_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pool = LocalPool(store, 1)
    pool.submit(Pid())
    while not (ended := pool.wait()):
        pass
    assert [cell for cell, _ in ended] == [Pid()]
    os.kill(store.get(Pid().key).meta["value"], signal.SIGKILL)
    time.sleep(0.5)
    outcome = run([Number(1)], store, quiet=True, pool=pool)
    assert not outcome.failures
    assert outcome.computed == 1


def test_each_of_two_workers_has_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("PPAP_DEVICE", raising=False)
    store, folder = Store(tmp_path / "store"), tmp_path / "under way"
    folder.mkdir()
    cells = [ShownGpu(number, 2, str(folder)) for number in range(2)]
    assert not run(cells, store, 2, quiet=True).failures
    assert {store.get(cell.key).meta["value"] for cell in cells} == {"4", "7"}


def test_workers_take_turns_at_the_gpus_unless_one_is_named() -> None:
    assert [gpu_in_turn(n, {}, lambda: 3) for n in range(5)] == ["0", "1", "2", "0", "1"]
    assert gpu_in_turn(1, {"PPAP_DEVICE": "cuda"}, lambda: 2) == "1"
    for environment, count in (
        ({}, 0),
        ({}, 1),
        ({"CUDA_VISIBLE_DEVICES": "5"}, 8),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8),
        ({"PPAP_DEVICE": "cpu"}, 8),
        ({"PPAP_DEVICE": "cuda:3"}, 8),
    ):
        assert gpu_in_turn(1, environment, lambda count=count: count) == ""  # type: ignore[misc]


def test_two_runs_share_a_store_and_the_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cells = [Slow((Number(n),), 60, str(log)) for n in range(12)]
    outcomes: list[Outcome] = []

    def one() -> None:
        outcomes.append(run(cells, Store(tmp_path / "store"), 1, quiet=True))

    runs = [threading.Thread(target=one) for _ in range(2)]
    for started in runs:
        started.start()
    for started in runs:
        started.join()
    assert sum(outcome.computed for outcome in outcomes) == 24
    assert all(outcome.computed > 0 for outcome in outcomes)
    computed = log.read_text().split()
    assert sorted(computed) == sorted({cell.key for cell in cells})


def test_a_lease_ends_with_its_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ours = Leases(store)
    assert ours.take("ab12")
    assert not Leases(store).take("ab12")
    ours.release("ab12")
    theirs = Leases(store)
    theirs._me["pid"] = 2**22 + 1  # no process has it
    assert theirs.take("ab12")
    assert Leases(store).take("ab12")


def test_of_many_runs_one_gets_a_lease_be_it_new_or_stale(tmp_path: Path) -> None:
    store = Store(tmp_path)
    dead = Leases(store)
    dead._me["pid"] = 2**22 + 1  # no process has it
    keys = [f"{n:04x}" for n in range(200)]
    assert all(dead.take(key) for key in keys[::2])
    together = threading.Barrier(4)
    won: list[str] = []

    def one() -> None:
        ours = Leases(store)
        for key in keys:
            together.wait()
            won.extend([key] * ours.take(key))

    runs = [threading.Thread(target=one) for _ in range(4)]
    for started in runs:
        started.start()
    for started in runs:
        started.join()
    assert won == keys


@pytest.mark.parametrize("content", ["", "{}", "[1]", "3", '{"host": 1, "pid": null, "time": 0}'])
def test_a_lease_that_says_nothing_ends_by_its_age(content: str, tmp_path: Path) -> None:
    path = Path(Store(tmp_path).path("ab12") + ".lease")
    path.parent.mkdir()
    path.write_text(content)
    assert not Leases(Store(tmp_path)).take("ab12")
    os.utime(path, (0, 0))
    assert Leases(Store(tmp_path)).take("ab12")


def test_provenance_is_stamped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cell = Sum((Number(4),))
    run([cell], store, 1, quiet=True)
    meta = store.get(Number(4).key).meta
    assert meta["cell"] == {"kind": "Number", "version": 1, "value": 4}
    assert {"commit", "dirty", "created", "wall_seconds", "packages", "hardware"} <= set(
        meta["provenance"]
    )
    assert store.meta(cell.key)["inputs"] == [Number(4).key]
