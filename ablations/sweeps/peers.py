"""Every other way to guide, at an equal budget of search."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from ablations.cells.curve_points import CurveScore, Extension, Points
from ablations.cells.curves import Curve
from ablations.cells.guidance import Guidance
from ablations.cells.intervals import RowFigures
from ablations.cells.peer_costs import Belief, PeerCost, PeerRow
from ablations.cells.peers import ExtendedPeerSamples, Peer, PeerSamples, Search, Trial
from ablations.cells.pictures import Grid, Panel
from ablations.cells.pixel_reference import PixelReference
from ablations.cells.plugins import digest, search_space
from ablations.cells.results import Result, Row
from ablations.cells.samples import Samples, sampler_name
from ablations.cells.scores import Score
from ablations.errors import UserError
from ablations.sweeps.banks import SAMPLER
from ablations.sweeps.claims import HERE, Contrast, claimed, curve_seed, near_and_far
from ablations.sweeps.lab import SELECTION_SEED, TOGETHER, Lab
from ablations.sweeps.recipes import NAIVE, PPAP, QUALITY, SINGLE, Recipe
from ablations.sweeps.registry import sweep
from ppap.diffusion.ddim import DDIM

__all__ = ["ROWS", "SPACES", "PeerRecipe", "contrasts", "trials"]

TASKS = ("class", "depth", "segmentation")
STRENGTHS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)
"""Of the curve, rising, relative to the scale that the search has chosen: from samples that lie
hardly further than unguided ones, where curves can be compared, to twice the best of few trials."""
REFERENCE = "ppap"
COSTS = (
    "relative_seconds",
    "seconds_per_image",
    "preparation_seconds",
    "cheaper_after",
    "preparation_passes",
    "cheaper_after_passes",
    "cheaper_after_at_scale",
    "denoiser_forward",
    "denoiser_backward",
    "predictor_forward",
    "predictor_backward",
    "peak_memory_mib",
)

LOOK_AT_X_T = ("adm-g", "signal-weighted", "calibrated")
Space = Mapping[str, tuple[Any, ...]]
SPACES: dict[str, Space] = {
    "adm-g": {"scale": (1.0, 64.0)},
    "signal-weighted": {"scale": (4.0, 256.0), "power": (0.5, 1.0)},
    "calibrated": {"scale": (1.0, 64.0), "marginal": (0.25, 0.5)},
    "x0-gradient": {"scale": (1.0, 64.0)},
    "dps": {"scale": (0.1, 10.0)},
    "lgd-mc": {"scale": (0.1, 10.0), "samples": (4, 10)},
    "freedom": {"scale": (0.1, 10.0), "recurrence": (1, 2)},
    "mpgd": {"scale": (0.1, 30.0)},
    "universal": {"scale": (0.5, 32.0), "backward_steps": (0, 2), "recurrence": (1, 2)},
    "tfg": {
        "scale": (0.1, 10.0), "rho": (0.0, 1.0), "mu": (0.25, 2.0), "sigma": (0.001, 0.1),
        "iterations": (1, 4), "recurrence": (1, 2),
    },
    "elucd": {"scale": (1.0, 64.0), "gamma": (0.0, 0.3), "marginal": (0.0, 0.5, 1.0)},
    "adam": {
        "scale": (0.005, 0.3), "beta1": (0.0, 0.9), "beta2": (0.9, 0.999),
        "enters": ("after", "gradient"),
    },
    "fk-steering": {"scale": (0.5, 50.0), "particles": (4, 8), "every": (1, 5)},
}  # fmt: skip
"""From which each method's trials are drawn: a scale between two, and options out of several."""


