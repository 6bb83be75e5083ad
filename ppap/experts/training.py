"""How a bank is trained: budget, optimiser, order. The defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ppap.compute.options import check_choice, check_number, check_whole
from ppap.compute.precision import Precision

__all__ = ["Order", "Start", "Training"]

Start = Literal["previous", "base", "shared", "own"]
Order = Literal["ascending", "descending", "together"]


@dataclass(frozen=True)
class Training:
    """Budget and optimiser of a whole bank.

    Attributes:
        steps: optimiser steps in total; each of N experts gets steps / N, as in the paper.
        batch: images per step.
        learning_rate: AdamW's, annealed linearly to 0 within each expert's share.
        weight_decay: AdamW's.
        start: what an expert starts from: ``"previous"``, the one trained before it, which is what
            the released code does; ``"base"``, the unadapted predictor, whatever it was trained to
            before; ``"shared"``, one expert trained on all ranges for ``shared_share`` of the
            steps; ``"own"``, itself, for a bank whose training goes on.
        shared_share: of the steps, spent on the shared start; used by ``"shared"`` alone.
        seed: of every draw.
        order: in which experts are trained: ``"ascending"``, low noise to high, as in the released
            code; ``"descending"``; or ``"together"``, all at once, each step on a batch that they
            share evenly. The last needs another start than ``"previous"`` and a batch that N
            divides; it sees as many images in as many steps, and takes less time where networks
            are small.
        keep_optimiser: whether one optimiser's state goes on from expert to expert, as in
            the released code; by default each expert has a fresh one.
        precision: in which the students compute; weights and optimiser stay in float32.
            ``"auto"`` is bfloat16 where it saves time, else float32.

    Raises:
        TypeError: for steps, a batch or a seed that is no whole number.
        ValueError: for a budget without steps, a rate or decay that is none, an unknown start,
            order or precision, or a share outside (0, 1).
    """

    steps: int = 300_000
    batch: int = 256
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    start: Start = "previous"
    shared_share: float = 0.5
    seed: int = 0
    order: Order = "ascending"
    keep_optimiser: bool = False
    precision: Precision | Literal["auto"] = "fp32"

    def __post_init__(self) -> None:
        check_whole("steps", self.steps)
        check_whole("batch", self.batch)
        check_whole("seed", self.seed, 0)
        check_number("learning_rate", self.learning_rate, 0, above=True)
        check_number("weight_decay", self.weight_decay, 0)
        check_choice("start", self.start, get_args(Start))
        if not 0 < self.shared_share < 1:
            raise ValueError(f"shared_share must lie in (0, 1), got {self.shared_share}")
        check_choice("order", self.order, get_args(Order))
        if self.order == "together" and self.start == "previous":
            raise ValueError("experts trained together have no previous one; choose another start")
        check_choice("precision", self.precision, ("auto", *get_args(Precision)))

    def share(self, place: int, count: int, spent: int = 0) -> int:
        """Steps of one of ``count`` experts: what is left, split as evenly as integers allow.

        Args:
            place: of the expert in the order of training.
            count: of experts.
            spent: steps that are not to be shared, such as those on a shared start.
        """
        left = self.steps - spent
        return (place + 1) * left // count - place * left // count
