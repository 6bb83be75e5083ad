"""The folder of public files, and its digest.

Weights and reference statistics are read from ``$PPAP_MODELS`` (``.ppap/models``) under their
public names, labelled images from ``$PPAP_DATA``. Predictors that are not in that folder are
fetched from their hub.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.errors import UserError
from ppap.denoisers.catalogue import CLASSIFIERS, DENOISERS
from ppap.predictors.predictor import Predictor
from ppap.predictors.public import load_predictor

__all__ = ["Models", "Reduced", "digest_of"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reduced:
    """How a rehearsal departs from what was published; empty for the real thing.

    Attributes:
        denoiser: flags in place of published ones, like the next two.
        upsampler: of a cascade.
        classifier: of noise-aware classifiers.
        predictors: options of ``load_predictor``, by public name.
        classes: how many there are.
    """

    denoiser: Mapping[str, Any] = field(default_factory=dict)
    upsampler: Mapping[str, Any] = field(default_factory=dict)
    classifier: Mapping[str, Any] = field(default_factory=dict)
    predictors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classes: int | None = None


@dataclass(frozen=True)
class Models:
    """A folder of public files.

    Attributes:
        folder: where weights and statistics lie.
        data: where labelled images lie.
        reduced: what is smaller than published.
    """

    folder: Path
    data: Path
    reduced: Reduced = Reduced()

    @classmethod
    def found(cls) -> Models:
        """The folders that the environment names."""
        folder = Path(os.environ.get("PPAP_MODELS") or ROOT / ".ppap" / "models")
        return cls(folder, Path(os.environ.get("PPAP_DATA") or ROOT / ".ppap" / "data"))

    def path(self, name: str, url: str) -> Path:
        """A file or folder by its public name.

        Raises:
            UserError: if it is not there.
        """
        path = self.folder / name
        if not path.exists():
            raise UserError(f"{self.folder} holds no {name}", f"fetch {url}, or set PPAP_MODELS")
        return path

    def local(self, name: str) -> Path | None:
        """A predictor's weights, if they were put here: ``timm/resnet50.tv2_in1k.safetensors``."""
        for ending in (".safetensors", ".pth", ".bin", ""):
            path = self.folder / f"{name.replace(':', '.')}{ending}"
            if path.exists():
                return path
        return None

    def network(self, name: str) -> Path | None:
        """The file of a diffusion model or noisy classifier; None where its hub has it.

        Raises:
            UserError: if it is not here, and no hub has it.
        """
        known = {**DENOISERS, **CLASSIFIERS}
        if name not in known:
            return self.local(name)
        return self.path(Path(known[name].file).name, known[name].url)

    def predictor(self, name: str) -> Predictor:
        """A public predictor, from here or its hub."""
        return load_predictor(name, self.local(name), **self.reduced.predictors.get(name, {}))


def digest_of(paths: Sequence[Path]) -> str:
    """Of files and of all files in folders; remembered by size and time of change."""
    known = _remembered()
    whole = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                about = file.stat()
                key = f"{file}:{about.st_size}:{about.st_mtime_ns}"
                if key not in known:
                    with file.open("rb") as opened:
                        known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
                whole.update(f"{file.name}:{known[key]}".encode())
    _remember(known)
    return whole.hexdigest()[:16]


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppap/digests.json"


def _remembered() -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(_memory().read_text())
    except (OSError, ValueError):
        return {}
    return found


def _remember(known: Mapping[str, str]) -> None:
    path = _memory()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.part")
    scratch.write_text(json.dumps(known))
    scratch.replace(path)
