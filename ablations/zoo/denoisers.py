"""Trains denoisers alone: ``python -m ablations.zoo.denoisers SETTING --work FOLDER``.

What it leaves in the folder is told in :mod:`ablations.zoo.denoising`; the averaged weights are
written to ``FOLDER/weights/SETTING/denoiser.safetensors`` with every point of the curve. With
``--measure COUNT`` it trains nothing, but measures those weights as they will be loaded, and
writes their card.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablations.settings import data, fashion, scenes
from ablations.settings.folded import fashion_unet, scenes_unet
from ablations.settings.shipped import WEIGHTS, EvaluatorExtractor
from ablations.zoo.denoising import DenoiserRecipe, DenoiserTraining
from ablations.zoo.judging import PixelComponents, UnguidedJudge, drawn
from ppap.compute.precision import Precision, choose_precision
from ppap.denoisers.preconditioned import Preconditioned
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.diffusion.schedule import linear_schedule
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.checkpoints import load_weights, save_weights
from ppap.files.images import from_uint8

__all__ = ["TRAININGS", "DenoiserOf", "denoiser_card", "main"]

CURVE_SAMPLES = 1_000
FITTED = 20_000
CARD = """\
# The denoiser of the setting `{name}`

An unconditional ADM U-Net on folded images with a stem and a head at full resolution,
{parameters:,} parameters, linear schedule of 1000 steps, velocity prediction. Hidden
convolutions were trained by Muon, the rest by Adam; the weights are averages over a tenth of the
training.

Unguided samples of DDIM-25 against the test images: the Frechet distance of the evaluator's
features (FID), the same of 64 principal components of pixels, which know nothing of labels, and
the share of which the evaluator is surer than 0.9. Training images are what could be reached.

| {count:,} images | FID | of pixels | sure |
|---|---|---|---|
| unguided samples, {precision} | {unguided} |
| training images | {real} |

The learning curve, of the averaged weights, {points:,} samples a point (fewer samples, larger
distances):

| images seen | CPU minutes | learning rate | loss | FID | of pixels | sure |
|---|---|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class DenoiserOf:
    """What a setting's denoiser is trained from.

    Attributes:
        make: its network with fresh weights.
        shape: (C, H, W) of the images.
        images: of a split, (N, C, H, W) uint8.
        evaluator: the judge's network, without weights.
        recipe: of the training.
    """

    make: Callable[[], Preconditioned]
    shape: tuple[int, int, int]
    images: Callable[[data.Split], Tensor]
    evaluator: Callable[[], Any]
    recipe: DenoiserRecipe


TRAININGS = {
    "fashion": DenoiserOf(
        fashion_unet,
        fashion.SHAPE,
        lambda split: torch.from_numpy(data.load_fashion(split).images),
        fashion.evaluator,
        DenoiserRecipe(steps=24_000, cooldown=4_000),
    ),
    "scenes": DenoiserOf(
        scenes_unet,
        scenes.SHAPE,
        lambda split: torch.from_numpy(data.load_scenes(split).images),
        scenes.evaluator,
        DenoiserRecipe(steps=24_000, cooldown=4_000),
    ),
}


def judge_of(name: str, training: Tensor, weights: Path = WEIGHTS) -> UnguidedJudge:
    """The setting's judge, of its test images; components are fitted to training images."""
    of = TRAININGS[name]
    network = of.evaluator()
    load_weights(network, weights / name / "evaluator.safetensors")
    return UnguidedJudge(
        EvaluatorExtractor(freeze(network), f"{name}-evaluator-64"),  # type: ignore[arg-type]
        ReferenceStatistics.load(weights / name / "reference.safetensors"),
        PixelComponents.of(from_uint8(training[:FITTED]), from_uint8(of.images("test"))),
    )


def train_denoiser(name: str, work: Path, recipe: DenoiserRecipe, precision: Precision) -> None:
    """Train, or go on with, a setting's denoiser; weights and curve are left in the folder."""
    of = TRAININGS[name]
    images = of.images("train")
    judge = judge_of(name, images)
    folder, target = work / name, work / "weights" / name
    for path in (folder, target):
        path.mkdir(parents=True, exist_ok=True)
    real = judge.figures(from_uint8(images[-CURVE_SAMPLES:]))
    (folder / "real.json").write_text(json.dumps({"images": CURVE_SAMPLES} | real) + "\n")

    def evaluate(network: nn.Module) -> dict[str, Any]:
        save_weights(network.state_dict(), target / "denoiser.safetensors", torch.float16)
        denoiser = Denoiser(network, linear_schedule(), of.shape, "v").eval()
        figures = judge.figures(drawn(denoiser, CURVE_SAMPLES, precision))
        return {"samples": CURVE_SAMPLES, "precision": precision} | figures

    DenoiserTraining(of.make, images, recipe, folder, precision).run(evaluate)


def measure_denoiser(name: str, work: Path, count: int, precision: Precision) -> None:
    """Write the figures of a denoiser's weights, ``denoiser.json``, and its card beside them.

    As many training images are measured, too: what a perfect denoiser would reach.
    """
    of, target = TRAININGS[name], work / "weights" / name
    network = of.make()
    load_weights(network, target / "denoiser.safetensors")
    denoiser = Denoiser(freeze(network), linear_schedule(), of.shape, "v").eval()
    images = of.images("train")
    judge = judge_of(name, images)
    curve = (work / name / "curve.jsonl").read_text().splitlines()
    facts = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "samples": count,
        "precision": precision,
        "unguided": judge.figures(drawn(denoiser, count, precision)),
        "training_images": judge.figures(from_uint8(images[-count:])),
        "curve": [json.loads(line) for line in curve],
    }
    (target / "denoiser.json").write_text(json.dumps(facts, indent=2) + "\n")
    (target / "DENOISER.md").write_text(denoiser_card(name, facts))


def denoiser_card(name: str, facts: Mapping[str, Any]) -> str:
    """Markdown: what a denoiser reaches, and the learning curve that led there."""
    rows = "\n".join(
        f"| {point['images']:,} | {point['cpu_seconds'] / 60:.0f} | {point['learning_rate']:.2f} "
        f"| {point['loss']:.4f} | {_cells(point)} |"
        for point in facts["curve"]
    )
    return CARD.format(
        name=name,
        count=facts["samples"],
        points=facts["curve"][-1]["samples"],
        parameters=facts["parameters"],
        precision=facts["precision"],
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
    parser.add_argument("setting", choices=TRAININGS)
    parser.add_argument("--work", type=Path, default=Path(".ppap/zoo"))
    parser.add_argument("--steps", type=int, help="of the whole training")
    parser.add_argument("--cooldown", type=int, help="of them, with a falling learning rate")
    parser.add_argument("--evaluate-every", type=int, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", type=int, metavar="COUNT", help="samples; trains nothing")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    given = {
        key: value
        for key in ("steps", "cooldown", "evaluate_every")
        if (value := getattr(options, key)) is not None
    }
    recipe = replace(TRAININGS[options.setting].recipe, **given)
    precision = choose_precision(options.precision, "cpu")
    if options.measure:
        measure_denoiser(options.setting, options.work, options.measure, precision)
    else:
        train_denoiser(options.setting, options.work, recipe, precision)


if __name__ == "__main__":
    main()
