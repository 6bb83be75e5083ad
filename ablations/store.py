"""A content-addressed store of artifacts: present means whole.

An artifact is written beside its final name, with its checksum, then renamed; readers never
see half of one, two runs may share a store, and a damaged file is noticed and never used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

__all__ = ["Artifact", "DamagedArtifactError", "Store"]

DIGEST_BYTES, LENGTH_BYTES = 32, 8


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


class Store:
    """Artifacts in a local folder, by key.

    Args:
        root: created if it does not exist.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the artifact of a key is, or would be."""
        return self.root / key[:2] / f"{key}.artifact"

    def holds(self, key: str) -> bool:
        """Whether the artifact is present and whole; a damaged file is removed."""
        try:
            self.get(key)
        except FileNotFoundError:
            return False
        except DamagedArtifactError:
            self.path(key).unlink(missing_ok=True)
            return False
        return True

    def get(self, key: str) -> Artifact:
        """Read an artifact.

        Raises:
            FileNotFoundError: if there is none.
            DamagedArtifactError: if the file is not what was written.
        """
        raw = self.path(key).read_bytes()
        digest, body = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise DamagedArtifactError(f"{self.path(key)} is damaged; it will be recomputed")
        length = int.from_bytes(body[:LENGTH_BYTES], "big")
        meta = json.loads(body[LENGTH_BYTES : LENGTH_BYTES + length])
        try:
            return Artifact(meta, load(body[LENGTH_BYTES + length :]))
        except SafetensorError as error:
            raise DamagedArtifactError(f"{self.path(key)}: {error}") from error

    def put(self, key: str, artifact: Artifact) -> None:
        """Write an artifact atomically."""
        meta = json.dumps(artifact.meta, sort_keys=True).encode()
        arrays = {name: np.ascontiguousarray(array) for name, array in artifact.arrays.items()}
        body = len(meta).to_bytes(LENGTH_BYTES, "big") + meta + save(arrays)
        target = self.path(key)
        target.parent.mkdir(exist_ok=True)
        scratch = target.with_name(f"{key}.{os.getpid()}.part")
        with scratch.open("wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
