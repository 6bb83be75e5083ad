"""The sweeps: each a function from a lab to result cells, each a table or figure.

To add one, write a function under :func:`sweep`. Its docstring is the title and the text of
the table; the lab makes rows from recipes; the engine finds out what the rows need; rows are
compared with the one marked ``reference``; the reports draw what the decorator says. E.g.:

    @sweep("learning-rate", axes={"rate": "log"}, figure="lines")
    def learning_rate(lab: Lab) -> Iterator[Result]:
        \"\"\"Learning rate of PPAP.\"\"\"
        for rate in (3e-3, 1e-2, 3e-2):
            recipe = replace(PPAP, tuning=replace(LORA, learning_rate=rate))
            yield from lab.row(f"{rate:g}", recipe, reference=rate == 1e-2, rate=rate)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ablations.lab import FULL, LORA, NAIVE, Guidance, Lab, Measured, Recipe, Tuning
from ablations.measures import Footprint, GuidanceSpeed, SynthesisSpeed, TransferSpeed
from ablations.results import Comparison, Measurement, PairedTest, Result, Row
from ablations.stages import Model, Pretrained
from ppap.adapters import Adapter, Biases, Head, Lora, Norms, ppap_adapter
from ppap.peft_adapters import Peft
from ppap.samplers import DDPM

__all__ = ["HEADLINE", "SWEEPS", "Lab", "Sweep", "sweep"]

Build = Callable[[Lab], Iterator[Result]]
Scale = Literal["linear", "log", "category"]
Figure = Literal["lines", "points", "pareto", "none"]

QUALITY = ("accuracy", "fid", "fid_infinity", "precision", "recall")
SINGLE = Recipe(experts=1, supervision="labelled", tuning=FULL)
MULTI = Recipe(supervision="labelled", tuning=FULL)
PPAP = Recipe()
METHODS = {"naive": NAIVE, "single": SINGLE, "multi-experts": MULTI, "ppap": PPAP}


@dataclass(frozen=True)
class Sweep:
    """A table or figure: its cells, and how the reports show them.

    Attributes:
        name: as on the command line.
            function: yields the result cells.
        axes: what is varied, and on which scale it is drawn; names as :meth:`Lab.row` has them.
        metrics: columns of the table, in order.
        figure: how rows are drawn.
        headline: whether it is part of the default run.
    """

    name: str
    function: Build
    axes: Mapping[str, Scale]
    metrics: tuple[str, ...]
    figure: Figure
    headline: bool

    @property
    def title(self) -> str:
        """One line."""
        return (self.function.__doc__ or self.name).splitlines()[0].removesuffix(".")

    def build(self, lab: Lab) -> Iterator[Result]:
        """The sweep's result cells: its rows, and their differences to the reference row."""
        results = list(self.function(replace(lab, sweep=self.name)))
        yield from results
        yield from _comparisons([result for result in results if isinstance(result, Row)])

    def record(self, lab: Lab) -> dict[str, Any]:
        """What the reports need to know of the sweep."""
        text = " ".join((self.function.__doc__ or "").split("\n", 1)[-1].split())
        return {
            "kind": "sweep",
            "key": f"sweep-{self.name}",
            "sweep": self.name,
            "setting": lab.setting.name,
            "budget": lab.budget_name,
            "title": self.title,
            "description": text,
            "axes": list(self.axes),
            "scales": dict(self.axes),
            "metrics": list(self.metrics),
            "figure": self.figure,
            "headline": self.headline,
        }


SWEEPS: dict[str, Sweep] = {}


def sweep(
    name: str,
    axes: Mapping[str, Scale] | None = None,
    metrics: tuple[str, ...] = QUALITY,
    figure: Figure = "points",
    headline: bool = False,
) -> Callable[[Build], Build]:
    """Make a function a sweep; see :class:`Sweep` for the arguments."""

    def register(function: Build) -> Build:
        SWEEPS[name] = Sweep(name, function, axes or {}, metrics, figure, headline)
        return function

    return register


def _comparisons(rows: list[Row]) -> Iterator[Comparison]:
    """Every row against the reference row of its predictor and sampler."""
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        families[row.about.predictor, row.sampler].append(row)
    for family in families.values():
        for reference in [row for row in family if row.about.reference]:
            others = [row for row in family if row is not reference]
            tests = tuple(PairedTest(row.setup, row.scored, reference.scored) for row in others)
            for place, row in enumerate(others):
                yield Comparison(row.setup, row.about, row.key, reference.key, tests, place)


