"""The paper's claims, each a contrast of two curves that are measured over the same units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ablations.cells.curve_points import (
    CurveScore,
    ExtendedSamples,
    Extension,
    Points,
    SamplesAtScore,
)
from ablations.cells.curves import Claim, Curve, Expected, Quantity
from ablations.cells.guidance import Guidance
from ablations.cells.pictures import Grid, Panel
from ablations.cells.pixel_reference import PixelReference
from ablations.cells.results import Result
from ablations.cells.samples import AnySampler, Samples, sampler_name
from ablations.errors import UserError
from ablations.settings.setting import GuidedTask, RunPath, Setting
from ablations.sweeps.lab import SEED_STRIDE, Lab, Models
from ablations.sweeps.recipes import FULL, MULTI, NAIVE, PPAP, SINGLE, Recipe
from ablations.sweeps.registry import sweep
from ppap.diffusion.dpm_solver import DPMSolver

__all__ = [
    "ARMS",
    "CLAIMS",
    "HERE",
    "SAMPLER",
    "Contrast",
    "claimed",
    "curve",
    "curve_seed",
    "guides",
    "near_and_far",
]

SAMPLER = DPMSolver(8, last=80)
CURVE_SEED = 35 * 10**8
"""Of the first sample of the first unit; no row is measured or selected on these seeds."""
TASKS = ("class", "depth", "segmentation")
PAPER = "arXiv 2212.05973"

ARMS: dict[str, Recipe | None] = {
    "unguided": None,
    "naive": NAIVE,
    "single": SINGLE,
    "multi-experts": MULTI,
    "ppap, 1 expert": replace(PPAP, experts=1),
    "ppap": PPAP,
    "ppap, full": replace(PPAP, tuning=FULL),
    "multi-experts, LoRA": Recipe(supervision="labelled"),
    "ppap, from the base": replace(PPAP, start="base"),
    "single, shuffled labels": replace(SINGLE, supervision="shuffled"),
}
"""All that are trained are trained for the same number of steps."""

WAY_UP: dict[Quantity, bool] = {
    "distance_at_matched_score": False,
    "distance_ratio_at_high_score": False,
    "saturation_ratio_at_high_score": False,
    "recall_at_high_score": True,
}
"""Of quantities that are no scores, whether more is better."""
WORTH = {"depth_rmse": 0.1, "pixel_error": 0.2}
"""What a difference of errors is worth in accuracy: guidance brings accuracy from 0.10 to 0.95, and
errors down by about so much of that, from 0.13 to 0.06 and from 0.26 to 0.06."""


@dataclass(frozen=True)
class Contrast:
    """A claim of any predictor.

    Attributes:
        statement: one sentence that can be true or false.
        ours: of :data:`ARMS`.
        theirs: that it is compared with.
        family: of claims whose tests are corrected together.
        quantity: what is compared.
        better: whether ours is better, or is as good, or comes to more harm.
        source: who says so.
        margin: the smallest difference that matters, of scores in accuracy; see :data:`WORTH` for
            errors.
    """

    statement: str
    ours: str
    theirs: str
    family: str
    quantity: Quantity = "score_at_matched_distance"
    better: bool | None = True
    source: str = PAPER
    margin: float = 0.01

    def margin_in(self, metric: str) -> float:
        """The smallest difference that matters, in a metric or in what else is compared."""
        if self.quantity in WAY_UP:
            return self.margin
        return round(self.margin * WORTH.get(metric, 1.0), 6)

    def expected(self, task: GuidedTask) -> Expected:
        """Of ours less theirs."""
        if self.better is None:
            return "equivalent"
        upward = WAY_UP.get(self.quantity, task.selection.higher_is_better)
        return "greater" if self.better == upward else "less"


AS_GOOD, HERE = 0.03, "this library"
CLAIMS: dict[str, Contrast] = {
    "naive guidance fails": Contrast(
        "A predictor that has never seen noise guides worse than the same predictor with five "
        "data-free experts, each at the best of its scales.",
        "ppap", "naive", "naive", "best_score",
    ),
    "experts beat one network": Contrast(
        "At equal training and equal distance from real images, five labelled experts guide "
        "better than one labelled noise-aware network.",
        "multi-experts", "single", "experts",
    ),
    "experts reach further than one network": Contrast(
        "At equal training and the best of its scales each, five labelled experts guide better "
        "than one labelled noise-aware network.",
        "multi-experts", "single", "experts", "best_score",
    ),
    "data-free experts beat one": Contrast(
        "At equal training and equal distance from real images, five data-free experts guide "
        "better than one.",
        "ppap", "ppap, 1 expert", "experts",
    ),
    "data-free experts reach further than one": Contrast(
        "At equal training and the best of its scales each, five data-free experts guide better "
        "than one.",
        "ppap", "ppap, 1 expert", "experts", "best_score",
    ),
    "one network collapses": Contrast(
        "At large scales one labelled network loses more of its best score than five experts do.",
        "single", "multi-experts", "collapse", "collapse", False, HERE,
    ),
    "no labels are needed": Contrast(
        "Five adapters trained without data guide as well as five trained on labels, at equal "
        "distance from real images.",
        "ppap", "multi-experts, LoRA", "labels", better=None, margin=AS_GOOD,
    ),
    "no labels are needed by full experts": Contrast(
        "Five full experts trained without data guide as well as five trained on labels, at equal "
        "distance from real images.",
        "ppap, full", "multi-experts", "labels", better=None, margin=AS_GOOD,
    ),
    "adapters suffice": Contrast(
        "Five data-free experts of which only adapters are trained guide as well as five that are "
        "trained in full, at equal distance from real images.",
        "ppap", "ppap, full", "adapters", better=None, margin=AS_GOOD,
    ),
    "adapters suffice with labels": Contrast(
        "Five labelled experts of which only adapters are trained guide as well as five that are "
        "trained in full, at equal distance from real images.",
        "multi-experts, LoRA", "multi-experts", "adapters", better=None, margin=AS_GOOD,
    ),
    "a chain of experts is better": Contrast(
        "Five data-free experts, each of which starts from the one before, guide better than five "
        "that start from the off-the-shelf predictor, at equal distance from real images.",
        "ppap", "ppap, from the base", "start", source="released code",
    ),
    "shuffled labels teach nothing": Contrast(
        "A network trained on shuffled labels guides no better than none at all.",
        "single, shuffled labels", "unguided", "control", "best_score", None, HERE, AS_GOOD,
    ),
}  # fmt: skip
"""By name."""


@sweep("claims", metrics=("accuracy",), figure="none")
def claims(lab: Lab) -> Iterator[Result]:
    """The paper's claims, each with its contrast.

    Every way to guide has a curve of its score against the distance of its samples' pixels from
    real images, over guidance scales that are doubled until the best score lies between others.
    Units are training seeds, or blocks of sampling seeds where nothing is trained; unit by unit
    all arms draw from the same seeds towards the same targets, with DPM-Solver++ in 8 steps. All
    that are trained are trained for the same number of steps.
    """
    for shown, task, predictor in guides(lab.setting, lab.predictors):
        for name, recipe in ARMS.items():
            made = curve(lab, name, recipe, shown, task, predictor)
            yield made
            yield picture(lab, made, task)
        yield from claimed(lab, CLAIMS, shown, task)


def curve_seed(unit: int) -> int:
    """The first sampling seed of a unit, in every arm and sweep with curves."""
    return CURVE_SEED + unit * SEED_STRIDE


def near_and_far(
    names: tuple[str, str],
    stem: str,
    ours: str,
    theirs: str,
    source: str,
    families: tuple[str, str] = ("near", "far"),
    varied: str = "scales",
) -> dict[str, Contrast]:
    """That ours is better at equal distance, and at the best of each one's scales.

    Args:
        names: of the two claims.
        stem: how their statements begin.
        ours: name of the arm.
        theirs: name of the arm that it is compared with.
        source: who says so.
        families: of the two.
        varied: what a curve's points differ by, in the statements.
    """
    near = f"{stem}, at equal distance from real images."
    far = f"{stem}, each at the best of its {varied}."
    return {
        names[0]: Contrast(near, ours, theirs, families[0], source=source),
        names[1]: Contrast(far, ours, theirs, families[1], "best_score", source=source),
    }


def claimed(lab: Lab, contrasts: Mapping[str, Contrast], shown: str, task: str) -> Iterator[Claim]:
    """Contrasts of a predictor's curves as claims.

    Args:
        lab: of the sweep.
        contrasts: by name.
        shown: what records call the predictor.
        task: of the setting, by name.
    """
    guided = lab.setting.tasks[task]
    for name, contrast in contrasts.items():
        yield Claim(
            lab.setup,
            lab.about(name, None, shown),
            contrast.statement,
            contrast.source,
            contrast.ours,
            contrast.theirs,
            contrast.family,
            contrast.quantity,
            contrast.expected(guided),
            contrast.margin_in(guided.selection.metric),
        )


def picture(lab: Lab, made: Curve, task: str) -> Grid | Panel:
    """Samples of an arm's first unit: the same seeds for all arms, and about the same score.

    Where the task names no score to show arms at, it is the middle of the scales.

    Args:
        lab: of the sweep.
        made: the arm's curve.
        task: of the setting, by name.
    """
    wanted = lab.setting.tasks[task].shown_at
    if wanted is None:
        drawn = [scores[0].samples for scores in made.points]
        scales = [samples for samples in drawn if not isinstance(samples, ExtendedSamples)]
        shown = scales[len(scales) // 2]
    else:
        shown = SamplesAtScore.of(made.points, wanted)
    kind = Panel if lab.setting.target_images else Grid
    return kind(lab.setup, made.about, shown)


def guides(setting: Setting, predictors: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """What guides: its name in the records, its task and its predictor.

    In a setting of several tasks records name the task, as in the sweeps of dense guidance.
    """
    if set(TASKS) <= set(setting.tasks):
        yield from ((task, task, setting.tasks[task].predictor) for task in TASKS)
    else:
        yield from ((predictor, "class", predictor) for predictor in predictors)


def curve(
    lab: Lab,
    name: str,
    recipe: Recipe | None,
    shown: str,
    task: str,
    predictor: str,
    sampler: AnySampler = SAMPLER,
    path: RunPath | None = None,
) -> Curve:
    """The curve of an arm over all units.

    Args:
        lab: of the sweep.
        name: of the arm.
        recipe: of what guides; None for unguided samples.
        shown: what records call the predictor.
        task: of the setting, by name.
        predictor: that guides.
        sampler: draws every point.
        path: on which it does; None for the run's own. What is trained is trained on that.

    Raises:
        UserError: if no scale is above 0.
    """
    setup = replace(lab.setup, path=path or lab.setup.path)
    units = tuple(range(lab.budget.units))
    rule = lab.setting.tasks[task].selection
    guided: list[Models] = [
        () if recipe is None else (lab.model(recipe, predictor, unit, task),) for unit in units
    ]
    relative = lab.setting.tasks[task].scale
    scales = [relative * scale for scale in sorted(lab.scales or lab.budget.curve_scales)]
    if not scales[-1]:
        raise UserError(
            f"a curve of sweep {lab.sweep} has no guidance scale above 0, which is to be doubled",
            "give another with --scales",
        )
    reference = PixelReference(lab.setup)

    def measured(scale: float, extension: Extension | None = None) -> tuple[CurveScore, ...]:
        found = []
        for unit, models in zip(units, guided, strict=True):
            guidance = tuple(Guidance(model, scale) for model in models)
            common = (
                setup, sampler, guidance, curve_seed(unit),
                lab.budget.curve_samples,
            )  # fmt: skip
            samples = Samples(*common)
            if extension:
                samples = ExtendedSamples(*common, extension=extension)
            found.append(CurveScore(samples, task, reference))
        return tuple(found)

    points: Points = tuple(measured(scale) for scale in (scales if recipe else [0.0]))
    for doubling in range(1, lab.budget.doublings + 1 if recipe else 1):
        further = Extension(points, rule.higher_is_better)
        points = (*points, measured(scales[-1] * 2**doubling, further))
    banks = tuple(model.experts for models in guided for model in models if model.experts)
    return Curve(
        setup,
        lab.about(name, recipe, shown),
        sampler_name(sampler),
        units,
        rule.metric,
        rule.higher_is_better,
        points,
        banks,
    )
