"""Trains denoisers alone: ``python -m ablations.zoo.denoisers NAME --work FOLDER``.

What it leaves in the folder is told in :mod:`ablations.zoo.denoising`; the averaged weights are
written to ``FOLDER/weights/NAME/denoiser.safetensors`` with every point of the curve. With
``--measure COUNT`` those weights are then measured as they will be loaded, and their card is
written; with ``--steps 0`` nothing is trained before.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablations.settings import data, fashion, scenes
from ablations.settings.folded import fashion_unet, scenes_unet
from ablations.settings.rendering.composition import draw_scenes
from ablations.settings.rendering.renderer import render
from ablations.settings.shipped import WEIGHTS, EvaluatorExtractor
from ablations.zoo.denoising import DenoiserRecipe, DenoiserTraining
from ablations.zoo.judging import PixelComponents, UnguidedJudge, drawn
from ppap.compute.cpu import cpu_model
from ppap.compute.precision import Precision, choose_precision
from ppap.denoisers.preconditioned import Preconditioned
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.diffusion.schedule import linear_schedule
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.checkpoints import load_weights, save_weights
from ppap.files.images import from_uint8

__all__ = ["TRAININGS", "DenoiserOf", "denoiser_card", "main"]

CURVE_SAMPLES = 1_000
DENOISER_SCENES, SCENES_AT_A_TIME = 160_000, 2_000
FITTED = 20_000
CARD = """\
# The denoiser `{name}`, at full resolution

{kind} ADM U-Net on folded images with a stem and a head at full resolution,
{parameters:,} parameters, linear schedule of 1000 steps, velocity prediction. Hidden
convolutions were trained by Muon, the rest by Adam; the weights are averages over a tenth of the
training, which ran on {trained_on} in {precision}.

Unguided samples of DDIM-25 against the test images: the Frechet distance of the evaluator's
features (FID), the same of 64 principal components of pixels, which know nothing of labels, and
the share of which the evaluator is surer than 0.9. Training images are what could be reached.

| {count:,} images | FID | of pixels | sure |
|---|---|---|---|
| unguided samples | {unguided} |
| training images | {real} |

The learning curve, of the averaged weights, {points:,} samples a point (fewer samples, larger
distances):

| images seen | minutes | learning rate | loss | FID | of pixels | sure |
|---|---|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class DenoiserOf:
    """What a denoiser is trained from.

    Attributes:
        setting: whose evaluator judges it.
        make: its network with fresh weights.
        shape: (C, H, W) of the images.
        images: of a split, (N, C, H, W) uint8.
        evaluator: the judge's network, without weights.
        recipe: of the training.
        labels: of the training images, (N,) int64, for a class-conditional one.
    """

    setting: str
    make: Callable[[], Preconditioned]
    shape: tuple[int, int, int]
    images: Callable[[data.Split], Tensor]
    evaluator: Callable[[], Any]
    recipe: DenoiserRecipe
    labels: Callable[[], Tensor] | None = None

    def denoiser(self, network: nn.Module, count: int) -> Denoiser:
        """For so many images; where there are classes, they take turns."""
        found = Denoiser(network, linear_schedule(), self.shape, "v").eval()
        if self.labels is None:
            return found
        return found.with_conditions(y=torch.arange(count) % len(fashion.CLASSES))


def drawn_scenes(split: data.Split) -> Tensor:
    """The images of scenes; for training four times as many as predictors see."""
    if split == "test":
        return torch.from_numpy(data.load_scenes("test").images)
    starts = range(0, DENOISER_SCENES, SCENES_AT_A_TIME)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return torch.cat(list(pool.map(_scenes_from, starts)))


def _scenes_from(first: int) -> Tensor:
    return torch.from_numpy(render(draw_scenes(range(first, first + SCENES_AT_A_TIME))).images)


def garments(split: data.Split) -> Tensor:
    """The images of Fashion-MNIST."""
    return fashion.labelled(split)[0]


RECIPE = DenoiserRecipe(steps=24_000, cooldown=4_000)
TRAININGS = {
    "fashion": DenoiserOf(
        "fashion", fashion_unet, fashion.SHAPE, garments, fashion.evaluator, RECIPE
    ),
    "fashion-conditional": DenoiserOf(
        "fashion",
        lambda: fashion_unet(len(fashion.CLASSES) + 1),
        fashion.SHAPE,
        garments,
        fashion.evaluator,
        RECIPE,
        lambda: fashion.labelled("train")[1],
    ),
    "scenes": DenoiserOf(
        "scenes", scenes_unet, scenes.SHAPE, drawn_scenes, scenes.evaluator, RECIPE
    ),
}