@sweep(
    "methods",
    metrics=(*QUALITY[:3], "inception_score", *QUALITY[3:]),
    headline=True,
)
def methods(lab: Lab) -> Iterator[Result]:
    """Methods of guidance compared.

    The main table: every way of guiding, for every predictor, at a guidance scale chosen for
    each on seeds that no row is measured on; and ancestral sampling in 250 steps beside DDIM in
    25, on fewer samples. Differences are to the single noise-aware network.
    """
    chosen = Guidance(scale=None)
    everything = Measured(grid=True, tradeoff=True, noise=True, curve=True)
    yield from lab.row("unguided", guidance=chosen, measured=Measured(grid=True, tradeoff=True))
    for predictor in lab.predictors:
        for name, recipe in METHODS.items():
            yield from lab.row(
                name,
                recipe,
                predictor=predictor,
                reference=name == "single",
                guidance=chosen,
                measured=everything,
            )
    ancestral = Guidance(sampler=DDPM(250), samples=lab.budget.ancestral_samples)
    yield from lab.row("unguided", guidance=ancestral)
    for name, recipe in METHODS.items():
        yield from lab.row(name, recipe, reference=name == "single", guidance=ancestral)


@sweep(
    "experts",
    axes={"experts": "log", "kind": "category"},
    metrics=(*QUALITY, "noisy_accuracy"),
    figure="lines",
    headline=True,
)
def experts(lab: Lab) -> Iterator[Result]:
    """Number of experts, at equal total training.

    N experts share one budget of training samples, so that each of ten sees a tenth of what one
    network would. Differences are to one labelled network.
    """
    for kind, recipe in {"labelled, full": MULTI, "data-free, LoRA": PPAP}.items():
        for count in lab.budget.expert_counts:
            yield from lab.row(
                f"{count} {kind}",
                replace(recipe, experts=count),
                reference=(count, kind) == (1, "labelled, full"),
                measured=Measured(noise=True),
                experts=count,
                kind=kind,
            )


@sweep(
    "peft",
    axes={"norm and bias": "category"},
    metrics=(
        "trainable_share",
        *QUALITY[:3],
        "noisy_accuracy",
        "train_seconds",
        "transfer_per_second",
        "peak_memory_mib",
    ),
    figure="pareto",
    headline=True,
)
def peft(lab: Lab) -> Iterator[Result]:
    """What is trained of the predictor.

    Five data-free experts by every kind of adapter, with and without own biases and batch
    norms. Differences are to the paper's adapter: loralib's LoRA with biases and norms.
    """
    measured = Measured(noise=True, training=True)
    for name, tuning, trained in TUNINGS:
        if name == "OFT" and lab.predictors[0] == "resnet":
            continue  # peft's OFT is for linear layers
        label = f"{name} + norm, bias" if trained == "with" else name
        yield from lab.row(
            label,
            replace(PPAP, tuning=tuning),
            reference=tuning == LORA,
            measured=measured,
            **{"norm and bias": trained},
        )


PEFT_KINDS: dict[str, tuple[Any, float, float]] = {
    "LoRA (loralib conv)": (Lora(4, 2.0), 1e-2, 1e-2),
    "LoRA (peft conv)": (Peft("lora", 4, 2.0), 1e-2, 1e-2),
    "rsLoRA": (Peft("rslora", 4, 2.0), 1e-2, 1e-2),
    "DoRA": (Peft("dora", 4, 2.0), 1e-2, 1e-2),
    "IA3": (Peft("ia3"), 1e-1, 3e-2),
    "LoHa": (Peft("loha", 4, 2.0), 3e-2, 3e-2),
    "LoKr": (Peft("lokr", 4, 2.0), 3e-2, 3e-2),
    "OFT": (Peft("oft", 4), 3e-2, 3e-2),
    "BOFT": (Peft("boft", 4), 3e-2, 3e-2),
}
"""Adapter, learning rate alone, learning rate with norms and biases: the best of 1e-3, 3e-3,
1e-2, 3e-2 and 1e-1 by accuracy on noisy images that no row is measured on, for a seed that no
row has. One rate for all would favour the methods it happens to suit."""


def _tunings() -> Iterator[tuple[str, Tuning, str]]:
    """(name, tuning, whether norms and biases are trained too)."""
    yield "full", FULL, "with"
    yield "last layer", Tuning("last layer", Adapter((Head(),)), 1e-1), "without"
    yield "bias", Tuning("bias", Adapter((Biases(),)), 1e-1), "without"
    yield "norm", Tuning("norm", Adapter((Norms(),)), 3e-2), "without"
    for name, (part, alone, joined) in PEFT_KINDS.items():
        yield name, Tuning(name, Adapter((part,)), alone), "without"
        both = Tuning(f"{name}, bias, norm", Adapter((Biases(), Norms(), part)), joined)
        yield name, LORA if part == Lora(4, 2.0) else both, "with"


