"""A sweep: one function, which yields rows.

python -m ablations run learning-rate --plugin ablations.examples.learning_rate
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ablations.cells.results import Result
from ablations.sweeps import PPAP, Lab, sweep


@sweep("learning-rate", axes={"rate": "log"}, figure="lines")
def learning_rate(lab: Lab) -> Iterator[Result]:
    """Learning rate of PPAP.

    Five data-free experts, trained from the same start. Differences are to the usual rate.
    """
    for rate in (3e-3, 1e-2, 3e-2):
        recipe = replace(PPAP, tuning=replace(PPAP.tuning, learning_rate=rate))
        yield from lab.row(f"rate {rate:g}", recipe, reference=rate == 1e-2, rate=rate)
