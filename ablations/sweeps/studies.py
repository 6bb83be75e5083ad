"""The sweeps that are run by name: one setting of the method at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ablations.cells.predictors import Pretrained
from ablations.cells.results import Result
from ablations.sweeps.lab import SCALE, Lab, Measured, Sampling
from ablations.sweeps.recipes import LORA, METHODS, MULTI, PPAP, QUALITY, SINGLE, FineTuning, Recipe
from ablations.sweeps.registry import sweep
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms


@sweep(
    "synthetic-size",
    axes={"images": "log"},
    figure="lines",
)
def synthetic_size(lab: Lab) -> Iterator[Result]:
    """How many generated images.

    PPAP from a quarter to eight times the budget's generated images, at equal training.
    """
    for amount in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        count = round(lab.budget.synthetic * amount)
        recipe = replace(PPAP, images=amount)
        yield from lab.row(f"{count} images", recipe, reference=amount == 1.0, images=count)


@sweep(
    "training-length",
    axes={"steps": "log", "model": "category"},
    metrics=(
        "noisy_accuracy",
        "gradient_cosine",
        *QUALITY[:3],
        "train_seconds",
    ),
    figure="lines",
)
def training_length(lab: Lab) -> Iterator[Result]:
    """When has a noise-aware model converged?

    Accuracy on noisy images, the cosine of the guidance gradient with that of five labelled
    experts trained for sixteen times the budget, and guided quality, against optimiser steps
    (all experts together).
    """
    measured = Measured(noise=True, gradients=True)
    for kind, base in {"labelled, full": MULTI, "data-free, LoRA": PPAP}.items():
        for count in (1, 5):
            for length in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0):
                recipe = replace(base, experts=count, length=length)
                steps = round(lab.budget.steps * length)
                yield from lab.row(
                    f"{count} {kind}, {steps} steps",
                    recipe,
                    reference=recipe == SINGLE,
                    measured=measured,
                    steps=steps,
                    model=f"{count} {kind}",
                )


@sweep("rank", axes={"rank": "log"}, figure="lines")
def rank(lab: Lab) -> Iterator[Result]:
    """Rank of LoRA.

    PPAP with LoRA of rank 1 to 32 and alpha half the rank. Ranks beyond a layer's width add
    parameters and no freedom.
    """
    for value in (1, 2, 4, 8, 16, 32):
        tuning = FineTuning(
            f"LoRA r={value}, bias, norm", ppap_adapter(value, value / 2), LORA.learning_rate
        )
        recipe = replace(PPAP, tuning=LORA if value == 4 else tuning)
        yield from lab.row(f"rank {value}", recipe, reference=value == 4, rank=value)


@sweep("temperature", axes={"temperature": "log"}, figure="lines")
def temperature(lab: Lab) -> Iterator[Result]:
    """Temperature of the teacher.

    PPAP, whose released code sharpens the teacher by a temperature of 0.25.
    """
    for value in (0.1, 0.25, 0.5, 1.0, 2.0):
        recipe = replace(PPAP, temperature=value)
        yield from lab.row(f"{value:g}", recipe, reference=value == 0.25, temperature=value)


@sweep(
    "scale",
    axes={"scale": "log", "method": "category"},
    figure="lines",
)
def scale(lab: Lab) -> Iterator[Result]:
    """Guidance scale: accuracy against FID.

    Each method over the guidance scale: a trade-off curve rather than a point.
    """
    scales = lab.scales or (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    middle = SCALE if SCALE in scales else scales[len(scales) // 2]
    for name, recipe in METHODS.items():
        for value in scales:
            yield from lab.row(
                f"{name}, scale {value:g}",
                recipe,
                reference=(name, value) == ("single", middle),
                sampling=Sampling(scale=value),
                scale=value,
                method=name,
            )


@sweep("published-quirks", axes={"arm": "category"})
def published_quirks(lab: Lab) -> Iterator[Result]:
    """Where the released code departs from the paper.

    PPAP as corrected here, with one departure of the released code at a time, and, for the
    networks that it was released for, with all of them. Differences are to the corrected one.
    """
    for predictor in lab.predictors:
        arms = {"corrected": {}} | QUIRKS
        if predictor in RELEASED:
            arms["as released"] = RELEASED[predictor]
        for arm in [arm for arm in arms if arm not in NOT_FOR.get(predictor, ())]:
            yield from lab.row(
                arm,
                replace(PPAP, **arms[arm]),
                predictor=predictor,
                reference=arm == "corrected",
                arm=arm,
            )


UNSCALED = FineTuning(
    "LoRA without alpha/r on linear layers, bias, norm",
    Adapter((Biases(), Norms(), Lora(4, 2.0, linear_scaling="published"))),
    LORA.learning_rate,
)
QUIRKS: dict[str, dict[str, Any]] = {
    "alpha/r left out of linear layers": {"tuning": UNSCALED},
    "each expert from the base": {"start": "base"},
    "each expert from the next higher": {"order": "descending"},
    "each expert from a shared one": {"start": "shared"},
    "one optimiser state for all": {"keep_optimiser": True},
    "student sees raw images": {"normalised": False},
    "boundaries to the lower expert": {"inclusive": True},
}
RELEASED: dict[str, dict[str, Any]] = {
    "resnet": {"keep_optimiser": True, "inclusive": True, "normalised": False},
    "vit": {"keep_optimiser": True, "inclusive": True, "tuning": UNSCALED},
}
"""All departures together, of each kind of predictor."""
NOT_FOR = {"resnet": {"alpha/r left out of linear layers"}, "vit": {"student sees raw images"}}


@sweep(
    "capacity",
    axes={"steps": "log", "experts": "category"},
    metrics=("noisy_accuracy", *QUALITY[:3]),
    figure="lines",
)
def capacity(lab: Lab) -> Iterator[Result]:
    """When do experts beat one network?

    One noise-aware network against five experts of equal total training, both labelled and
    fully trained, over four widths of the predictor and three lengths of training. Each width's
    differences are to its single network at the longest training.
    """
    for width in (4, 8, 16, 32):
        predictor = Pretrained(lab.setup, width, 4 * lab.budget.steps)
        for length in (0.5, 1.0, 2.0):
            steps = round(lab.budget.steps * length)
            for count in (1, 5):
                yield from lab.row(
                    f"width {width}, {count} expert{'s' * (count > 1)}, {steps} steps",
                    replace(MULTI, experts=count, length=length),
                    predictor=predictor,
                    reference=(count, length) == (1, 2.0),
                    measured=Measured(noise=True),
                    steps=steps,
                    experts=count,
                )


@sweep("ranges", axes={"ranges": "category"})
def ranges(lab: Lab) -> Iterator[Result]:
    """How the noise range is divided.

    PPAP with five ranges equal in timesteps (the paper), in log-SNR, and in the transfer loss
    measured on one expert.
    """
    for how in ("timesteps", "log-SNR", "transfer loss"):
        yield from lab.row(how, Recipe(ranges=how), reference=how == "timesteps", ranges=how)