@dataclass(frozen=True)
class PeerRecipe:
    """A row of the sweep.

    Attributes:
        method: of ``ppap.guidance.METHODS``, or a plugin.
        experts: of what guides; as it is by default.
        looks_at: x_t, or the predicted image.
        sampler: what draws; its eta is of the options that are searched for.
    """

    method: str
    experts: Recipe = NAIVE
    looks_at: Literal["x_t", "x_0"] = "x_0"
    sampler: DDIM = SAMPLER

    @property
    def guide(self) -> str:
        """What looks at what, as in the tables."""
        who = {NAIVE: "clean", SINGLE: "noise-aware"}.get(self.experts, "experts")
        return f"{who}, {self.looks_at}"

    def guides(self, tasks: Sequence[str]) -> bool:
        """Whether it has something to do with these tasks: calibrated logits are of classes."""
        return self.method != "calibrated" or "class" in tasks


ROWS: dict[str, PeerRecipe] = {
    "naive": PeerRecipe("adm-g", NAIVE, "x_t"),
    "single (ADM-G)": PeerRecipe("adm-g", SINGLE, "x_t"),
    "ppap": PeerRecipe("adm-g", PPAP, "x_t"),
    "ppap, held back": PeerRecipe("signal-weighted", PPAP, "x_t"),
    "ppap, calibrated": PeerRecipe("calibrated", PPAP, "x_t"),
    **{name: PeerRecipe(name) for name in SPACES if name not in LOOK_AT_X_T},
    **{
        f"{name} + experts on x_t": PeerRecipe(name, PPAP, "x_t")
        for name in ("dps", "tfg", "elucd", "adam", "freedom")
    },
    **{
        f"{name} + experts on x_0": PeerRecipe(name, PPAP, "x_0")
        for name in ("dps", "tfg", "elucd", "mpgd")
    },
    **{
        f"{name} in {steps} steps": PeerRecipe(name, sampler=DDIM(steps))
        for name, steps in {
            "x0-gradient": 8, "dps": 10, "freedom": 5, "universal": 5, "tfg": 5,
        }.items()
    },
}  # fmt: skip
"""The last in as many steps as take about the time of PPAP's 25."""
REFINED = ("ppap, held back", "ppap, calibrated")
AT_PPAPS_COST = ("naive", "single (ADM-G)", "elucd", "mpgd")
"""Besides those in fewer steps."""


def contrasts(rows: Mapping[str, PeerRecipe]) -> dict[str, Contrast]:
    """What is claimed of these rows.

    Of every one with the reference, near and far; of a method with experts with the same without;
    and of PPAP refined with every method at its cost.
    """
    found = {}
    for name, recipe in rows.items():
        if name == REFERENCE:
            continue
        fewer = "" if recipe.sampler == SAMPLER else "in fewer steps: "
        found[f"{name} beats {REFERENCE}"] = Contrast(
            f"At equal distance from real images, {name} guides better than five data-free "
            "experts do by themselves.",
            name, REFERENCE, f"{fewer}near", source=HERE,
        )  # fmt: skip
        found[f"{name} reaches further than {REFERENCE}"] = Contrast(
            f"At the best of its strengths, {name} guides better than five data-free experts do "
            "by themselves at theirs.",
            name, REFERENCE, f"{fewer}far", "best_score", source=HERE,
        )  # fmt: skip
        alone = name.partition(" + ")[0]
        if alone != name and alone in rows:
            found[f"experts help {alone}, {name[-3:]}"] = Contrast(
                f"At equal distance from real images, {name} guides better than {alone} with the "
                "clean predictor.",
                name, alone, "combined", source=HERE,
            )  # fmt: skip
        for refined in REFINED if fewer or name in AT_PPAPS_COST else ():
            if refined in rows:
                found |= _at_equal_cost(refined, name)
    return found


def _at_equal_cost(refined: str, name: str) -> dict[str, Contrast]:
    """Of PPAP refined with a method at about its cost, near and far."""
    stem = f"At about equal cost {refined}, guides better than {name}"
    names = f"{refined}, beats {name}", f"{refined}, reaches further than {name}"
    families = f"{refined}: near, at equal cost", f"{refined}: far, at equal cost"
    return near_and_far(names, stem, refined, name, HERE, families, "strengths")


