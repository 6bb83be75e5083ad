"""The files of a saved bank: ``bank.json`` and one ``expert_<n>.safetensors`` per range.

Format 2 names the bank's task; format 1, which did not, is read as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Head, Norms, Part
from ppap.experts.adapters.peft import Peft
from ppap.experts.expert import Expert
from ppap.experts.routing import NoiseRanges
from ppap.files.checkpoints import CheckpointError, check_state, load_state, save_weights
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask

__all__ = ["BankDescription", "load_expert", "save_expert"]

FORMAT = 2
PART_KINDS: dict[str, type[Part]] = {
    "lora": Lora,
    "biases": Biases,
    "norms": Norms,
    "full": Full,
    "head": Head,
    "peft": Peft,
}
TASK_KINDS: dict[str, type[Task]] = {
    "class": ClassTask,
    "depth": DepthTask,
    "segmentation": SegmentationTask,
    "similarity": SimilarityTask,
}
CUSTOM = "custom"


@dataclass(frozen=True)
class BankDescription:
    """What ``bank.json`` holds.

    Attributes:
        predictor: its name.
        fingerprint: of the unadapted predictor's parameters.
        ranges: of the experts.
        adapter: of all experts.
        task: None in format 1, and for a task that is none of the library's own.
        custom_task: the class name of such a task.
        normalised: whether the experts see normalised images.
        absorbed: whether batch statistics were absorbed.
    """

    predictor: str
    fingerprint: str
    ranges: NoiseRanges
    adapter: Adapter
    task: Task | None
    normalised: bool = True
    absorbed: bool = False
    custom_task: str = ""

    def write(self, folder: Path) -> None:
        """Write ``bank.json``: beside it first, then renamed."""
        written = {
            "format": FORMAT,
            "predictor": self.predictor,
            "fingerprint": self.fingerprint,
            "boundaries": self.ranges.boundaries,
            "inclusive": self.ranges.inclusive,
            "normalised": self.normalised,
            "absorbed": self.absorbed,
            "task": self._task_fields(),
            "adapter": [
                {"part": _kind(part, PART_KINDS), **vars(part)} for part in self.adapter.parts
            ],
        }
        scratch = folder / "bank.json.part"
        scratch.write_text(json.dumps(written, indent=2) + "\n")
        scratch.replace(folder / "bank.json")

    def _task_fields(self) -> dict[str, Any]:
        kind = _kind(self.task, TASK_KINDS)
        if kind is None:
            return {"kind": CUSTOM, "name": type(self.task).__name__}
        return {"kind": kind, **vars(self.task)}

    @classmethod
    def read(cls, folder: Path) -> BankDescription:
        """The description in a folder.

        Raises:
            CheckpointError: if there is none that can be read.
        """
        try:
            found = json.loads((folder / "bank.json").read_text())
            if found["format"] > FORMAT:
                raise ValueError(f"format {found['format']} is newer than this library's {FORMAT}")
            parts = tuple(PART_KINDS[fields.pop("part")](**fields) for fields in found["adapter"])
            task, name = _read_task(found.get("task"))
            return cls(
                found["predictor"],
                found["fingerprint"],
                NoiseRanges(tuple(found["boundaries"]), found.get("inclusive", False)),
                Adapter(parts),
                task,
                found.get("normalised", True),
                found.get("absorbed", False),
                name,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no readable bank.json ({error}); name a folder made by save()"
            ) from error


def save_expert(expert: Expert, number: int, folder: Path) -> None:
    """Write ``expert_<n>.safetensors``."""
    save_weights(expert.tensors() | expert.statistics(), folder / f"expert_{number}.safetensors")


def load_expert(expert: Expert, number: int, folder: Path) -> None:
    """Fill an expert from its file, strictly.

    Raises:
        CheckpointError: if the file is missing, damaged or of another adapter.
    """
    path = folder / f"expert_{number}.safetensors"
    state: Mapping[str, Tensor] = load_state(path)
    check_state(expert.tensors() | expert.statistics(), state, path.name, "the expert")
    expert.load(state)


def _kind(value: object, kinds: Mapping[str, type[Any]]) -> str | None:
    return next((name for name, kind in kinds.items() if type(value) is kind), None)


def _read_task(fields: dict[str, Any] | None) -> tuple[Task | None, str]:
    if fields is None:
        return None, ""
    kind = fields.pop("kind")
    return (None, fields["name"]) if kind == CUSTOM else (TASK_KINDS[kind](**fields), "")
