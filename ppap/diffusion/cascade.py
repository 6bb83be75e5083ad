"""Generation in stages: a small image, then up-samplers, each guided or not.

GLIDE (arXiv 2112.10741, section 4.1) goes from 64 to 256 pixels, DeepFloyd-IF likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppap.compute.options import check_whole
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import joined, sample, seed_list
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler
from ppap.diffusion.stepping import AnyGuide
from ppap.diffusion.streams import NoiseStreams, derived_seed
from ppap.files.images import from_uint8, to_uint8

__all__ = ["NoisedImages", "Stage", "eight_bit_images", "sample_cascade", "upsample"]

Condition = Callable[[Tensor, Sequence[int]], Mapping[str, Tensor]]
"""(images of the stage before: (B, C, h, w), a seed each) -> conditions of this stage."""


def eight_bit_images(images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Images as a file would hold them: what GLIDE's up-sampler was trained on."""
    del seeds
    return {"low_res": from_uint8(to_uint8(images))}


@dataclass(frozen=True)
class NoisedImages:
    """Images resized and noised, with the level: what DeepFloyd-IF's up-samplers want.

    Attributes:
        size: (H, W) of the stage.
        schedule: of the noise; the stage's ``image_noising_scheduler``
            (:func:`ppap.denoisers.diffusers_models.load_schedule`).
        level: the timestep to which they are noised; diffusers' default is 250.

    Raises:
        ValueError: for a size that is none, or a level outside the schedule.
    """

    size: tuple[int, int]
    schedule: Schedule
    level: int = 250

    def __post_init__(self) -> None:
        for side in self.size:
            check_whole("a side of the size", side)
        check_whole("the level", self.level, 0, int(self.schedule.timesteps[-1]))
        if self.level not in self.schedule.timesteps:
            raise ValueError(f"the schedule has no timestep {self.level}, which is to be the level")

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        resized = torch.nn.functional.interpolate(
            images, self.size, mode="bilinear", align_corners=True
        )
        level = torch.tensor([self.level])
        streams = NoiseStreams(
            [derived_seed(seed, self.level) for seed in seeds], resized.shape[1:]
        )
        noised = self.schedule.add_noise(resized, level, streams.draw())
        return {"low_res": noised, "noise_level": level}


@dataclass(frozen=True)
class Stage:
    """One stage of a cascade.

    Attributes:
        denoiser: an up-sampler's, unless the stage is the first.
        sampler: e.g. ``DDIM(25)``; GLIDE's up-sampler was published with ``DDIM("fast27")``.
        guide: steers this stage; its targets run parallel to the seeds, or one is for all.
        condition: how an up-sampler is conditioned on the images before it.
        batch: images per network call.

    Raises:
        ValueError: for a batch below 1.
    """

    denoiser: Denoiser
    sampler: Sampler
    guide: AnyGuide | None = None
    condition: Condition = eight_bit_images
    batch: int = 32

    def __post_init__(self) -> None:
        check_whole("a stage's batch", self.batch)


def sample_cascade(stages: Sequence[Stage], seeds: int | Sequence[int]) -> list[Tensor]:
    """Generate one image per seed and stage.

    Args:
        stages: smallest images first.
        seeds: one per image; a number n stands for 0, 1, ..., n - 1. An image depends on its own
            alone (and its conditions and targets). The first stage draws as
            :func:`ppap.diffusion.sampling.sample` would, later ones from seeds that follow from it.

    Returns:
        The images of every stage, (N, C, H, W) float32 in [-1, 1] on the CPU.

    Raises:
        ValueError: for no stage, and as :func:`ppap.diffusion.sampling.sample`.
    """
    if not stages:
        raise ValueError("a cascade needs a stage")
    seeds = seed_list(seeds)
    for stage in stages:  # the last one's are looked at before hours of the first
        _check_counts(stage, len(seeds))
    first, *others = stages
    outputs = [sample(first.denoiser, seeds, first.guide, first.sampler, batch=first.batch)]
    for place, stage in enumerate(others, start=1):
        outputs.append(upsample(stage, outputs[-1], seeds, place))
    return outputs


def upsample(stage: Stage, images: Tensor, seeds: int | Sequence[int], place: int = 1) -> Tensor:
    """One further stage of a cascade.

    Args:
        stage: the up-sampler.
        images: (N, C, h, w) in [-1, 1] of the stage before.
        seeds: of the first stage's images, or their number; this one's own follow from them.
        place: of the stage in the cascade, the first one's being 0.

    Returns:
        (N, C, H, W) float32 images in [-1, 1] on the CPU.

    Raises:
        ValueError: as :func:`sample_cascade`, and for another number of images than of seeds.
    """
    seeds = [derived_seed(seed, place) for seed in seed_list(seeds)]
    if len(images) != len(seeds):
        raise ValueError(
            f"{len(seeds)} seeds need as many images of the stage before, got {len(images)}"
        )
    _check_counts(stage, len(seeds))
    parts = []
    for start in range(0, len(seeds), stage.batch):  # conditions are made as they are needed
        rows = slice(start, start + stage.batch)
        conditions = stage.condition(images[rows], seeds[rows])
        denoiser = stage.denoiser.rows(rows).with_conditions(**conditions)
        guide = None if stage.guide is None else stage.guide.rows(rows)
        parts.append(sample(denoiser, seeds[rows], guide, stage.sampler, batch=stage.batch))
    return joined(parts, stage.denoiser)


def _check_counts(stage: Stage, count: int) -> None:
    """Refuse a stage whose targets or conditions are for another number of images."""
    for name, found in (
        ("targets", None if stage.guide is None else stage.guide.target_count),
        ("conditions", stage.denoiser.condition_count),
    ):
        if found not in (None, count):
            raise ValueError(f"{count} seeds, but {name} for {found} images")
