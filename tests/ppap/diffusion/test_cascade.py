"""Stages: seeds, conditions and guides reach the stage that they are for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.denoisers.catalogue import DENOISERS
from ppap.diffusion.cascade import NoisedImages, Stage, eight_bit_images, sample_cascade, upsample
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import cosine_schedule, linear_schedule
from ppap.diffusion.streams import NoiseStreams, derived_seed
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.classes import ClassTask
from tests.golden.check import fill
from tests.ppap.networks import tiny_denoiser

SMALL: dict[str, Any] = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_head_channels": 32,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "text_ctx": 4,
    "xf_width": 32,
    "xf_layers": 1,
    "xf_heads": 2,
    "n_vocab": 7,
}
SEEDS = [3, 1, 4]


def glide(name: str, size: int) -> Denoiser:
    flags = dataclasses.replace(DENOISERS[name].flags, **SMALL, image_size=size)
    network = flags.network().eval().requires_grad_(False)
    network.load_state_dict({k: fill(k, v.shape) for k, v in network.state_dict().items()})
    return flags.denoiser(network)


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return [
        Stage(glide("glide-base", 8), DDPM(3)),
        Stage(glide("glide-upsampler", 16), DDIM(5)),
    ]


class Mean(nn.Module):
    """Logits of two classes, by the brightness of the image at any size and timestep."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] * torch.tensor([-20.0, 20.0])


def guide(scale: float) -> LikelihoodGuide:
    return LikelihoodGuide(Mean(), ClassTask(), torch.tensor([1, 0, 1]), scale)


def test_each_image_depends_on_its_own_seed_alone(stages: list[Stage]) -> None:
    small, large = sample_cascade(stages, SEEDS)
    assert small.shape == (3, 3, 8, 8)
    assert large.shape == (3, 3, 16, 16)
    first = stages[0]
    assert torch.equal(small, sample(first.denoiser, SEEDS, None, first.sampler))
    other = [dataclasses.replace(stage, batch=2) for stage in stages]
    for whole, parts in zip((small, large), sample_cascade(other, SEEDS), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-3)
    swapped = sample_cascade(stages, SEEDS[::-1])[1].flip(0)
    torch.testing.assert_close(swapped, large, rtol=1e-3, atol=1e-3)


