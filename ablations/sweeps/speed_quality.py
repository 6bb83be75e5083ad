"""How little is enough: the same experts by fewer steps, in bfloat16, held back, calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ablations.cells.curves import Quantity
from ablations.cells.results import Result
from ablations.cells.samples import AnySampler
from ablations.settings.setting import RunPath, device
from ablations.sweeps.claims import HERE, Contrast, claimed, curve, guides
from ablations.sweeps.lab import Lab
from ablations.sweeps.recipes import PPAP, Recipe
from ablations.sweeps.refinements import CALIBRATED, HELD_BACK
from ablations.sweeps.registry import sweep
from ppap.compute.precision import has_bfloat16
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.dpm_solver import DPMSolver

__all__ = ["STANDARD", "WAYS", "Way"]


@dataclass(frozen=True)
class Way:
    """How images are drawn under five data-free experts.

    Attributes:
        sampler: its steps.
        path: on which; None for the run's own.
        recipe: how the experts guide.
    """

    sampler: AnySampler
    path: RunPath | None = None
    recipe: Recipe = PPAP

    @property
    def possible(self) -> bool:
        """Whether the device has what it takes; emulated, bfloat16 saves nothing."""
        return self.path != "bf16" or has_bfloat16(device())

    def suits(self, task: str) -> bool:
        """Whether it can guide towards a task."""
        return self.recipe.refinement is None or self.recipe.refinement.suits(task)


STANDARD, FAST, HELD = "DDIM-25", "2M-8 to 80", "2M-8 to 80, held back"
"""What the released code draws by; and what the presets ``fast`` and ``held-back`` do."""
HALF = "in bfloat16"
EIGHT, WEAKER = DPMSolver(8, last=80), replace(PPAP, refinement=HELD_BACK)
SOFTENED = replace(PPAP, refinement=CALIBRATED)
WAYS: dict[str, Way] = {
    STANDARD: Way(DDIM(25)),
    "DDIM-12": Way(DDIM(12)),
    "2M-12": Way(DPMSolver(12)),
    "2M-12 to 80": Way(DPMSolver(12, last=80)),
    FAST: Way(EIGHT),
    "2M-6 to 80": Way(DPMSolver(6, last=80)),
    f"{FAST}, {HALF}": Way(EIGHT, "bf16"),
    HELD: Way(EIGHT, recipe=WEAKER),
    f"{HELD}, {HALF}": Way(EIGHT, "bf16", WEAKER),
    f"{STANDARD}, calibrated": Way(DDIM(25), recipe=SOFTENED),
    f"{FAST}, calibrated": Way(EIGHT, recipe=SOFTENED),
}
"""DPM-Solver++ 2M to t = 0, or down to 80 and ending with the predicted image."""
MARGINS: dict[str, tuple[Quantity, float]] = {
    "distance": ("distance_ratio_at_high_score", 0.10),
    "saturation": ("saturation_ratio_at_high_score", 0.10),
    "recall": ("recall_at_high_score", 0.03),
}
"""What else is the same where samples are of equal quality, and within which bounds."""
BETTER = {"distance": "less distance", "saturation": "less saturation", "recall": "more recall"}


def contrasts(task: str = "class") -> dict[str, Contrast]:
    """Of every way with the standard one; and of bfloat16 with float32, otherwise the same.

    Args:
        task: only of ways that can guide towards it.
    """
    found: dict[str, Contrast] = {}
    for name, way in WAYS.items():
        if not way.suits(task):
            continue
        if way.path == "bf16":
            found |= compared(name, name.removesuffix(f", {HALF}"), ("rounding",) * 3)
        elif way.recipe.refinement:
            families = "better, near", "better, far", "better quality"
            found |= compared(name, STANDARD, families, better=True)
        elif name != STANDARD:
            found |= compared(name, STANDARD, ("near", "far", "equal quality"))
    return found


def compared(
    name: str, other: str, families: tuple[str, str, str], better: bool | None = None
) -> dict[str, Contrast]:
    """Samples drawn in one way with those drawn in another: near, far and where as accurate.

    Args:
        name: of a way.
        other: that it is compared with.
        families: of the claims at equal distance, at the best of scales, and of equal accuracy.
        better: whether the first is to be better; None if it is to be as good.
    """
    guided = "Guided by five data-free experts,"
    if better:
        near, far = f"{name} is nearer", f"{name} reaches further"
        stem = f"{guided} {name} is better than {other}"
        alike, said = f"{stem} where both are as accurate: it has", BETTER
    else:
        near, far = f"{name} is as near", f"{name} reaches as far"
        stem = f"{guided} {name} is as good as {other}"
        alike = f"{guided} {name} and {other}, where they are as accurate, have"
        said = {what: f"the same {what}" for what in MARGINS}
    distance = f"{stem} at equal distance from real images, each at scales of its own."
    best = f"{stem} at the best of the scales of each."
    found = {
        near: Contrast(distance, name, other, families[0], better=better, source=HERE),
        far: Contrast(best, name, other, families[1], "best_score", better, HERE),
    }
    for what, (quantity, margin) in MARGINS.items():
        statement = f"{alike} {said[what]}."
        found[f"{name}: {what}"] = Contrast(
            statement, name, other, families[2], quantity, better, HERE, margin
        )
    return found


@sweep("speed-quality", metrics=("accuracy",), figure="none")
def speed_quality(lab: Lab) -> Iterator[Result]:
    """PPAP-5 by fewer steps.

    The experts of the sweep of claims guide several samplers, every one over scales of its own,
    from the same noise. A step is one evaluation of the denoiser and of the experts' gradient.
    In bfloat16 are convolutions and products, on a device that has it; held back is guidance that
    is weaker the noisier the image, and calibrated, by class, is half the marginal (see the sweep
    ``refinements``).
    """
    for shown, task, predictor in guides(lab.setting, lab.predictors):
        for name, way in WAYS.items():
            if way.possible and way.suits(task):
                drawn = way.sampler, way.path
                yield curve(lab, name, way.recipe, shown, task, predictor, *drawn)
        yield from claimed(lab, contrasts(task), shown, task)
