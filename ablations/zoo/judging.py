"""What is said of a denoiser's unguided samples, on features with and without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ablations.settings.shipped import EvaluatorExtractor
from ppap.compute.precision import Precision
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, module_device
from ppap.evaluation.features import extract
from ppap.evaluation.metrics import fid, frechet_distance
from ppap.evaluation.reference import Floats, ReferenceStatistics, moments
from ppap.fast.sampling import sample

__all__ = ["PixelComponents", "UnguidedJudge", "drawn"]

COMPONENTS = 64
SURE = 0.9
"""Probability of its first class from which a judge is called sure."""
FIRST_SEED = 4 * 10**9


@dataclass(frozen=True, eq=False)
class PixelComponents:
    """Principal components of images' pixels, which know nothing of labels or networks.

    Attributes:
        axes: (C H W, 64) orthonormal.
        mean: (64,) float64, of the reference images along them.
        covariance: (64, 64) float64, of the reference images.
    """

    axes: Tensor
    mean: Floats
    covariance: Floats

    @staticmethod
    def of(training: Tensor, reference: Tensor) -> PixelComponents:
        """Axes from training images, moments from reference images: (N, C, H, W) in [-1, 1]."""
        flat = training.flatten(1)
        _, vectors = torch.linalg.eigh(flat.T.cov())
        axes = vectors[:, -COMPONENTS:].contiguous()
        return PixelComponents(axes, *moments((reference.flatten(1) @ axes).double()))

    def distance(self, images: Tensor) -> float:
        """Squared Frechet distance of (N, C, H, W) images in [-1, 1] to the reference's."""
        found = moments((images.flatten(1) @ self.axes).double())
        return frechet_distance(*found, self.mean, self.covariance)


@dataclass(frozen=True, eq=False)
class UnguidedJudge:
    """Three figures of generated images, beside those of as many training images.

    Attributes:
        extractor: the setting's evaluator.
        reference: of the test images.
        components: of the test images' pixels.
    """

    extractor: EvaluatorExtractor
    reference: ReferenceStatistics
    components: PixelComponents

    def figures(self, images: Tensor) -> dict[str, float]:
        """FID, distance of pixels, and share that the judge is sure of."""
        features = extract(self.extractor, images)
        sure = features.logits.softmax(1).amax(1) > SURE
        return {
            "fid": round(fid(features, self.reference), 4),
            "pixel_distance": round(self.components.distance(images), 4),
            "sure": round(float(sure.float().mean()), 4),
        }


def drawn(denoiser: Denoiser, count: int, precision: Precision, first: int = FIRST_SEED) -> Tensor:
    """(N, C, H, W) unguided samples of DDIM-25, in [-1, 1]; each of its row of conditions."""
    seeds: Sequence[int] = range(first, first + count)
    batch = 1000 if module_device(denoiser).type == "cuda" else 128
    return sample(denoiser, seeds, None, DDIM(25), batch=batch, precision=precision, fast=False)
