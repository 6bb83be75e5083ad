"""The embedded setting ``scenes``: 32x32 RGB renderings of solids, with three tasks.

All networks are small enough for two CPU cores. The denoiser belongs to the ADM family, the
classifier is a timm network, the depth estimator and the segmenter are encoder-decoders. The
evaluators share an architecture with none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import cast

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.settings import fashion
from ablations.settings.rendering.solids import SEGMENTS, SHAPES
from ablations.settings.scene_targets import labelled, numbered_targets, target_scenes
from ablations.settings.setting import GuidedTask, SelectionRule, Setting, TargetOrder
from ablations.settings.shipped import ShippedWeights
from ablations.settings.small_networks import Evaluator, small_resnet, small_unet
from ppap.denoisers.preconditioned import Preconditioned
from ppap.diffusion.denoiser import SpaceToDepth
from ppap.diffusion.schedule import linear_schedule
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.segmentation import SegmentationTask

__all__ = [
    "BUDGETS",
    "CLASSES",
    "OUTPUTS",
    "SHAPE",
    "DenseEvaluator",
    "EncoderDecoder",
    "evaluator",
    "load",
    "predictor",
    "resnet",
    "unet",
    "untrained",
]

SHAPE = (3, 32, 32)
CLASSES = SHAPES
BUDGETS = fashion.BUDGETS
OUTPUTS = {"depth": 1, "segmentation": len(SEGMENTS)}
"""Channels of the dense predictors."""
MEAN, STD = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
"""Of the images in [0, 1], about."""
NORM_GROUPS = 4
SPREAD = 0.357
"""Root mean square of the images in [-1, 1]."""


def unet() -> Preconditioned:
    """The unconditional ADM U-Net, on images folded to 16x16x12 (1.2 M parameters).

    Its norms have 4 groups. ADM's 32 would be one per channel here and take every channel's mean
    and scale away, and with them the colours of the scene.
    """
    network = small_unet(12, 12, 32, (1, 2, 2), NORM_GROUPS)
    return Preconditioned(SpaceToDepth(network, factor=2), linear_schedule(), SPREAD)


def resnet(width: int = 16) -> ResNet:
    """The small ResNet of a width, with fresh weights."""
    return small_resnet(SHAPE[0], len(CLASSES), width)


class _Block(nn.Module):
    """Two convolutions with batch norms; named as a ResNet's are, for adapters to find."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class EncoderDecoder(nn.Module):
    """A small U-Net of plain convolutions and batch norms (arXiv 1505.04597), for dense maps.

    Args:
        outputs: channels of the prediction, which is unfolded from half the resolution.
        widths: of the encoder's stages, each at half the resolution of the one before.
    """

    def __init__(self, outputs: int, widths: tuple[int, ...] = (24, 48, 64)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            _Block(before, after, 2) for before, after in pairwise((3, *widths))
        )
        self.decoder = nn.ModuleList(
            _Block(below + beside, beside) for beside, below in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[0], 4 * outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, outputs, 32, 32)."""
        levels = [images]
        for block in self.encoder:
            levels.append(block(levels[-1]))
        x = levels[-1]
        for block, beside in zip(reversed(self.decoder), reversed(levels[1:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), beside], dim=1))
        return F.pixel_shuffle(self.head(x), 2)


def predictor(name: str) -> Predictor:
    """An off-the-shelf predictor, without its weights: ``resnet`` or a task of ``OUTPUTS``."""
    network = resnet() if name == "resnet" else EncoderDecoder(OUTPUTS[name])
    return Predictor(network, MEAN, STD, name=f"scenes/{name}")


def untrained(width: int) -> Predictor:
    """The ResNet of another width, with fresh weights."""
    return Predictor(resnet(width), MEAN, STD, name=f"scenes/resnet-{width}")


def evaluator() -> Evaluator:
    """The independent judge of class and feature extractor, with fresh weights."""
    return Evaluator(SHAPE[0], len(CLASSES))


class DenseEvaluator(nn.Module):
    """The independent judge of a dense task: residual dilated convolutions, no down-sampling.

    After context aggregation networks (arXiv 1511.07122), at half the resolution, to
    which images are folded, with group norms and SiLU.

    Args:
        outputs: channels of the prediction.
        width: of all layers.
        dilations: one layer each.
    """

    def __init__(
        self, outputs: int, width: int = 40, dilations: tuple[int, ...] = (1, 2, 3, 1, 2, 1)
    ) -> None:
        super().__init__()
        self.entry = nn.Conv2d(12, width, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, width), nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            )
            for dilation in dilations
        )  # fmt: skip
        self.exit = nn.Conv2d(width, 4 * outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) images in [-1, 1] -> (B, outputs, 32, 32)."""
        x = self.entry(F.pixel_unshuffle(images, 2))
        for layer in self.layers:
            x = x + layer(x)
        return F.pixel_shuffle(self.exit(F.silu(x)), 2)


def load() -> Setting:
    """The setting, with the weights that the repository ships.

    Raises:
        UserError: if there are none.
    """
    weights = ShippedWeights("scenes", SHAPE, unet, evaluator, "scenes-evaluator-64")
    return Setting(
        name="scenes",
        classes=CLASSES,
        predictors=("resnet",),
        denoiser=lru_cache(weights.denoiser),
        predictor=lambda name: weights.fill(predictor(name), name),
        untrained=untrained,
        extractor=lru_cache(weights.make_extractor),
        reference=lru_cache(weights.reference),
        fingerprint=weights.fingerprint(),
        tasks=_tasks(weights),
        order=TargetOrder(paired=True, from_seed=True),
        target_images=lambda numbers: torch.from_numpy(target_scenes(tuple(numbers)).images),
    )


def _tasks(weights: ShippedWeights) -> dict[str, GuidedTask]:
    """Selection: of the scales whose error is within 5 % of the least, that of the lowest FID."""

    def judge(outputs: int, file: str) -> Callable[[], nn.Module]:
        return lru_cache(lambda: cast(nn.Module, weights.fill(DenseEvaluator(outputs), file)))

    classes, depth, segmentation = ClassTask(), DepthTask(), SegmentationTask()
    return {
        "class": GuidedTask(
            task=classes,
            transferred=ClassTask,
            predictor="resnet",
            labelled=partial(labelled, "class"),
            targets=partial(numbered_targets, "class"),
            metrics={"accuracy": classes.score},
            selection=SelectionRule("accuracy", margin=0.05, relative=True),
            shown_at=0.6,
        ),
        "depth": GuidedTask(
            task=depth,
            transferred=lambda _: DepthTask(aligned=False),  # the teacher's scale is learned too
            predictor="depth",
            labelled=partial(labelled, "depth"),
            targets=partial(numbered_targets, "depth"),
            metrics={"depth_delta_1": depth.score, "depth_rmse": depth.errors},
            selection=SelectionRule(
                "depth_rmse", margin=0.05, relative=True, higher_is_better=False
            ),
            judge=judge(OUTPUTS["depth"], "depth-evaluator"),
            scale=20.0,
            shown_at=0.08,
        ),
        "segmentation": GuidedTask(
            task=segmentation,
            transferred=SegmentationTask,
            predictor="segmentation",
            labelled=partial(labelled, "segmentation"),
            targets=partial(numbered_targets, "segmentation"),
            metrics={"mean_iou": segmentation.score, "pixel_error": segmentation.errors},
            selection=SelectionRule(
                "pixel_error", margin=0.05, relative=True, higher_is_better=False
            ),
            judge=judge(OUTPUTS["segmentation"], "segmentation-evaluator"),
            scale=20.0,
            shown_at=0.12,
        ),
    }
