"""Where cells are computed: worker processes of this machine, or Ray's of a cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from ablations.errors import UserError
from ablations.machine.cell import Cell, describe
from ablations.machine.kept import Kept
from ablations.machine.records import stamp
from ablations.machine.store import Artifact, DamagedArtifactError, Store

__all__ = [
    "LocalPool",
    "LostInputError",
    "LostWorkerError",
    "Pool",
    "RayPool",
    "compute",
    "gpu_in_turn",
    "put",
]

POLL_SECONDS, SUBMISSIONS = 0.5, 2
THREADS = 1
"""Per worker. One thread each on all cores beats all cores on one cell at these sizes."""
PRELOAD = ["ablations.sweeps"]
"""What one clean process imports, once, torch with it; workers are its forks."""
Ended = list[tuple[Cell, float | BaseException]]


class Pool(Protocol):
    """Computes cells into a store, several at a time."""

    @property
    def size(self) -> int:
        """How many cells at a time; those that run alone count for all."""
        ...

    def submit(self, cell: Cell) -> None:
        """Begin a cell, all of whose inputs are in the store."""
        ...

    def wait(self) -> Ended:
        """What has ended, after a short while at the latest: seconds spent, or what went wrong.

        A :class:`LostWorkerError` says nothing about the cell; it may be submitted again.
        """
        ...

    def close(self) -> None:
        """End all workers."""
        ...


class LostWorkerError(Exception):
    """A worker process ended abruptly, killed or out of memory, while a cell was running."""


class LostInputError(Exception):
    """An input that was in the store is damaged or gone; it is to be computed again."""


def compute(cell: Cell, url: str) -> float:
    """Runs in a worker: compute one cell into the store, stamped with its provenance.

    Raises:
        LostInputError: if an input cannot be read.
        Exception: whatever the cell raises; a RuntimeError that tells of it if it cannot travel
            between processes.
    """
    store = Store(url)

    def load(needed: Cell) -> Artifact:
        try:
            return store.get(needed.key)
        except (DamagedArtifactError, FileNotFoundError) as error:
            raise LostInputError(f"{needed.label()} ({needed.key}) cannot be read") from error

    began = time.monotonic()
    with Kept(store, cell.key) as kept:
        try:
            artifact = cell.resume(load, kept)
        except Exception as error:  # noqa: BLE001 (whatever a cell raises)
            raise _portable(error) from None
        seconds = put(store, cell, artifact, kept.seconds + time.monotonic() - began)
        kept.remove()
    return seconds


def _portable(error: Exception) -> Exception:
    """The error, or its text: one that does not unpickle would break the whole pool."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (whatever its pickling raises)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def put(store: Store, cell: Cell, artifact: Artifact, seconds: float) -> float:
    """Store what a cell computed in so many seconds, stamped with its provenance."""
    meta = {
        "cell": describe(cell, root=True),
        "label": cell.label(),
        "inputs": sorted({needed.key for needed in cell.inputs()}),
        "provenance": stamp(seconds),
        **artifact.meta,
    }
    store.put(cell.key, Artifact(meta, artifact.arrays))
    return seconds


class LocalPool:
    """Worker processes on this machine, forked from a server that has torch imported.

    Where there are several GPUs, workers take turns at them (see :func:`gpu_in_turn`).

    Args:
        store: where artifacts are looked for and put.
        workers: processes; by default one per core.
    """

    def __init__(self, store: Store, workers: int | None = None) -> None:
        self.store = store
        self.size = workers or os.cpu_count() or 1
        self._pool = _executor(self.size, THREADS)
        self._own: list[ProcessPoolExecutor] = []
        self._running: dict[Future[float], tuple[Cell, ProcessPoolExecutor]] = {}

    def submit(self, cell: Cell) -> None:
        # A worker, or the server that forks them, may have been lost while it had no cell.
        for _ in range(SUBMISSIONS):
            pool = self._pool_for(cell)
            try:
                future = pool.submit(compute, cell, self.store.url)
            except (BrokenProcessPool, OSError, EOFError):
                self._replace(pool)
            else:
                break
        else:
            future = Future()
            future.set_exception(BrokenProcessPool("workers cannot be started"))
        self._running[future] = cell, pool

    def wait(self) -> Ended:
        done, _ = wait(self._running, POLL_SECONDS, FIRST_COMPLETED)
        ended: Ended = []
        for future in done:
            cell, pool = self._running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self._replace(pool)
                error = LostWorkerError(f"a worker ended abruptly while computing {cell.label()}")
            ended.append((cell, error or future.result()))
        if not any(cell.ALONE for cell, _ in self._running.values()):
            while self._own:
                self._own.pop().shutdown(wait=False)
        return ended

    def close(self) -> None:
        for pool in (self._pool, *self._own):
            pool.shutdown(wait=False, cancel_futures=True)

    def _pool_for(self, cell: Cell) -> ProcessPoolExecutor:
        """What is timed gets all cores, and a process of its own for its memory."""
        if not cell.ALONE:
            return self._pool
        self._own.append(_executor(1, os.cpu_count() or 1))
        return self._own[-1]

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        broken.shutdown(wait=False)
        if broken is self._pool:
            self._pool = _executor(self.size, THREADS)


