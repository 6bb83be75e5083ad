"""In which order a bank's experts are trained, and what each starts from."""

from __future__ import annotations

from dataclasses import dataclass

from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training

__all__ = ["Stage", "stages"]


@dataclass(frozen=True)
class Stage:
    """A part of a training, under one optimiser.

    Attributes:
        steps: of the optimiser.
        expert: which is trained; None for all together.
        bounds: timesteps [low, high) that it is trained on.
        copies: experts (from, to) that are copied before it begins.
    """

    steps: int
    expert: int | None
    bounds: tuple[int, int]
    copies: tuple[tuple[int, int], ...] = ()


def stages(ranges: NoiseRanges, training: Training) -> list[Stage]:
    """The stages of a training, first to last; one too short has stages without steps."""
    count, every = len(ranges), (0, ranges.boundaries[-1])
    found: list[Stage] = []
    spent = 0
    copies: tuple[tuple[int, int], ...] = ()
    if training.start == "shared" and count > 1:
        spent = round(training.steps * training.shared_share)
        found.append(Stage(spent, 0, every))
        copies = tuple((0, number) for number in range(1, count))
    if training.order == "together":
        return [*found, Stage(training.steps - spent, None, every, copies)]
    order = range(count) if training.order == "ascending" else range(count - 1, -1, -1)
    for place, number in enumerate(order):
        if place:
            before = ((order[place - 1], number),)
            copies = before if training.start == "previous" else ()
        steps = training.share(place, count, spent)
        found.append(Stage(steps, number, ranges.bounds(number), copies))
    return found
