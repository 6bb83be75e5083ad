"""How the experts of a row are made, and the ways of guiding that the paper compares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

from ablations.cells.refined import Refinement
from ablations.cells.samples import AnySampler
from ablations.errors import UserError
from ppap.experts.adapters.adapter import Adapter, full_adapter, ppap_adapter
from ppap.experts.training import Start
from ppap.fast.best import SCALES

__all__ = [
    "FULL",
    "LORA",
    "METHODS",
    "MULTI",
    "NAIVE",
    "PPAP",
    "QUALITY",
    "SINGLE",
    "Choice",
    "FineTuning",
    "Recipe",
]

EXPERTS = 5
QUALITY = ("accuracy", "fid", "fid_infinity", "precision", "recall")
"""The columns that judge a way of guiding."""


@dataclass(frozen=True)
class FineTuning:
    """What is trained of a predictor, and how fast.

    Attributes:
        name: as in the tables.
        adapter: the trained part.
        learning_rate: at the start; it falls to 0.
    """

    name: str
    adapter: Adapter
    learning_rate: float


# Learning rates: the best of 1e-3, 3e-3, 1e-2 and 3e-2 by accuracy on noisy images that no row is
# measured on, for a seed that no row has, at the default budget; the same for both predictors.
FULL = FineTuning("full", full_adapter(), 3e-3)
LORA = FineTuning("LoRA, bias, norm", ppap_adapter(4, 2.0), 1e-2)
"""alpha / rank is the paper's 0.5; its rank 16 would be full rank in networks this narrow."""


@dataclass(frozen=True)
class Choice:
    """Of several refinements that which the off-the-shelf predictor finds best, unit by unit.

    Attributes:
        refinements: by name.
        sampler: that draws what it looks at.
        scales: under each of them, relative to the tasks' own.
        images: for each scale; no more than the budget has for selections.
    """

    refinements: tuple[tuple[str, Refinement], ...]
    sampler: AnySampler
    scales: tuple[float, ...] = SCALES
    images: int = 100

    def suits(self, task: str) -> bool:
        """Whether there is more than one for a task to choose from."""
        return len(self.among(task)) > 1

    def among(self, task: str) -> tuple[tuple[str, Refinement], ...]:
        """Those that can guide towards a task."""
        return tuple((name, found) for name, found in self.refinements if found.suits(task))


@dataclass(frozen=True)
class Recipe:
    """How the experts of a row are made; the defaults are PPAP's.

    Attributes:
        experts: how many; 0 for the predictor as it is.
        supervision: generated images and the teacher, or the training split and its labels, or
            these in the wrong places, from which nothing can be learned.
        tuning: what is trained.
        length: optimiser steps, relative to the budget's.
        images: synthetic images, relative to the budget's.
        ranges: equal in timesteps, in log-SNR or in measured transfer loss.
        inclusive: whether a boundary goes to the lower expert, as in the released code.
        start, order, keep_optimiser: see ``ppap.experts.training.Training``.
        temperature: of the teacher.
        normalised: whether the experts see normalised images.
        guide: of ``ppap.guidance.METHODS``, or a plugin's module: what guides by the experts, or
            by the predictor where there are none; None for the gradient in x_t.
        refinement: of when and how the experts guide, or those that are chosen from; None for
            always and alike.

    Raises:
        UserError: for fewer than no experts, or a word that is none of a field's.
    """

    experts: int = EXPERTS
    supervision: Literal["data-free", "labelled", "shuffled"] = "data-free"
    tuning: FineTuning = LORA
    length: float = 1.0
    images: float = 1.0
    ranges: Literal["timesteps", "log-SNR", "transfer loss"] = "timesteps"
    inclusive: bool = False
    start: Start = "previous"
    order: Literal["ascending", "descending"] = "ascending"
    keep_optimiser: bool = False
    temperature: float = 0.25
    normalised: bool = True
    guide: str | None = None
    refinement: Refinement | Choice | None = None

    def __post_init__(self) -> None:
        # A record holds no numbers of NumPy's, over whose ranges a sweep may go.
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        if not isinstance(self.experts, int) or self.experts < 0:
            raise UserError(
                f"a recipe has a number of experts, got {self.experts!r}",
                "give a whole number; 0 is the predictor as it is",
            )
        for name, known in _words().items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"a recipe's {name} cannot be {getattr(self, name)!r}",
                    f"choose from {', '.join(known)}",
                )


@cache
def _words() -> dict[str, tuple[str, ...]]:
    """Of a recipe's fields that are words, those that there are."""
    kinds = get_type_hints(Recipe)
    return {n: get_args(kind) for n, kind in kinds.items() if get_origin(kind) is Literal}


NAIVE = Recipe(experts=0)
SINGLE = Recipe(experts=1, supervision="labelled", tuning=FULL)
MULTI = Recipe(supervision="labelled", tuning=FULL)
PPAP = Recipe()
METHODS = {"naive": NAIVE, "single": SINGLE, "multi-experts": MULTI, "ppap": PPAP}
