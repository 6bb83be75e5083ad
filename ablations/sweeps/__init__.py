"""The sweeps: each a function from a lab to result cells, each a table or figure.

To add one, write a function under :func:`sweep` in a module that this one imports. Its
docstring is the title and the text of the table; the lab makes rows from recipes; the engine
finds out what the rows need; rows are compared with the one marked ``reference``; the reports
draw what the decorator says. E.g.:

    @sweep("learning-rate", axes={"rate": "log"}, figure="lines")
    def learning_rate(lab: Lab) -> Iterator[Result]:
        \"\"\"Learning rate of PPAP.\"\"\"
        for rate in (3e-3, 1e-2, 3e-2):
            recipe = replace(PPAP, tuning=replace(LORA, learning_rate=rate))
            yield from lab.row(f"{rate:g}", recipe, reference=rate == 1e-2, rate=rate)
"""

from __future__ import annotations

from ablations.sweeps import (
    claims,
    dense,
    headline,
    peers,
    refinements,
    speed_quality,
    studies,
    tuning,
)
from ablations.sweeps.lab import Lab
from ablations.sweeps.recipes import PPAP, Recipe
from ablations.sweeps.registry import SWEEPS, Sweep, is_row, sweep

__all__ = [
    "HEADLINE",
    "PPAP",
    "SWEEPS",
    "Lab",
    "Recipe",
    "Sweep",
    "claims",
    "dense",
    "headline",
    "is_row",
    "peers",
    "refinements",
    "speed_quality",
    "studies",
    "sweep",
    "tuning",
]

HEADLINE = tuple(name for name, found in SWEEPS.items() if found.headline)
