"""What may be better than PPAP as published, by the same experts and at no more cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ablations.cells.refined import Refinement
from ablations.cells.results import Result
from ablations.sweeps.claims import (
    HERE,
    SAMPLER,
    Contrast,
    claimed,
    curve,
    guides,
    near_and_far,
    picture,
)
from ablations.sweeps.lab import Lab
from ablations.sweeps.recipes import MULTI, NAIVE, PPAP, SINGLE, Choice, Recipe
from ablations.sweeps.registry import sweep

__all__ = ["CALIBRATED", "CHOSEN", "HELD_BACK", "REFINEMENTS", "RIVALS"]

PUBLISHED = "ppap"
HELD_BACK = Refinement(power=0.5)
CALIBRATED = Refinement(marginal=0.5)
REFINEMENTS: dict[str, Refinement] = {
    "held back": HELD_BACK,
    "held back more": Refinement(power=1.0),
    "not in the noise": Refinement(last=870),
    "not in the most noise": Refinement(last=740),
    "not near the image": Refinement(first=200),
    "half the marginal": CALIBRATED,
    "half the marginal, held back a little": Refinement(marginal=0.5, power=0.25),
    "half the marginal, held back": Refinement(marginal=0.5, power=0.5),
}
"""Of PPAP. Of 8 steps at timesteps from 996 down to 80 the intervals leave out one, two and one."""
CHOSEN = "chosen by the predictor"
CHOICE = Choice(
    (("as published", Refinement()), ("held back", HELD_BACK), ("calibrated", CALIBRATED)), SAMPLER
)
RIVALS: dict[str, Recipe] = {
    "naive": NAIVE,
    "single": SINGLE,
    "multi-experts": MULTI,
    "ppap, 1 expert": replace(PPAP, experts=1),
}
"""Whose guidance is held back, too: what experts are worth then."""
TOLD = {
    "held back": "are weighted by the image's share in x_t, sqrt(abar),",
    "held back more": "are weighted by its square, abar,",
    "not in the noise": "are not asked above timestep 870",
    "not in the most noise": "are not asked above timestep 740",
    "not near the image": "are not asked below timestep 200",
    "half the marginal": "follow f_y - log Σ exp(f / 2) in place of the log-probability",
    "half the marginal, held back a little": "follow f_y - log Σ exp(f / 2), weighted by abar^1/4,",
    "half the marginal, held back": "follow f_y - log Σ exp(f / 2), weighted by sqrt(abar),",
}
SOURCES = {
    "held back": HERE,
    "held back more": HERE,
    "half the marginal": "arXiv 2310.11311",
    "half the marginal, held back a little": HERE,
    "half the marginal, held back": HERE,
}
INTERVAL = "arXiv 2404.07724"


def contrasts() -> dict[str, Contrast]:
    """Of every refinement with PPAP as published, and of PPAP with its rivals, near and far."""
    found: dict[str, Contrast] = {}
    for name, refinement in REFINEMENTS.items():
        stem = f"Five data-free experts that {TOLD[name]} guide better than as published"
        question = "both: " * (refinement.marginal is not None and refinement.power > 0)
        source = SOURCES.get(name, INTERVAL)
        names = f"{name}: nearer", f"{name}: further"
        found |= near_and_far(names, stem, name, PUBLISHED, source, families(question))
    stem = (
        "Five data-free experts guide better than as published where their off-the-shelf "
        "predictor, which sees samples and no data, chooses whether they are held back, "
        "calibrated or neither"
    )
    names = f"{CHOSEN}: nearer", f"{CHOSEN}: further"
    found |= near_and_far(names, stem, CHOSEN, PUBLISHED, HERE, families("chosen: "))
    for name in RIVALS:
        stem = f"Where both are held back, five data-free experts guide better than the arm {name}"
        names = f"held back, {name} is beaten", f"held back, {name} is left behind"
        found |= near_and_far(names, stem, "held back", f"{name}, held back", HERE)
    return found


def families(question: str) -> tuple[str, str]:
    """Of claims that answer another question than the others: near and far."""
    return f"{question}near", f"{question}far"


def arms(task: str) -> dict[str, Recipe]:
    """PPAP as published, what a task can have of its refinements, and the rivals, held back."""
    possible = {
        name: replace(PPAP, refinement=refinement)
        for name, refinement in REFINEMENTS.items()
        if refinement.suits(task)
    }
    rivals = {
        f"{name}, held back": replace(recipe, refinement=HELD_BACK)
        for name, recipe in RIVALS.items()
    }
    chosen = {CHOSEN: replace(PPAP, refinement=CHOICE)}
    return {PUBLISHED: PPAP} | possible | chosen | rivals


@sweep("refinements", metrics=("accuracy",), figure="none")
def refinements(lab: Lab) -> Iterator[Result]:
    """The same experts, asked at other steps and with other weights.

    The experts of the sweep of claims guide, unit by unit from its seeds towards its targets; no
    refinement costs more than what it refines. Each has scales of its own. Guidance that is held
    back is weaker the noisier the image: its gradient is weighted by a power of abar. What is
    chosen by the predictor is whether to hold back, to calibrate or neither, training seed by
    training seed: by how well samples that none of these curves has agree with their targets, as
    the off-the-shelf predictor sees them, no further from unguided samples.
    """
    for shown, task, predictor in guides(lab.setting, lab.predictors):
        made = arms(task)
        for name, recipe in made.items():
            found = curve(lab, name, recipe, shown, task, predictor)
            yield found
            yield picture(lab, found, task)
        possible = {name: c for name, c in contrasts().items() if c.ours in made}
        yield from claimed(lab, possible, shown, task)
