"""Guides in diffusers' pipelines, and its schedulers here: the same images either way."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    RePaintScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.diffusers_scheduler import DiffusersSampler, UnknownSchedulerError
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.guide import Guide
from ppap.diffusion.sampling import Step, sample
from ppap.diffusion.schedule import Schedule, linear_schedule
from ppap.diffusion.streams import NoiseStreams
from ppap.guidance.diffusers_pipeline import GuidedScheduler
from ppap.guidance.guides import LikelihoodGuide
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.x0_gradient import X0Gradient
from ppap.guidance.wrappers import GradientReuse, GuidanceInterval
from ppap.tasks.classes import ClassTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation",  # diffusers', of numpy 2
    "ignore:__array_wrap__ must accept",
)

SEEDS, STEPS = [3, 4, 5], 8
KINDS = {"epsilon": "epsilon", "sample": "x_0", "v_prediction": "v"}


def unet(channels: int = 3) -> UNet2DModel:
    torch.manual_seed(0)
    return (
        UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=channels,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            layers_per_block=1,
        )
        .eval()
        .requires_grad_(False)
    )


def denoiser(kind: str = "epsilon", channels: int = 3) -> Denoiser:
    target: Any = KINDS[kind]
    return Denoiser(unet(channels), linear_schedule(), (3, 8, 8), target, channels == 6)


def guide(scale: Any = 20.0) -> LikelihoodGuide:
    return LikelihoodGuide(lambda x, t: x.mean((2, 3)).tanh(), ClassTask(), [0, 2, 1], scale)


def scheduler(kind: type, **options: Any) -> Any:
    return kind(beta_start=1e-4, beta_end=0.02, **options)


def piped(pipeline: Any, steps: int = STEPS) -> Tensor:
    """A pipeline's images, from the noise of our seeds."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(
        len(SEEDS), generator=generators, num_inference_steps=steps, output_type="pt"
    ).images
    return 2 * torch.as_tensor(images) - 1


@torch.no_grad()
def stepped(scheduler: Any, **options: Any) -> Tensor:
    """Images by the loop that diffusers documents, for schedulers that no pipeline here takes."""
    network, x = unet(), NoiseStreams(SEEDS, (3, 8, 8)).draw()
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x, **options).prev_sample
    return x.clamp(-1, 1)


EXACT: list[tuple[Any, Any, int]] = [
    (scheduler(DDPMScheduler, clip_sample=True), DDPM("ddim8", "small"), 3),
    (scheduler(DDPMScheduler, clip_sample=False), DDPM("ddim8", "small", clip=False), 3),
    (scheduler(DDPMScheduler, variance_type="learned_range"), DDPM("ddim8"), 6),
    (scheduler(DDIMScheduler, clip_sample=True), DDIM(8), 3),
    (scheduler(DDIMScheduler, clip_sample=False), DDIM(8, clip=False), 3),
    (
        scheduler(DDIMScheduler, clip_sample=False, prediction_type="v_prediction"),
        DDIM(8, clip=False),
        3,
    ),
    (scheduler(DPMSolverMultistepScheduler), DPMSolver(8, clip=False), 3),
    (
        scheduler(DPMSolverMultistepScheduler, prediction_type="sample"),
        DPMSolver(8, clip=False),
        3,
    ),
]


@pytest.mark.parametrize(("theirs", "ours", "channels"), EXACT)
def test_a_pipelines_images_are_our_own(theirs: Any, ours: Any, channels: int) -> None:
    kind = theirs.config.prediction_type
    pipeline = DDPMPipeline(unet(channels), GuidedScheduler(theirs, guide()))
    found = piped(pipeline)
    own = denoiser(kind, channels)
    expected = sample(own, SEEDS, guide(), ours)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (expected - sample(own, SEEDS, None, ours)).abs().max() > 0.01


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_a_predicted_image_is_held_in_the_schedulers_own_range(kind: type) -> None:
    """One that clips nothing changes nothing, and one of 0.5 what is beyond it."""

    def drawn(g: Guide | None, **options: Any) -> tuple[Tensor, Tensor]:
        steps: list[Step] = []
        sampler = DiffusersSampler(scheduler(kind, **options), STEPS)
        sample(denoiser(), SEEDS, g, sampler, on_step=steps.append)
        return steps[-1].x, torch.stack([step.x_0 for step in steps])

    for g in (None, guide(1e-6)):
        free, wide, narrow = (
            drawn(g, clip_sample=False),
            drawn(g, clip_sample_range=1000.0),
            drawn(g, clip_sample_range=0.5),
        )
        torch.testing.assert_close(wide, free, rtol=0, atol=1e-4)
        assert free[1].abs().max() > 1.5
        assert narrow[1].abs().max() == pytest.approx(0.5, abs=1e-4)