def judge_of(of: DenoiserOf, training: Tensor, weights: Path = WEIGHTS) -> UnguidedJudge:
    """The setting's judge, of its test images; components are fitted to training images."""
    network = of.evaluator()
    load_weights(network, weights / of.setting / "evaluator.safetensors")
    return UnguidedJudge(
        EvaluatorExtractor(freeze(network), f"{of.setting}-evaluator-64"),  # type: ignore[arg-type]
        ReferenceStatistics.load(weights / of.setting / "reference.safetensors"),
        PixelComponents.of(from_uint8(training[:FITTED]), from_uint8(of.images("test"))),
    )


class Zoo:
    """The training and the measuring of one denoiser.

    Args:
        name: of ``TRAININGS``.
        work: folder for states, curves and weights.
        device: where networks run.
        precision: of the training.
    """

    def __init__(self, name: str, work: Path, device: str, precision: Precision) -> None:
        self.name, self.of = name, TRAININGS[name]
        self.folder, self.target = work / name, work / "weights" / name
        for path in (self.folder, self.target):
            path.mkdir(parents=True, exist_ok=True)
        self.device, self.precision = device, precision
        self.images = self.of.images("train")
        self.judge = judge_of(self.of, self.images)

    def figures(self, network: nn.Module, count: int) -> dict[str, Any]:
        """Of unguided samples, drawn in float32."""
        denoiser = self.of.denoiser(network, count).to(self.device)
        return {"samples": count} | self.judge.figures(drawn(denoiser, count, "fp32"))

    def train(self, recipe: DenoiserRecipe) -> None:
        """Train, or go on; weights and curve are left in the folder."""

        def evaluate(network: nn.Module) -> dict[str, Any]:
            save_weights(network.state_dict(), self.target / "denoiser.safetensors", torch.float16)
            return self.figures(network, CURVE_SAMPLES)

        labels = None if self.of.labels is None else self.of.labels()
        DenoiserTraining(
            self.of.make, self.images, recipe, self.folder, self.precision, self.device, labels
        ).run(evaluate)

    def measure(self, count: int) -> None:
        """Write the figures of the weights as loaded, ``denoiser.json``, and their card.

        As many training images are measured, too: what a perfect denoiser would reach.
        """
        network = self.of.make()
        load_weights(network, self.target / "denoiser.safetensors")
        curve = (self.folder / "curve.jsonl").read_text().splitlines()
        facts = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "conditional": self.of.labels is not None,
            "trained_on": device_name(self.device),
            "precision": self.precision,
            "samples": count,
            "unguided": self.figures(freeze(network), count),
            "training_images": self.judge.figures(from_uint8(self.images[-count:])),
            "curve": [json.loads(line) for line in curve],
        }
        (self.target / "denoiser.json").write_text(json.dumps(facts, indent=2) + "\n")
        (self.target / "DENOISER.md").write_text(denoiser_card(self.name, facts))


def denoiser_card(name: str, facts: Mapping[str, Any]) -> str:
    """Markdown: what a denoiser reaches, and the learning curve that led there."""
    rows = "\n".join(
        f"| {point['images']:,} | {point['seconds'] / 60:.1f} | {point['learning_rate']:.2f} "
        f"| {point['loss']:.4f} | {_cells(point)} |"
        for point in facts["curve"]
    )
    return CARD.format(
        name=name,
        kind="A class-conditional" if facts["conditional"] else "An unconditional",
        trained_on=facts["trained_on"],
        precision=facts["precision"],
        count=facts["samples"],
        points=facts["curve"][-1]["samples"],
        parameters=facts["parameters"],
        unguided=_cells(facts["unguided"]),
        real=_cells(facts["training_images"]),
        rows=rows,
    )


def _cells(figures: Mapping[str, float]) -> str:
    return f"{figures['fid']:.2f} | {figures['pixel_distance']:.2f} | {100 * figures['sure']:.1f} %"


def main(arguments: list[str] | None = None) -> None:
    """Train one denoiser."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.zoo.denoisers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("name", choices=TRAININGS)
    parser.add_argument("--work", type=Path, default=Path(".ppap/zoo"))
    parser.add_argument("--steps", type=int, help="of the whole training; 0 trains nothing")
    parser.add_argument("--cooldown", type=int, help="of them, with a falling learning rate")
    parser.add_argument("--batch", type=int, help="images a step")
    parser.add_argument("--seconds", type=float, help="after which training ends, not by steps")
    parser.add_argument("--evaluate-every", type=int, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", type=int, metavar="COUNT", help="samples, for the card")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    fields = ("steps", "cooldown", "batch", "seconds", "evaluate_every")
    given = {key: value for key in fields if (value := getattr(options, key)) is not None}
    precision = choose_precision(options.precision, options.device)
    zoo = Zoo(options.name, options.work, options.device, precision)
    if options.steps != 0:
        zoo.train(replace(zoo.of.recipe, **given))
    if options.measure:
        zoo.measure(options.measure)


def device_name(device: str) -> str:
    """A GPU's name, or the CPU's."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else cpu_model()


if __name__ == "__main__":
    main()
