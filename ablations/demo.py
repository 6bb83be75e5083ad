"""PPAP in two minutes: the README's lines on the weights in this repository, and a picture.

``python -m ablations.demo`` draws garments of ten classes from the same seeds three times:
unguided, guided naively by a classifier of clean images, and guided by five experts of that
classifier, which it trains first, without data. An independent judge counts how many show their
class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import ppap
from ablations.settings.catalogue import load_setting
from ablations.settings.fashion import CLASSES

__all__ = ["Demo", "draw", "main"]

OUTPUT = Path(".ppap/demo.png")


@dataclass(frozen=True)
class Demo:
    """How much of it is run.

    Attributes:
        synthetic: images drawn for the transfer.
        steps: of training, all experts together.
        batch: images per step.
        images: guided images per way; image i is to show class i mod 10.
        scale: of the guidance.
    """

    synthetic: int = 1_000
    steps: int = 400
    batch: int = 64
    images: int = 100
    scale: float = 16.0


def draw(demo: Demo, progress: bool = False) -> dict[str, tuple[Tensor, float]]:
    """Images of each way to guide, and the share that an independent judge recognises.

    Args:
        demo: how much of it is run.
        progress: whether bars are shown.

    Returns:
        By the name of the way: (N, 1, 32, 32) images in [-1, 1], and the judge's accuracy.
    """
    setting = load_setting("fashion")
    denoiser, predictor = setting.denoiser(), setting.predictor("resnet")
    labels = torch.arange(demo.images) % len(CLASSES)

    bank = ppap.ExpertBank(predictor, experts=5, adapter=ppap.ppap_adapter(rank=4, alpha=2.0))
    synthetic = ppap.synthesize(denoiser, demo.synthetic, progress=progress)
    training = ppap.Training(steps=demo.steps, batch=demo.batch, learning_rate=1e-2)
    ppap.transfer(bank, denoiser, synthetic, training=training, progress=progress)

    guides = {
        "unguided": None,
        "naive": ppap.naive_guide(predictor, ppap.ClassTask(), labels, demo.scale),
        "PPAP": bank.guide(labels, scale=demo.scale),
    }
    judge, found = setting.extractor(), {}
    for name, guide in guides.items():
        images = ppap.sample(denoiser, seeds=demo.images, guide=guide)
        with torch.no_grad():
            seen = judge(images).logits.argmax(1)
        found[name] = images, float((seen == labels).float().mean())
    return found


def picture(found: dict[str, tuple[Tensor, float]], path: Path) -> None:
    """A row for each way, a column for each class."""
    from matplotlib.figure import Figure

    columns = len(CLASSES)
    figure = Figure(figsize=(columns, 1.05 * len(found) + 0.3), dpi=120, layout="constrained")
    axes = figure.subplots(len(found), columns, squeeze=False)
    for axis, label in zip(axes[0], CLASSES, strict=True):
        axis.set_title(label, fontsize=9)
    for row, (name, (images, accuracy)) in zip(axes, found.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{name}\n{100 * accuracy:.0f} % right", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ablations.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"default: {OUTPUT}")
    options = parser.parse_args(arguments)
    found = draw(Demo(), progress=sys.stderr.isatty())
    picture(found, options.output)
    for name, (_, accuracy) in found.items():
        print(f"{name}: {100 * accuracy:.0f} % of the images show the class that was asked for")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
