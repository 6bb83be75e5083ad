"""The conditions under which the same samples are drawn, and what is drawn under each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CONDITIONS", "GUIDANCE", "INSTRUCTIONS", "Condition", "Guidance", "by_name"]

INSTRUCTIONS: dict[str, dict[str, str]] = {
    "native": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "SSE4.1": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
"""Environment variables under which PyTorch, oneDNN and MKL compute as on an older CPU."""


@dataclass(frozen=True)
class Condition:
    """One way to draw the samples.

    Attributes:
        name: in the table.
        batch: images per network call.
        instructions: of the CPU, a key of :data:`INSTRUCTIONS`.
        threads: of PyTorch.
        fast: whether the fast path draws.
        reverse: whether the samples stand in reverse order, so that each has other neighbours
            and another place in its batch.
        against: the condition that its samples are compared with.
    """

    name: str
    batch: int = 64
    instructions: str = "native"
    threads: int = 1
    fast: bool = False
    reverse: bool = False
    against: str = "reference"

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Environment of a process that draws: the inherited one, its limits replaced."""
        limits = {name for variables in INSTRUCTIONS.values() for name in variables}
        kept = {name: value for name, value in inherited.items() if name not in limits}
        return kept | {"OMP_NUM_THREADS": str(self.threads)} | INSTRUCTIONS[self.instructions]


CONDITIONS = (
    Condition("reference"),
    Condition("run again"),
    Condition("other neighbours", reverse=True),
    Condition("batch 16", batch=16),
    Condition("batch 7", batch=7),
    Condition("batch 1", batch=1),
    Condition("2 threads", threads=2),
    Condition("AVX2", instructions="AVX2"),
    Condition("SSE4.1", instructions="SSE4.1"),
    Condition("fast path", fast=True),
    Condition("fast path, run again", fast=True, against="fast path"),
    Condition("fast path, batch 16", batch=16, fast=True, against="fast path"),
)
"""Each differs in one thing from what it is compared with."""


@dataclass(frozen=True)
class Guidance:
    """What guides the samples.

    Attributes:
        predictor: of the setting ``fashion``, under a PPAP-5 bank; None for no guidance.
        scale: of the guidance.
    """

    predictor: str | None = None
    scale: float = 0.0

    def __str__(self) -> str:
        return "unguided" if self.predictor is None else f"{self.predictor}, scale {self.scale:g}"


GUIDANCE = (
    Guidance(),
    *(Guidance(name, scale) for name in ("resnet", "vit") for scale in (2.0, 8.0, 32.0)),
)


def by_name(name: str) -> Condition:
    """A condition of the table.

    Raises:
        KeyError: if there is none of that name.
    """
    return {condition.name: condition for condition in CONDITIONS}[name]
