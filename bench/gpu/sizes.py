"""How large everything is: on a GPU, and in the rehearsal."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["GPU", "REHEARSAL", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Of the workloads.

    Attributes:
        device: where they run.
        batch: images per network call.
        few: images of a short call to ``sample``.
        many: images of a long one.
        steps: of DDIM.
        training: images of a training step's batch, small and large.
        predictors: of the setting.
        modes: element types of the checks; Triton's interpreter has bfloat16 products wrong.
        compile: whether graphs are compiled.
        calls: equal ones in a row, to see which compile anew.
        candidates: configurations tried for a kernel, at most.
        rounds: of a comparison, at most.
        largest: dimension of what is tuned.
    """

    device: str
    batch: int
    few: int
    many: int
    steps: int
    training: tuple[int, ...]
    predictors: tuple[str, ...]
    modes: tuple[str, ...]
    compile: bool
    calls: int
    candidates: int
    rounds: int
    largest: int

    @property
    def on(self) -> torch.device:
        return torch.device(self.device)


GPU = Sizes(
    device="cuda", batch=256, few=256, many=4096, steps=25, training=(40, 640),
    predictors=("resnet", "vit"), modes=("bf16", "fp32", "tf32", "fp16"), compile=True, calls=8,
    candidates=400, rounds=15, largest=2**40,
)  # fmt: skip
REHEARSAL = Sizes(
    device="cpu", batch=2, few=2, many=3, steps=2, training=(5,), predictors=("resnet",),
    modes=("fp32",), compile=False, calls=2, candidates=2, rounds=1, largest=40,
)  # fmt: skip
