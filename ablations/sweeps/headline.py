"""The sweeps of the default run: the paper's main comparisons, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ablations.cells.guidance import Guidance
from ablations.cells.memory import Footprint
from ablations.cells.results import Measurement, Result
from ablations.cells.samples import Samples
from ablations.cells.speed import GuidanceSpeed, SynthesisSpeed, TransferSpeed
from ablations.sweeps.banks import SAMPLER
from ablations.sweeps.fine_tunings import FINE_TUNINGS
from ablations.sweeps.lab import SCALE, Lab, Measured, Sampling
from ablations.sweeps.recipes import (
    FULL,
    LORA,
    METHODS,
    MULTI,
    NAIVE,
    PPAP,
    QUALITY,
    SINGLE,
    Recipe,
)
from ablations.sweeps.registry import sweep
from ppap.diffusion.ddpm import DDPM


@sweep(
    "methods",
    metrics=(*QUALITY[:3], "sfid", "inception_score", *QUALITY[3:]),
    headline=True,
)
def methods(lab: Lab) -> Iterator[Result]:
    """Methods of guidance compared.

    The main table: every way of guiding, for every predictor, at a guidance scale selected for
    each on seeds that no row is measured on; and ancestral sampling in 250 steps beside DDIM in
    25, on fewer samples. Differences are to the single noise-aware network.
    """
    selected = Sampling(scale=None)
    everything = Measured(pictures=True, tradeoff=True, noise=True, curve=True)
    yield from lab.row(
        "unguided", sampling=selected, measured=Measured(pictures=True, tradeoff=True)
    )
    for predictor in lab.predictors:
        for name, recipe in METHODS.items():
            yield from lab.row(
                name,
                recipe,
                predictor=predictor,
                reference=name == "single",
                sampling=selected,
                measured=everything,
            )
        for plugin in lab.plugins:
            yield from lab.row(
                plugin,
                replace(NAIVE, guide=plugin),
                predictor=predictor,
                sampling=selected,
                measured=Measured(pictures=True, tradeoff=True),
            )
    for name in lab.setting.noisy:
        yield from lab.row(name, NAIVE, predictor=name, reference=True, sampling=selected)
    budget = lab.budget
    ancestral = Sampling(DDPM(budget.ancestral_steps), samples=budget.ancestral_samples)
    yield from lab.row("unguided", sampling=ancestral)
    for name, recipe in METHODS.items():
        yield from lab.row(name, recipe, reference=name == "single", sampling=ancestral)


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
    for name, tuning, trained in FINE_TUNINGS:
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
                    measured=Measured(pictures=True),
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
                    lab.about(f"{architecture}, {count} {form}", None),
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
    synthesis = SynthesisSpeed(lab.setup, SAMPLER, count)
    yield Measurement(lab.setup, lab.about("unguided", None), (synthesis,))
    for predictor in lab.predictors:
        for name, recipe in METHODS.items():
            model = lab.model(recipe, predictor, 0)
            batch = Samples(lab.setup, SAMPLER, (Guidance(model, SCALE),), 0, count)
            training = (TransferSpeed(model.experts),) if model.experts else ()
            parts = (*training, GuidanceSpeed(batch))
            yield Measurement(lab.setup, lab.about(name, recipe, predictor), parts)