class RayPool:
    """Ray tasks, on a cluster or on this machine; the store must be reachable from all of it.

    Args:
        store: where artifacts are looked for and put.
        address: of the cluster; None starts Ray on this machine.
        workers: cells at a time; by default one per core of the cluster.

    Raises:
        UserError: if ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self, store: Store, address: str | None = None, workers: int | None = None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("ray is not installed", "pip install 'ppap[cluster]'") from error
        self._ray: Any = ray
        # Ray's workers give way to everything else, which what is timed must not.
        os.environ.setdefault("RAY_worker_niceness", "0")
        self.store = store
        environment = {k: v for k, v in os.environ.items() if k.startswith(("PPAP_", "XDG_"))}
        environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        local = {} if address else {"include_dashboard": False, "num_cpus": workers}
        try:
            ray.init(
                address,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": environment},
                **local,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"no Ray at {address}: {first}", "check --ray-address") from error
        self.cores = int(ray.cluster_resources().get("CPU", 1))
        self.size = workers or self.cores
        self._running: dict[Any, Cell] = {}

    def submit(self, cell: Cell) -> None:
        cores = max(int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes())
        task = self._ray.remote(_compute_for_ray).options(
            num_cpus=cores if cell.ALONE else THREADS, num_gpus=cell.GPUS, max_retries=0
        )
        threads = cores if cell.ALONE else THREADS
        self._running[task.remote(cell, self.store.url, threads)] = cell

    def wait(self) -> Ended:
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), timeout=POLL_SECONDS)
        ended: Ended = []
        for reference in done:
            cell = self._running.pop(reference)
            try:
                ended.append((cell, self._ray.get(reference)))
            except self._ray.exceptions.RayTaskError as error:
                ended.append((cell, error.cause))
            except self._ray.exceptions.RayError as error:
                lost = str(error).splitlines()[0]
                ended.append((cell, LostWorkerError(f"{lost} while computing {cell.label()}")))
        return ended

    def close(self) -> None:
        self._ray.shutdown()


def _compute_for_ray(cell: Cell, url: str, threads: int) -> float:
    import torch

    from ppap.compute.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    return compute(cell, url)


def gpu_in_turn(worker: int, environment: Mapping[str, str], count: Callable[[], int]) -> str:
    """The one of several GPUs that a worker is to see.

    Args:
        worker: its number.
        environment: of the run.
        count: tells how many GPUs there are, where ``CUDA_VISIBLE_DEVICES`` does not.

    Returns:
        What ``CUDA_VISIBLE_DEVICES`` is to be; empty to leave it, where there are not several GPUs
        or ``PPAP_DEVICE`` names another device.
    """
    if environment.get("PPAP_DEVICE", "cuda") != "cuda":
        return ""
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(count())] if shown is None else shown.split(",")
    return gpus[worker % len(gpus)] if len(gpus) > 1 else ""


def _executor(workers: int, threads: int) -> ProcessPoolExecutor:
    context: multiprocessing.context.BaseContext
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
    else:
        context = multiprocessing.get_context("spawn")
    about = threads, dict(os.environ), context.Value("i", 0)
    return ProcessPoolExecutor(workers, context, _prepare_worker, about)


def _prepare_worker(threads: int, environment: dict[str, str], turn: Any) -> None:
    """Set threads, and the caller's environment: the server that forks may be older than it.

    Args:
        threads: of this worker.
        environment: the caller's.
        turn: number of the pool's next worker, shared by all.
    """
    import torch

    from ppap.compute.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)
    with turn.get_lock():
        own, turn.value = turn.value, turn.value + 1
    if gpu := gpu_in_turn(own, environment, torch.cuda.device_count):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run is interrupted, and they end with it
    threading.Thread(target=_end_with_run, daemon=True).start()


def _end_with_run() -> None:
    """Leave no orphan behind when the run is killed."""
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)