def test_under_clipping_a_tiny_scale_is_none_if_ddim_takes_the_noise_of_the_clipped_image() -> None:
    theirs = scheduler(DDIMScheduler, clip_sample=True)
    tiny = GuidedScheduler(theirs, guide(1e-6))
    free, steered = (stepped(one, use_clipped_model_output=True) for one in (theirs, tiny))
    torch.testing.assert_close(steered, free, rtol=0, atol=1e-4)
    assert not torch.allclose(stepped(tiny), stepped(theirs), atol=0.01)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("seeded", [False, True])
def test_under_clipping_too_an_image_of_scale_0_is_unguided_whatever_is_beside_it(
    eta: float, seeded: bool
) -> None:
    def drawn(theirs: Any) -> Tensor:
        torch.manual_seed(1)
        own = [torch.Generator().manual_seed(seed) for seed in SEEDS] if seeded else None
        return stepped(theirs, eta=eta, generator=own)

    theirs = scheduler(DDIMScheduler, clip_sample=True)
    free, all_of_them = drawn(theirs), drawn(GuidedScheduler(theirs, guide()))
    found = drawn(GuidedScheduler(theirs, guide([0.0, 20.0, 0.0])))
    torch.testing.assert_close(found[[0, 2]], free[[0, 2]], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], all_of_them[1], rtol=0, atol=1e-4)
    assert (free - all_of_them).abs().amax((1, 2, 3)).min() > 0.01


def test_our_samples_by_a_clipping_scheduler_depend_on_no_other_samples_scale() -> None:
    sampler = DiffusersSampler(scheduler(DDIMScheduler, clip_sample=True), STEPS)
    mixed = guide([0.0, 20.0, 0.0])
    together = sample(denoiser(), SEEDS, mixed, sampler)
    torch.testing.assert_close(
        together, sample(denoiser(), SEEDS, mixed, sampler, batch=1), rtol=0, atol=1e-4
    )


def test_a_ddim_pipeline_takes_it_after_it_is_made() -> None:
    pipeline = DDIMPipeline(unet(), scheduler(DDIMScheduler, clip_sample=False))
    pipeline.scheduler = GuidedScheduler(pipeline.scheduler, guide())
    torch.testing.assert_close(
        piped(pipeline), sample(denoiser(), SEEDS, guide(), DDIM(8, clip=False)), rtol=0, atol=1e-4
    )


def test_no_other_scheduler_is_made_of_its_configuration_without_a_word() -> None:
    plain = scheduler(DDIMScheduler, clip_sample=False)
    guided = GuidedScheduler(plain, guide())
    with pytest.raises(TypeError, match=r"set pipeline.scheduler after"):
        DDIMPipeline(unet(), guided)
    for config in (guided.config, copy.deepcopy(guided.config)):
        with pytest.raises(TypeError, match="has no guide"):
            DPMSolverMultistepScheduler.from_config(config)
        assert dict(config) == dict(plain.config)
        assert config.prediction_type == config.get("prediction_type") == "epsilon"
    assert DDIMScheduler.from_config(guided.scheduler.config).config == plain.config


