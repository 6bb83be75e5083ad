"""What may be better than PPAP as published, by the same experts and at no more cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ablations.cells.refined import Refinement
from ablations.cells.results import Result
from ablations.sweeps.claims import Contrast, claimed, curve, guides, picture
from ablations.sweeps.lab import Lab
from ablations.sweeps.recipes import PPAP, Recipe
from ablations.sweeps.registry import sweep

__all__ = ["REFINEMENTS"]

PUBLISHED = "ppap"
REFINEMENTS: dict[str, Refinement] = {
    "not in the noise": Refinement(last=870),
    "not in the most noise": Refinement(last=740),
    "not near the image": Refinement(first=200),
    "half the marginal": Refinement(marginal=0.5),
    "as the image's share": Refinement(weight="image"),
    "as the noise's share": Refinement(weight="noise"),
}
"""Of 8 steps at timesteps from 996 down to 80 the first three leave out one, two and one; scales
are searched for each."""
TOLD = {
    "not in the noise": "are not asked above timestep 870",
    "not in the most noise": "are not asked above timestep 740",
    "not near the image": "are not asked below timestep 200",
    "half the marginal": "follow f_y - log Σ exp(f / 2) in place of the log-probability",
    "as the image's share": "guide as strongly as the image's share in x_t, sqrt(abar)",
    "as the noise's share": "guide as strongly as the noise's share in x_t, sqrt(1 - abar)",
}
SOURCES = {"half the marginal": "arXiv 2310.11311"}
INTERVAL = "arXiv 2404.07724"


def contrasts() -> dict[str, Contrast]:
    """Of every refinement with PPAP as published, near and far."""
    found = {}
    for name in REFINEMENTS:
        source = SOURCES.get(name, INTERVAL)
        found[f"{name}: nearer"] = Contrast(
            f"Five data-free experts that {TOLD[name]} guide better than as published, at equal "
            "distance from real images.",
            name, PUBLISHED, "near", source=source,
        )  # fmt: skip
        found[f"{name}: further"] = Contrast(
            f"Five data-free experts that {TOLD[name]} guide better than as published, each at the "
            "best of its scales.",
            name, PUBLISHED, "far", "best_score", source=source,
        )  # fmt: skip
    return found


def arms(task: str) -> dict[str, Recipe]:
    """PPAP as published, and what a task can have of the refinements."""
    possible = {
        name: replace(PPAP, refinement=refinement)
        for name, refinement in REFINEMENTS.items()
        if task == "class" or refinement.marginal is None
    }
    return {PUBLISHED: PPAP} | possible


@sweep("refinements", metrics=("accuracy",), figure="none")
def refinements(lab: Lab) -> Iterator[Result]:
    """The same experts, asked at other steps and with other weights.

    The experts of the sweep of claims guide, unit by unit from its seeds towards its targets; no
    refinement costs more than what it refines. Each has scales of its own.
    """
    for shown, task, predictor in guides(lab.setting, lab.predictors):
        made = arms(task)
        for name, recipe in made.items():
            found = curve(lab, name, recipe, shown, task, predictor)
            yield found
            yield picture(lab, found)
        possible = {name: c for name, c in contrasts().items() if c.ours in made}
        yield from claimed(lab, possible, shown, task)
