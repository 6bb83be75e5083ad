"""The sweeps of the default run: the paper's main comparisons, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ablations.cells.measures import Footprint, GuidanceSpeed, SynthesisSpeed, TransferSpeed
from ablations.cells.results import Measurement, Result
from ablations.cells.stages import Model
from ablations.sweeps.lab import FULL, LORA, NAIVE, FineTuning, Guidance, Lab, Measured, Recipe
from ablations.sweeps.recipes import METHODS, MULTI, PPAP, QUALITY, SINGLE
from ablations.sweeps.registry import sweep
from ppap.diffusion.ddpm import DDPM
from ppap.experts.adapters import Adapter, Biases, Head, Lora, Norms
from ppap.experts.peft_adapters import Peft


@sweep(
    "methods",
    metrics=(*QUALITY[:3], "sfid", "inception_score", *QUALITY[3:]),
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
    for name in lab.setting.noisy:
        yield from lab.row(name, NAIVE, predictor=name, reference=True, guidance=chosen)
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


def _tunings() -> Iterator[tuple[str, FineTuning, str]]:
    """(name, tuning, whether norms and biases are trained too)."""
    yield "full", FULL, "with"
    yield "last layer", FineTuning("last layer", Adapter((Head(),)), 1e-1), "without"
    yield "bias", FineTuning("bias", Adapter((Biases(),)), 1e-1), "without"
    yield "norm", FineTuning("norm", Adapter((Norms(),)), 3e-2), "without"
    for name, (part, alone, joined) in PEFT_KINDS.items():
        yield name, FineTuning(name, Adapter((part,)), alone), "without"
        both = FineTuning(f"{name}, bias, norm", Adapter((Biases(), Norms(), part)), joined)
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
    for supervision in ("labelled", "data-free"):
        for trained, tuning in {"full": FULL, "LoRA": LORA}.items():
            for count in (1, 5):
                recipe = Recipe(count, supervision, tuning)
                yield from lab.row(
                    f"{count} {supervision}, {trained}",
                    recipe,
                    reference=recipe == SINGLE,
                    measured=Measured(grid=True),
                    supervision=supervision,
                    trained=trained,
                    experts=count,
                )


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