WRAPPED: dict[str, Any] = {
    "interval": lambda: GuidanceInterval(guide(), 200, 700),
    "reuse": lambda: GradientReuse(guide(), 3),
    "scale of the noise level": lambda: guide(lambda signal: 30 * signal.sqrt()),
    "through the denoiser": lambda: X0Gradient(
        ImageLikelihood(lambda x: x.mean((2, 3)).tanh(), ClassTask(), 2), 5.0
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_every_guide_works_there_and_a_second_call_starts_anew(kind: str) -> None:
    make: Guide = WRAPPED[kind]()
    theirs = scheduler(DDIMScheduler, clip_sample=False)
    pipeline = DDPMPipeline(unet(), GuidedScheduler(theirs, make, denoiser()))
    expected = sample(denoiser(), SEEDS, make, DDIM(8, clip=False))
    for _ in range(2):
        torch.testing.assert_close(piped(pipeline), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_pipeline_may_be_called_in_inference_mode(kind: str) -> None:
    theirs = scheduler(DDIMScheduler, clip_sample=False)
    pipeline = DDPMPipeline(unet(), GuidedScheduler(theirs, WRAPPED[kind](), denoiser()))
    with torch.inference_mode():
        found = piped(pipeline)
    torch.testing.assert_close(found, piped(pipeline), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("small", [1.0, 1e-9])
def test_a_pipeline_in_half_precision_is_guided_in_float32(kind: type, small: float) -> None:
    noise, x = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    classify = LikelihoodGuide(
        lambda x, t: small * x.mean((2, 3)), ClassTask(), [0, 2, 1], 500 / small
    )

    def stepped(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        guided = GuidedScheduler(scheduler(kind), classify)
        guided.set_timesteps(4)
        t = guided.timesteps[0]
        x_next, x_0 = guided.step(noise.to(dtype), t, x.to(dtype), return_dict=False)
        return x_next, x_0

    for found, expected in zip(stepped(torch.float16), stepped(torch.float32), strict=True):
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, expected.half(), rtol=2e-3, atol=0)


def test_a_guide_that_needs_the_network_or_other_targets_says_so() -> None:
    through = X0Gradient(ImageLikelihood(lambda x: x.mean((2, 3)), ClassTask(), 2))
    theirs = scheduler(DDIMScheduler)
    with pytest.raises(ValueError, match="give GuidedScheduler the pipeline's denoiser"):
        piped(DDPMPipeline(unet(), GuidedScheduler(theirs, through)))
    two = LikelihoodGuide(lambda x, t: x.mean((2, 3)), ClassTask(), [0, 1])
    with pytest.raises(ValueError, match="draws 3 images, the guide has targets for 2"):
        piped(DDPMPipeline(unet(), GuidedScheduler(theirs, two)))


@pytest.mark.parametrize(
    "theirs",
    [
        scheduler(DDIMScheduler, clip_sample=False),
        scheduler(DPMSolverMultistepScheduler, timestep_spacing="trailing"),
        scheduler(DPMSolverMultistepScheduler, prediction_type="v_prediction"),
        scheduler(UniPCMultistepScheduler),
        scheduler(DEISMultistepScheduler),
    ],
)
def test_their_scheduler_as_a_sampler_gives_their_pipelines_images(theirs: Any) -> None:
    own, sampler = denoiser(theirs.config.prediction_type), DiffusersSampler(theirs, STEPS)
    free, steered = (sample(own, SEEDS, g, sampler, batch=2) for g in (None, guide()))
    torch.testing.assert_close(free, stepped(theirs), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        steered, stepped(GuidedScheduler(theirs, guide())), rtol=0, atol=1e-4
    )
    assert (steered - free).abs().max() > 0.01


def test_their_noise_follows_our_seeds() -> None:
    sampler = DiffusersSampler(scheduler(DDPMScheduler), STEPS)
    together = sample(denoiser(), SEEDS, guide(), sampler)
    apart = sample(denoiser(), SEEDS, guide(), sampler, batch=1)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_a_denoiser_that_is_not_of_the_pipelines_network_is_refused() -> None:
    """What is differentiated would be another image than the one the scheduler steps towards."""
    v = scheduler(DDIMScheduler, prediction_type="v_prediction")
    GuidedScheduler(v, guide(), denoiser("v_prediction"))
    with pytest.raises(
        ValueError, match=r"predicts 'v_prediction', the denoiser's 'epsilon'.*'v'$"
    ):
        GuidedScheduler(v, guide(), denoiser())
    with pytest.raises(ValueError, match="not those that the denoiser was trained on"):
        GuidedScheduler(DDIMScheduler(beta_end=0.05), guide(), denoiser())


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_scheduler_of_fixed_variance_guides_by_it_a_network_that_has_learned_one(
    variance: str,
) -> None:
    both = denoiser(channels=6)
    alone = Denoiser(lambda x, t: both.network(x, t).sample[:, :3], both.schedule, both.shape)
    sampler = DiffusersSampler(scheduler(DDPMScheduler, variance_type=variance), STEPS)
    found, expected = (sample(one, SEEDS, guide(), sampler) for one in (both, alone))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_other_families_are_refused_in_one_line() -> None:
    for wrong in (
        FlowMatchEulerDiscreteScheduler(),
        LCMScheduler(),
        EulerDiscreteScheduler(),
        scheduler(DPMSolverMultistepScheduler, use_karras_sigmas=True),
        scheduler(DDIMScheduler, thresholding=True),
        scheduler(UniPCMultistepScheduler, use_flow_sigmas=True),
        scheduler(DDIMScheduler, rescale_betas_zero_snr=True),
        scheduler(RePaintScheduler),
        CogVideoXDPMScheduler(rescale_betas_zero_snr=False),
    ):
        for refuse in (lambda: DiffusersSampler(wrong, 8), lambda: GuidedScheduler(wrong, guide())):  # noqa: B023
            with pytest.raises(UnknownSchedulerError, match=type(wrong).__name__) as error:
                refuse()
            assert "\n" not in str(error.value)
    with pytest.raises(UnknownSchedulerError, match="repeat"):
        sample(denoiser(), 1, None, DiffusersSampler(scheduler(PNDMScheduler), 8))
    with pytest.raises(ValueError, match="not those that the denoiser was trained on"):
        sample(denoiser(), 1, None, DiffusersSampler(DDIMScheduler(beta_end=0.05), 8))
    levels = linear_schedule().alphas_cumprod
    from_1 = Denoiser(unet(), Schedule(levels, np.arange(1, 1001)), (3, 8, 8))
    with pytest.raises(ValueError, match="not those that the denoiser was trained on"):
        sample(from_1, 1, None, DiffusersSampler(scheduler(DDIMScheduler), 8))