def test_the_second_stage_sees_the_first_in_eight_bits() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, t: Tensor, low_res: Tensor) -> Tensor:
            seen.append(low_res)
            return x

    upsampler = Denoiser(Spy(), linear_schedule(), (3, 16, 16))
    small, _ = sample_cascade([Stage(tiny_denoiser(), DDIM(5)), Stage(upsampler, DDIM(2))], SEEDS)
    levels = (seen[0] + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (seen[0] - small).abs().max() <= 0.5 / 127.5 + 1e-6


def test_a_number_stands_for_so_many_seeds() -> None:
    def blend(x: Tensor, t: Tensor, low_res: Tensor) -> Tensor:
        return torch.tanh(x) + torch.nn.functional.interpolate(low_res, scale_factor=2)

    upsampler = Stage(Denoiser(blend, linear_schedule(), (3, 16, 16)), DDIM(2))
    stages = [Stage(tiny_denoiser(), DDIM(2)), upsampler]
    small, large = sample_cascade(stages, [0, 1])
    for numbered, listed in zip(sample_cascade(stages, 2), (small, large), strict=True):
        assert torch.equal(numbered, listed)
    assert torch.equal(upsample(upsampler, small, 2), large)
    with pytest.raises(TypeError, match="seeds are a number or a sequence"):
        sample_cascade(stages, 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("guided", [0, 1])
def test_a_guide_steers_its_own_stage(stages: list[Stage], guided: int) -> None:
    def with_guide(scale: float) -> list[Stage]:
        return [
            dataclasses.replace(stage, guide=guide(scale) if place == guided else None)
            for place, stage in enumerate(stages)
        ]

    free = sample_cascade(stages, SEEDS)
    steered = sample_cascade(with_guide(100.0), SEEDS)
    rise = (steered[guided] - free[guided]).mean((1, 2, 3))
    assert (rise * torch.tensor([1, -1, 1]) > 0.05).all()
    if guided:
        assert torch.equal(steered[0], free[0])
    for still, unguided in zip(sample_cascade(with_guide(0.0), SEEDS), free, strict=True):
        torch.testing.assert_close(still, unguided, rtol=1e-3, atol=1e-3)


def test_noised_images_have_the_levels_signal_and_noise_of_their_own() -> None:
    schedule = cosine_schedule()
    images = torch.full((64, 3, 8, 8), 0.5)
    told = NoisedImages((32, 32), schedule, level=300)(images, range(64))
    level = schedule.alphas_cumprod[300]
    assert told["noise_level"].tolist() == [300]
    assert told["low_res"].shape == (64, 3, 32, 32)
    assert told["low_res"].mean().item() == pytest.approx(0.5 * level**0.5, abs=0.01)
    assert told["low_res"].var().item() == pytest.approx(1 - level, rel=0.02)
    again = NoisedImages((32, 32), schedule, level=300)(images[:1], [63])
    assert torch.equal(again["low_res"][0], told["low_res"][63])


def test_noised_images_are_resized_corner_to_corner_under_noise_that_no_stage_draws() -> None:
    """As diffusers resizes them; a stage's own noise is that of its seed alone."""
    schedule, seeds = linear_schedule(), [3, 4]
    small = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = NoisedImages((9, 7), schedule, level=300)(small, seeds)["low_res"]
    large = F.interpolate(small, (9, 7), mode="bilinear", align_corners=True)
    level = schedule.alphas_cumprod[300]
    noise = (found - math.sqrt(level) * large) / math.sqrt(1 - level)
    own = [derived_seed(seed, 300) for seed in seeds]
    torch.testing.assert_close(noise, NoiseStreams(own, (3, 9, 7)).draw(), rtol=0, atol=1e-5)


def test_conditions_are_made_of_the_images_and_seeds_of_a_batch() -> None:
    seen: list[tuple[Tensor, list[int]]] = []

    def condition(images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        seen.append((images, list(seeds)))
        return {}

    denoiser = Denoiser(lambda x, t: x, linear_schedule(), (3, 16, 16))
    small = torch.rand(3, 3, 8, 8)
    upsample(Stage(denoiser, DDIM(2), condition=condition, batch=2), small, SEEDS)
    own = [derived_seed(seed, 1) for seed in SEEDS]
    assert [seeds for _, seeds in seen] == [own[:2], own[2:]]
    assert torch.equal(torch.cat([images for images, _ in seen]), small)


def test_eight_bit_images_keep_the_ends() -> None:
    ends = torch.tensor([[-1.0, 0.0, 1.0]])
    assert eight_bit_images(ends, [0])["low_res"].tolist()[0] == pytest.approx(
        [-1, 1 / 255, 1], abs=1e-6
    )


def test_targets_and_conditions_must_match_the_seeds(stages: list[Stage]) -> None:
    first, second = stages
    wrong = dataclasses.replace(second, guide=guide(1.0))
    with pytest.raises(ValueError, match="2 seeds, but targets for 3 images"):
        sample_cascade([first, wrong], SEEDS[:2])
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    told = second.denoiser.with_conditions(tokens=tokens, mask=tokens.bool())
    with pytest.raises(ValueError, match="2 seeds, but conditions for 3 images"):
        sample_cascade([first, dataclasses.replace(second, denoiser=told)], SEEDS[:2])
    with pytest.raises(ValueError, match="needs a stage"):
        sample_cascade([], SEEDS)


def test_each_seed_has_an_image_of_the_stage_before() -> None:
    """Of one image in the last batch its seeds would all make theirs."""
    stage = Stage(tiny_denoiser(), DDIM(2), condition=lambda images, seeds: {}, batch=2)
    for count in (3, 5):
        with pytest.raises(ValueError, match=f"^4 seeds need as many images .*, got {count}$"):
            upsample(stage, torch.zeros(count, 3, 4, 4), 4)


def test_a_mistake_in_a_later_stage_is_named_before_the_first_is_drawn() -> None:
    def network(x_t: Tensor, timesteps: Tensor) -> Tensor:
        pytest.fail("it was drawn")

    first = Stage(Denoiser(network, linear_schedule(), (3, 8, 8)), DDIM(2))
    with pytest.raises(ValueError, match="2 seeds, but targets for 3 images"):
        sample_cascade([first, Stage(tiny_denoiser(), DDIM(2), guide(1.0))], 2)


def test_one_caption_for_all_goes_through_the_fast_path(stages: list[Stage]) -> None:
    tokens = torch.tensor([[1, 2, 6, 6]])
    denoiser = stages[0].denoiser.with_conditions(tokens=tokens, mask=tokens < 6)
    fast = FastPath(denoiser, 3, compile=False)
    plain, other = (sample(denoiser, SEEDS, None, DDIM(5), fast=path) for path in (False, fast))
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, sample(stages[0].denoiser, SEEDS, None, DDIM(5)), atol=1e-2)


def test_sampling_wants_conditions_for_its_seeds_and_a_plain_path() -> None:
    def network(x_t: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        return x_t + y[:, None, None, None]

    denoiser = Denoiser(network, linear_schedule(), (3, 8, 8)).with_conditions(y=[0, 1, 0])
    with pytest.raises(ValueError, match="2 seeds, but conditions for 3 images"):
        sample(denoiser, SEEDS[:2], None, DDIM(5))
    with pytest.raises(ValueError, match="fast=False"):
        sample(denoiser, SEEDS, None, DDIM(5), fast=True)