@sweep(
    "peers",
    axes={"guide": "category"},
    metrics=(*QUALITY[:2], "belief", "gap", *COSTS, *QUALITY[2:]),
    figure="pareto",
)
def peers(lab: Lab) -> Iterator[Result]:
    """Other ways to guide, each with its own search at the same budget.

    Every method has the same number of trials on the same seeds, on which no row is measured:
    scales spread evenly over the logarithm of its range, options and DDIM's eta drawn for each;
    of them the setting's own rule chooses, as it chooses other sweeps' scales. With the options
    found, every method has a curve over strengths, relative to the scale found, unit by unit
    from the same seeds towards the same targets; its row is the curve's point of strength 1.
    Units are training seeds, or blocks of sampling seeds where nothing is trained. All draw in 25
    steps of DDIM; methods that cost more do so once more in as many as cost about the same. Costs
    are network evaluations, seconds and memory of one image. The gap is by how much the guide
    finds its samples better than the independent judge. Differences are to PPAP.
    """
    if taken := [name for name in lab.plugins if name in ROWS]:
        raise UserError(f"sweep peers has a row {taken[0]} already", "give the plugin another name")
    yield unguided(lab)
    rows = ROWS | {name: PeerRecipe(name) for name in lab.plugins}
    for predictor in lab.predictors:
        for name, recipe in rows.items():
            yield from peer_row(lab, name, recipe, predictor, {"class": predictor})
        yield from claimed(lab, contrasts(rows), predictor, "class")
    if set(TASKS) <= set(lab.setting.tasks):
        sources = {task: lab.setting.tasks[task].predictor for task in TASKS}
        for shown, tasks in {**{task: (task,) for task in TASKS[1:]}, TOGETHER: TASKS}.items():
            possible = {name: recipe for name, recipe in rows.items() if recipe.guides(tasks)}
            for name, recipe in possible.items():
                guides = {task: sources[task] for task in tasks}
                yield from peer_row(lab, name, recipe, shown, guides)
            if len(tasks) == 1:
                yield from claimed(lab, contrasts(possible), shown, tasks[0])


def unguided(lab: Lab) -> Row:
    """The row of no guidance: as many samples as every method's, from the same seeds.

    Args:
        lab: of the sweep.
    """
    units, count = tuple(range(lab.budget.units)), lab.budget.curve_samples
    judged = tuple(
        Score(Samples(lab.setup, SAMPLER, (), curve_seed(unit), count)) for unit in units
    )
    return Row(
        lab.setup,
        lab.about("unguided", None, axes=(("guide", "none"),)),
        units,
        sampler_name(SAMPLER),
        RowFigures(lab.setup, judged, lab.budget.resamples, ("precision", "recall")),
    )


def peer_row(
    lab: Lab, name: str, recipe: PeerRecipe, shown: str, sources: Mapping[str, str]
) -> Iterator[Result]:
    """A method's row, its curve over strengths where it has one target, and pictures.

    Args:
        lab: of the sweep.
        name: the row's label.
        recipe: of the method.
        shown: what the records call the predictor.
        sources: the predictor of each task that guides.
    """
    experts = recipe.experts if recipe.experts.experts else None
    axes = (("guide", recipe.guide),)
    reference = recipe.experts is PPAP and name == REFERENCE
    about = lab.about(name, experts, shown, reference, axes)
    peer, sampler = Peer(recipe.method, recipe.looks_at, digest(recipe.method)), recipe.sampler
    units = tuple(range(lab.budget.units))
    guidance = [
        tuple(
            Guidance(lab.model(recipe.experts, source, unit, task), lab.setting.tasks[task].scale)
            for task, source in sources.items()
        )
        for unit in units
    ]
    search = searched(lab, peer, guidance[0], tuple(sources), sampler)
    samples = [
        PeerSamples(
            lab.setup, sampler, together, curve_seed(unit),
            lab.budget.curve_samples, peer, search,
        )
        for unit, together in zip(units, guidance, strict=True)
    ]  # fmt: skip
    judged = tuple(map(Score, samples))
    banks = tuple(part.model.experts for parts in guidance for part in parts if part.model.experts)
    yield PeerRow(
        lab.setup,
        about,
        units,
        sampler_name(sampler),
        RowFigures(lab.setup, judged, lab.budget.resamples, ("precision", "recall")),
        banks,
        search=search,
        cost=PeerCost(samples[0], lab.budget.timed_images, SAMPLER),
        beliefs=tuple(map(Belief, judged)),
    )
    if len(sources) == 1:
        (task,) = sources
        rule = lab.setting.tasks[task].selection
        yield Curve(
            lab.setup,
            about,
            sampler_name(sampler),
            units,
            rule.metric,
            rule.higher_is_better,
            points(lab, samples, task),
            banks,
        )
    yield (Panel if lab.setting.target_images else Grid)(lab.setup, about, samples[0])


