r"""A setting: upright and level stripes of 16x16 pixels, with networks that need no training.

    python -m ablations run methods --plugin ablations.examples.stripes --setting stripes \
        --rows unguided naive

The denoiser is exact for its 16 images, the predictor compares with all of them, and the judge's
features are the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from ablations.settings.plugins import digest_of_code, setting
from ablations.settings.setting import GuidedTask, SelectionRule, Setting, Split
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import linear_schedule
from ppap.evaluation.features import Features
from ppap.evaluation.metrics import correct
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.images import to_uint8
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask

CLASSES, PHASES, SIZE = ("upright", "level"), 8, 16


def images() -> Tensor:
    """(16, 1, 16, 16) in [-1, 1]: eight phases of upright stripes, then of level ones."""
    phases = torch.arange(PHASES) / PHASES
    places = torch.arange(SIZE) / PHASES
    waves = torch.sin(2 * torch.pi * (places + phases[:, None]))
    upright = waves[:, None, None, :].expand(-1, 1, SIZE, SIZE)
    return torch.cat([upright, upright.transpose(2, 3)])


class Exact(nn.Module):
    """The mean of the images given x_t: the denoiser of least error."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("images", images())
        self.register_buffer("signals", torch.as_tensor(linear_schedule().alphas_cumprod))

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """(B, 1, 16, 16) and (B,) timesteps -> (B, 1, 16, 16), the predicted images."""
        signal = self.signals[timesteps].to(x_t)[:, None]
        apart = (x_t[:, None] - signal.sqrt()[..., None, None, None] * self.images).pow(2)
        weights = (-apart.sum((2, 3, 4)) / (2 * (1 - signal))).softmax(1)
        return torch.einsum("bn,nchw->bchw", weights, self.images)


class Nearest(nn.Module):
    """How near an image is to those of each class, which training may move."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Parameter(images())

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) in [-1, 1] -> (B, 2) logits."""
        near = -(x[:, None] - self.images).pow(2).sum((2, 3, 4)) / SIZE
        return near.unflatten(1, (len(CLASSES), PHASES)).logsumexp(2)


class Pixels:
    """The judge: 64 means of pixels, and the nearest class."""

    name = "stripes-pixels-64"

    def __call__(self, x: Tensor) -> Features:
        """Of (N, 1, 16, 16) images in [-1, 1]."""
        return Features(nn.functional.avg_pool2d(x, 2).flatten(1), Nearest()(x), self.name)


def predictor(name: str) -> Predictor:
    """The only one there is; its images are not normalised further."""
    return Predictor(Nearest(), (0.5,), (0.5,), name=f"stripes/{name}").eval()


def labelled(split: Split) -> tuple[Tensor, Tensor]:
    """The same images in both splits."""
    del split
    return to_uint8(images()), torch.arange(len(CLASSES)).repeat_interleave(PHASES)


def targets(numbers: Sequence[int]) -> Tensor:
    """Classes in turn."""
    return torch.tensor(numbers) % len(CLASSES)


@setting("stripes")
def load() -> Setting:
    """All that an experiment needs; what is not given here has a default."""
    guided = GuidedTask(
        task=ClassTask(),
        transferred=ClassTask,
        predictor="nearest",
        labelled=labelled,
        targets=targets,
        metrics={"accuracy": correct},
        selection=SelectionRule("accuracy", margin=0.02),
    )
    return Setting(
        name="stripes",
        classes=CLASSES,
        predictors=("nearest",),
        denoiser=lru_cache(
            lambda: Denoiser(Exact(), linear_schedule(), (1, SIZE, SIZE), target="x_0").eval()
        ),
        predictor=predictor,
        untrained=lambda width: predictor(f"nearest-{width}"),
        extractor=Pixels,
        reference=lru_cache(lambda: ReferenceStatistics.of(Pixels(), images())),
        fingerprint=digest_of_code([__file__]),
        tasks={"class": guided},
    )