TUNINGS = tuple(_tunings())


@sweep(
    "supervision",
    axes={"supervision": "category", "trained": "category", "experts": "category"},
    headline=True,
)
def supervision(lab: Lab) -> Iterator[Result]:
    """Labels or none, crossed with what is trained and by how many experts.

    What separates PPAP from labelled experts: the data, the adapter or their number.
    Differences are to one labelled, fully trained network.
    """
    for told in ("labelled", "data-free"):
        for trained, tuning in {"full": FULL, "LoRA": LORA}.items():
            for count in (1, 5):
                recipe = Recipe(count, "labelled" if told == "labelled" else "data-free", tuning)
                yield from lab.row(
                    f"{count} {told}, {trained}",
                    recipe,
                    reference=recipe == SINGLE,
                    measured=Measured(grid=True),
                    supervision=told,
                    trained=trained,
                    experts=count,
                )


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
        tuning = Tuning(
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
    for name, recipe in METHODS.items():
        for value in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0):
            yield from lab.row(
                f"{name}, scale {value:g}",
                recipe,
                reference=(name, value) == ("single", 16.0),
                guidance=Guidance(scale=value),
                scale=value,
                method=name,
            )


@sweep("published-quirks", axes={"arm": "category"})
def published_quirks(lab: Lab) -> Iterator[Result]:
    """Where the released code departs from the paper.

    PPAP as corrected here, with one departure of the released code at a time, and with all of
    them. Differences are to the corrected one.
    """
    for predictor in lab.predictors:
        arms = {"corrected": {}} | QUIRKS | {"as released": RELEASED[predictor]}
        for arm in [arm for arm in arms if arm not in NOT_FOR[predictor]]:
            yield from lab.row(
                arm,
                replace(PPAP, **arms[arm]),
                predictor=predictor,
                reference=arm == "corrected",
                arm=arm,
            )


UNSCALED = Tuning(
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


@sweep(
    "memory",
    axes={"architecture": "category", "form": "category", "experts": "log"},
    metrics=("parameters", "disk_mib", "memory_mib", "peak_memory_mib", "trainable_share"),
    figure="none",
    headline=True,
)
def memory(lab: Lab) -> Iterator[Result]:
    """What N experts weigh.

    Experts of the paper's two predictors as N full copies, as the released code holds them; as
    N adapters on one frozen network; and those with one expert merged into the network. Tensors
    alive after a guidance gradient of two 224x224 images, bytes as safetensors, peak resident
    memory of the process with its libraries. Random weights: only shapes matter.
    """
    counts = [n for n in lab.budget.expert_counts if n in (1, 5, 10)]
    for architecture in ("resnet50", "deit_small_patch16_224"):
        for form in ("copies", "adapters", "merged"):
            for count in counts:
                about = replace(
                    lab.about(f"{architecture}, {count} {form}", None, None),
                    experts=count,
                    axes=(("architecture", architecture), ("form", form), ("experts", count)),
                )
                yield Measurement(lab.setup, about, (Footprint(architecture, form, count),))


@sweep(
    "throughput",
    metrics=(
        "images_per_second",
        "synthesis_per_second",
        "transfer_per_second",
        "peak_memory_mib",
    ),
    figure="none",
    headline=True,
)
def throughput(lab: Lab) -> Iterator[Result]:
    """Images per second of synthesis, training and guided sampling.

    DDIM-25 and training, each measured with the machine to itself.
    """
    count = lab.budget.timed_images
    synthesis = SynthesisSpeed(lab.setup, Guidance().sampler, count)  # type: ignore[arg-type]
    yield Measurement(lab.setup, lab.about("unguided", None, None), (synthesis,))
    for predictor in lab.predictors:
        for name, recipe in METHODS.items():
            bank = lab.experts(recipe, predictor, 0) if recipe.experts else None
            model = Model(predictor, bank)
            guided = GuidanceSpeed(lab.setup, Guidance().sampler, model, 16.0, count)
            parts = (guided,) if bank is None else (TransferSpeed(bank), guided)
            yield Measurement(lab.setup, lab.about(name, recipe, predictor), parts)


HEADLINE = tuple(name for name, found in SWEEPS.items() if found.headline)