def searched(
    lab: Lab,
    peer: Peer,
    guidance: tuple[Guidance, ...],
    tasks: tuple[str, ...],
    sampler: DDIM,
) -> Search:
    """The search for a method's options, with what guides the first unit."""
    tried = trials(peer.method, lab.budget.trials, lab.scales)
    picked = lab.budget.selection_samples
    scores = tuple(
        Score(PeerSamples(lab.setup, sampler, guidance, SELECTION_SEED, picked, peer, trial))
        for trial in tried
    )
    return Search(tuple(lab.setting.tasks[task].selection for task in tasks), tried, scores)


def points(lab: Lab, samples: Sequence[PeerSamples], task: str) -> Points:
    """Of a method's curve: at every strength, and at its doublings while they are better.

    Args:
        lab: of the sweep.
        samples: of each unit, at strength 1.
        task: by which they are judged.
    """
    reference = PixelReference(lab.setup)
    found: Points = tuple(
        tuple(CurveScore(replace(each, strength=strength), task, reference) for each in samples)
        for strength in STRENGTHS
    )
    better = lab.setting.tasks[task].selection.higher_is_better
    for doubling in range(1, lab.budget.doublings + 1):
        strength, further = STRENGTHS[-1] * 2**doubling, Extension(found, better)
        extended = tuple(
            ExtendedPeerSamples(
                **{field.name: getattr(each, field.name) for field in fields(PeerSamples)}
                | {"strength": strength, "extension": further}
            )
            for each in samples
        )
        found = (*found, tuple(CurveScore(each, task, reference) for each in extended))
    return found


def trials(method: str, count: int, scales: tuple[float, ...] = ()) -> tuple[Trial, ...]:
    """What a method's search tries; the same for the same method and count, anywhere.

    Args:
        method: of :data:`SPACES`, or a plugin.
        count: how many.
        scales: in turn, instead of those that are drawn.

    Raises:
        UserError: for a scale of 0, of which a curve would have no other strengths; or more scales
            than trials, some of which nobody would try.
    """
    if 0 in scales:
        raise UserError(
            "the search of a peer cannot try a guidance scale of 0", "leave it out of --scales"
        )
    if len(scales) > count:
        raise UserError(
            f"the search of a peer has {count} trials, which are fewer than {len(scales)} scales",
            f"add --set trials={len(scales)}, or leave some out of --scales",
        )
    space = SPACES[method] if method in SPACES else search_space(method)
    rng = np.random.default_rng(zlib.crc32(method.encode()))
    low, high = (float(end) for end in space["scale"])
    places = (rng.permutation(count) + rng.random(count)) / count
    etas = (1.0,) if method == "fk-steering" else (0.0, 1.0)
    found = []
    for number, place in enumerate(places):
        options = tuple(
            (name, values[int(rng.integers(len(values)))])
            for name, values in space.items()
            if name != "scale"
        )
        eta = etas[int(rng.integers(len(etas)))]
        scale = low * (high / low) ** float(place)
        found.append(Trial(scales[number % len(scales)] if scales else scale, eta, options))
    return tuple(found)
