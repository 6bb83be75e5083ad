"""How few evaluations of the denoiser are enough: curves of one guide under several samplers."""

from __future__ import annotations

from collections.abc import Iterator

from ablations.cells.results import Result
from ablations.cells.samples import AnySampler
from ablations.sweeps.claims import HERE, Contrast, claimed, curve, guides
from ablations.sweeps.lab import Lab
from ablations.sweeps.recipes import PPAP
from ablations.sweeps.registry import sweep
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.dpm_solver import DPMSolver

__all__ = ["SAMPLERS", "STANDARD"]

STANDARD = "DDIM-25"
"""What the released code draws by, and every other way is compared with."""
SAMPLERS: dict[str, AnySampler] = {
    STANDARD: DDIM(25),
    "DDIM-12": DDIM(12),
    "2M-12": DPMSolver(12),
    "2M-12 to 80": DPMSolver(12, last=80),
    "2M-8 to 80": DPMSolver(8, last=80),
    "2M-6 to 80": DPMSolver(6, last=80),
}
"""DPM-Solver++ 2M to t = 0, or down to 80 and ending with the predicted image."""
AS_GOOD = 0.01


def contrasts() -> dict[str, Contrast]:
    """Of every way that takes fewer steps with the standard one: as good, near and far."""
    found = {}
    for name in SAMPLERS:
        if name != STANDARD:
            found[f"{name} is as near"] = Contrast(
                f"Guided by five data-free experts, {name} is as good as {STANDARD} at equal "
                "distance from real images, each at scales of its own.",
                name, STANDARD, "near", better=None, source=HERE, margin=AS_GOOD,
            )  # fmt: skip
            found[f"{name} reaches as far"] = Contrast(
                f"Guided by five data-free experts, {name} is as good as {STANDARD} at the best of "
                "the scales of each.",
                name, STANDARD, "far", "best_score", None, HERE, AS_GOOD,
            )  # fmt: skip
    return found


@sweep("speed-quality", metrics=("accuracy",), figure="none")
def speed_quality(lab: Lab) -> Iterator[Result]:
    """PPAP-5 by fewer steps.

    The experts of the sweep of claims guide several samplers, every one over scales of its own,
    from the same noise. A step is one evaluation of the denoiser and of the experts' gradient.
    """
    for shown, task, predictor in guides(lab.setting, lab.predictors):
        for name, sampler in SAMPLERS.items():
            yield curve(lab, name, PPAP, shown, task, predictor, sampler)
        yield from claimed(lab, contrasts(), shown, task)
