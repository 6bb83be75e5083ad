"""A content-addressed store of artifacts: present means whole.

An artifact is written beside its final name, with its checksum, then renamed; readers never
see half of one, two runs may share a store, and a damaged file is noticed and never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.numpy import load, save

__all__ = ["Artifact", "DamagedArtifactError", "Store", "Stored"]

DIGEST_BYTES, LENGTH_BYTES = 32, 8
MOST_META_BYTES = 2**26
"""A length beyond this is damage."""
SUFFIX, SCRATCH, LEASE = ".artifact", ".part", ".lease"
KEPT = ".kept.safetensors"
"""Of a cell that was interrupted; a run goes on from it, and then it is removed."""


class DamagedArtifactError(Exception):
    """A file of the store whose checksum does not match; it is to be recomputed."""


@dataclass(frozen=True)
class Artifact:
    """What a cell computed.

    Attributes:
        meta: JSON-compatible facts, among them the provenance.
        arrays: named arrays.
    """

    meta: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A file of the store.

    Attributes:
        path: where it is.
        key: of its artifact; empty for what an interrupted run left.
        size: in bytes.
        age: seconds since it was last written.
    """

    path: str
    key: str
    size: int
    age: float


class Store:
    """Artifacts in a folder, local or anywhere that fsspec reaches, by key.

    Args:
        root: a path, or a URL such as ``s3://bucket/folder``, which is created if it does not
            exist; a folder of this machine is with its first artifact.

    Raises:
        OSError: if it cannot be reached or created, or is no folder.
        ValueError: for a URL of an unknown protocol.
        ImportError: for a protocol whose package is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        self.files, self.root = fsspec.core.url_to_fs(str(root))
        # Absolute: a worker, on a cluster above all, may run in another folder.
        self.url = self.root if self.local else str(root)
        if not self.local:
            self.files.makedirs(self.root, exist_ok=True)
            return
        places = (Path(self.root), *Path(self.root).parents)
        if not next(place for place in places if place.exists()).is_dir():
            raise NotADirectoryError(f"{self.root} is no folder")

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.files, LocalFileSystem)

    def path(self, key: str) -> str:
        """Where the artifact of a key is, or would be."""
        return f"{self.root}/{key[:2]}/{key}{SUFFIX}"

    def holds(self, key: str) -> bool:
        """Whether the artifact is present and whole; a damaged file is named and removed."""
        try:
            self.get(key)
        except FileNotFoundError:
            return False
        except DamagedArtifactError as error:
            print(f"warning: {error}", file=sys.stderr)
            self.remove(self.path(key))
            return False
        return True

    def get(self, key: str) -> Artifact:
        """Read an artifact.

        Raises:
            FileNotFoundError: if there is none.
            DamagedArtifactError: if the file is not what was written.
        """
        with self.files.open(self.path(key), "rb") as file:
            raw = file.read()
        digest, body = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise DamagedArtifactError(f"{self.path(key)} is damaged; it will be recomputed")
        length = int.from_bytes(body[:LENGTH_BYTES], "big")
        meta = json.loads(body[LENGTH_BYTES : LENGTH_BYTES + length])
        try:
            return Artifact(meta, load(body[LENGTH_BYTES + length :]))
        except SafetensorError as error:
            raise DamagedArtifactError(f"{self.path(key)}: {error}") from error

    def meta(self, key: str) -> Mapping[str, Any]:
        """An artifact's facts alone, without the checksum's assurance; errors as :meth:`get`."""
        with self.files.open(self.path(key), "rb") as file:
            head = file.read(DIGEST_BYTES + LENGTH_BYTES)
            length = int.from_bytes(head[DIGEST_BYTES:], "big")
            try:
                if length > MOST_META_BYTES:
                    raise ValueError(f"{length} bytes of facts")
                found: Mapping[str, Any] = json.loads(file.read(length))
            except ValueError as error:
                raise DamagedArtifactError(f"{self.path(key)} is damaged") from error
        return found

    def put(self, key: str, artifact: Artifact) -> None:
        """Write an artifact: all of it, or nothing that a reader would see."""
        meta = json.dumps(artifact.meta, sort_keys=True).encode()
        arrays = {name: np.ascontiguousarray(array) for name, array in artifact.arrays.items()}
        body = len(meta).to_bytes(LENGTH_BYTES, "big") + meta + save(arrays)
        target = self.path(key)
        scratch = f"{target}.{uuid.uuid4().hex}{SCRATCH}"
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        with self.files.open(scratch, "wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
            if self.local:
                file.flush()
                os.fsync(file.fileno())
        if self.local:
            Path(scratch).replace(target)
        else:
            self.files.mv(scratch, target)

    def probe(self) -> None:
        """Write a small file and remove it; raises what the file system does if it cannot be."""
        path = f"{self.root}/{uuid.uuid4().hex}{SCRATCH}"
        self.files.makedirs(self.root, exist_ok=True)
        with self.files.open(path, "wb") as file:
            file.write(bytes(1))
        self.files.rm_file(path)

    def remove(self, path: str) -> None:
        """Delete a file of the store, if it is still there."""
        with suppress(FileNotFoundError):
            self.files.rm_file(path)

    def find(self, prefix: str = "") -> list[str]:
        """The keys of all artifacts, or of those that begin with a prefix."""
        folder = f"{self.root}/{prefix[:2]}" if len(prefix) >= 2 else self.root
        names = (path.rpartition("/")[2] for path in self.files.find(folder))
        keys = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
        return sorted(key for key in keys if key.startswith(prefix))

    def contents(self) -> Iterator[Stored]:
        """Every file of the store, those that interrupted runs left among them."""
        now = datetime.now(UTC)
        for path, info in self.files.find(self.root, detail=True).items():
            name = path.rpartition("/")[2]
            if name.endswith((SUFFIX, SCRATCH, LEASE, KEPT)):
                key = name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else ""
                try:
                    age = (now - self.files.modified(path)).total_seconds()
                except FileNotFoundError:  # a run has just finished with it
                    continue
                yield Stored(path, key, int(info["size"] or 0), age)
