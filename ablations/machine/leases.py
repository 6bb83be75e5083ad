"""Leases: which run is computing which cell, so that two runs on one store share the work.

A lease is a small file beside the artifact's place, renewed while its run is alive. Runs take
turns at leasing in a local store; elsewhere two may lease the same cell in the same moment.
Nothing but saved time depends on it: were both to compute it, the artifacts are equal.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import AbstractContextManager, nullcontext

from filelock import FileLock

from ablations.machine.store import LEASE, Store

__all__ = ["Leases"]

STALE_SECONDS, RENEW_SECONDS = 60.0, 15.0


class Leases:
    """The leases of one run.

    Args:
        store: where the artifacts are going to be.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.held: set[str] = set()
        self._renewed = time.monotonic()
        self._me = {"host": socket.gethostname(), "pid": os.getpid()}
        self._turn: AbstractContextManager[object] = nullcontext()
        if store.local:
            self._turn = FileLock(f"{store.root}/leases.lock")

    def take(self, key: str) -> bool:
        """Lease a cell; False if another living run has it."""
        path = self._path(key)
        content = json.dumps(self._me | {"time": time.time()}).encode()
        files = self.store.files
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        # Between looking and writing nobody else may do either: whoever found the same stale
        # lease would replace the one that has just been written.
        with self._turn:
            if self._is_alive(path):
                return False
            with files.open(path, "wb") as file:
                file.write(content)
        self.held.add(key)
        return True

    def renew(self) -> None:
        """Show that this run is alive; call it often."""
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        content = json.dumps(self._me | {"time": time.time()}).encode()
        for key in self.held:
            with self.store.files.open(self._path(key), "wb") as file:
                file.write(content)

    def release(self, key: str) -> None:
        """The cell is finished, or given up."""
        if key in self.held:
            self.held.discard(key)
            self.store.remove(self._path(key))

    def _path(self, key: str) -> str:
        return self.store.path(key) + LEASE

    def _is_alive(self, path: str) -> bool:
        try:
            with self.store.files.open(path, "rb") as file:
                lease = json.loads(file.read())
            host, process, renewed = str(lease["host"]), int(lease["pid"]), float(lease["time"])
        except FileNotFoundError:
            return False
        except (ValueError, TypeError, KeyError):  # being written, left half written, or damaged
            return self._age(path) < STALE_SECONDS
        if host == self._me["host"] and not _runs(process):
            return False
        # A host whose clock is ahead must not be waited for until ours is there.
        return abs(time.time() - renewed) < STALE_SECONDS

    def _age(self, path: str) -> float:
        try:
            return time.time() - float(self.store.files.modified(path).timestamp())
        except FileNotFoundError:
            return STALE_SECONDS


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
