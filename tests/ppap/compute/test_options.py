"""Options of every kind are refused where they are given, in one line that says what is wanted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from ppap.diffusion.cascade import NoisedImages, Stage
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.diffusers_scheduler import DiffusersSampler
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import Schedule, cosine_schedule, linear_schedule
from ppap.diffusion.synthesis import synthesize
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Head, Norms
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training
from ppap.fast.path import FastPath
from ppap.guidance.guides import LikelihoodGuide, naive_guide
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.adam import AdamGuidance
from ppap.guidance.methods.elucd import CalibratedLogits
from ppap.guidance.wrappers import ClippedGradient, GradientReuse, GuidanceInterval, SignalWeighted
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import MixedPrecision
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import SHAPE, tiny_denoiser, tiny_predictor

SCHEDULE = linear_schedule()
DENOISER = tiny_denoiser()
GUIDE = naive_guide(lambda x: x.mean((2, 3)), ClassTask(), 0)
LIKELIHOOD = ImageLikelihood(lambda x: x.mean((2, 3)), ClassTask(), 0)


def scheduler() -> Any:
    return diffusers.schedulers.scheduling_ddim.DDIMScheduler()


REFUSED: dict[str, Callable[[], object]] = {
    "DDIM eta above 1": lambda: DDIM(eta=1.5),
    "DDIM eta below 0": lambda: DDIM(eta=-0.1),
    "DDIM eta NaN": lambda: DDIM(eta=math.nan),
    "DDIM eta in words": lambda: DDIM(eta="0"),
    "DDIM no steps": lambda: DDIM(0),
    "DDIM steps no integer": lambda: DDIM(25.0),
    "DDIM steps a truth value": lambda: DDIM(True),
    "DDIM no spacing": lambda: DDIM("often"),
    "DDIM an empty spacing": lambda: DDIM(""),
    "DDIM a spacing without number": lambda: DDIM("ddim"),
    "DDIM a spacing down to nothing": lambda: DDIM("8 to zero"),
    "DDIM a mixed spacing": lambda: DDIM("ddim8 to 80"),
    "DDIM a section without steps": lambda: DDIM("10,0,10"),
    "DDPM another variance": lambda: DDPM(fixed_variance="smal"),
    "DDPM negative steps": lambda: DDPM(-250),
    "DDPM no spacing": lambda: DDPM("250 steps"),
    "DPMSolver no steps": lambda: DPMSolver(0),
    "DPMSolver steps in words": lambda: DPMSolver("25"),
    "DPMSolver another spacing": lambda: DPMSolver(timestep_spacing="trailling"),
    "DPMSolver last below 0": lambda: DPMSolver(last=-1),
    "DiffusersSampler no steps": lambda: DiffusersSampler(scheduler(), 0),
    "sample no batch": lambda: sample(DENOISER, 2, batch=0),
    "sample a negative batch": lambda: sample(DENOISER, 2, batch=-8),
    "sample a negative number": lambda: sample(DENOISER, -3),
    "sample a half seed": lambda: sample(DENOISER, [0, 1.5]),
    "sample noise with NaN": lambda: sample(DENOISER, 1, x_T=torch.full((1, *SHAPE), math.nan)),
    "synthesize a negative count": lambda: synthesize(DENOISER, -1),
    "synthesize no batch": lambda: synthesize(DENOISER, 4, batch=0),
    "synthesize beyond all seeds": lambda: synthesize(DENOISER, 4, first_seed=2**32 - 3),
    "linear_schedule too short": lambda: linear_schedule(20),
    "linear_schedule no integer": lambda: linear_schedule(1000.0),
    "cosine_schedule beta of 1": lambda: cosine_schedule(max_beta=1.0),
    "Schedule timesteps that fall": lambda: Schedule(np.array([0.9, 0.5]), np.array([5, 3])),
    "Schedule negative timesteps": lambda: Schedule(np.array([0.9, 0.5]), np.array([-1, 3])),
    "Denoiser no network": lambda: Denoiser("unet.pt", SCHEDULE, SHAPE),
    "Denoiser a batch in the shape": lambda: Denoiser(nn.Identity(), SCHEDULE, (1, 3, 8, 8)),
    "Denoiser half a pixel": lambda: Denoiser(nn.Identity(), SCHEDULE, (3, 8.5, 8)),
    "NoisedImages beyond the schedule": lambda: NoisedImages((64, 64), SCHEDULE, 1000),
    "Stage no batch": lambda: Stage(DENOISER, DDIM(2), batch=0),
    "FastPath no batch": lambda: FastPath(DENOISER, 0),
    "GuidanceInterval half a timestep": lambda: GuidanceInterval(GUIDE, first=0.5),
    "GradientReuse half a step": lambda: GradientReuse(GUIDE, 1.5),
    "ClippedGradient no norm": lambda: ClippedGradient(GUIDE, None),
    "ClippedGradient a norm of 0": lambda: ClippedGradient(GUIDE, 0.0),
    "SignalWeighted no power": lambda: SignalWeighted(GUIDE, None),
    "ImageLikelihood a weight per image": lambda: ImageLikelihood(
        nn.Identity(), ClassTask(), 0, [1.0, 2.0]
    ),
    "AdamGuidance no decay": lambda: AdamGuidance(LIKELIHOOD, beta1=None),
    "CalibratedLogits no temperature": lambda: CalibratedLogits(marginal=None),
    "LikelihoodGuide no model": lambda: LikelihoodGuide("resnet50", ClassTask(), 0),
    "LikelihoodGuide no task": lambda: LikelihoodGuide(nn.Identity(), 207, 0),
    "ImageLikelihood no task": lambda: ImageLikelihood(nn.Identity(), None, 0),
    "Predictor no network": lambda: Predictor("resnet50"),
    "Predictor a mean of NaN": lambda: Predictor(nn.Identity(), (math.nan,), (0.5,)),
    "Predictor a std of infinity": lambda: Predictor(nn.Identity(), (0.5,), (math.inf,)),
    "Predictor one side": lambda: Predictor(nn.Identity(), size=(224,)),
    "Predictor no side": lambda: Predictor(nn.Identity(), size=(224, 0)),
    "MixedPrecision in float64": lambda: MixedPrecision(nn.Identity(), torch.float64),
    "Training steps no integer": lambda: Training(steps=3e5),
    "Training no batch": lambda: Training(batch=0),
    "Training a rate of 0": lambda: Training(learning_rate=0.0),
    "Training a rate of NaN": lambda: Training(learning_rate=math.nan),
    "Training a negative decay": lambda: Training(weight_decay=-0.05),
    "Training a negative seed": lambda: Training(seed=-1),
    "Training another start": lambda: Training(start="prevous"),
    "Lora no rank": lambda: Lora(0),
    "Lora half a rank": lambda: Lora(2.5),
    "Lora no alpha": lambda: Lora(alpha=0.0),
    "Lora alpha of infinity": lambda: Lora(alpha=math.inf),
    "Lora no pattern": lambda: Lora(layers="(conv"),
    "Lora layers as a list": lambda: Lora(layers=["conv1"]),
    "Biases no pattern": lambda: Biases("*bias"),
    "Norms no pattern": lambda: Norms("bn["),
    "Head no pattern": lambda: Head("(fc"),
    "Peft another method": lambda: Peft("lorra"),
    "Peft a negative alpha": lambda: Peft(alpha=-8.0),
    "NoiseRanges half a timestep": lambda: NoiseRanges((0, 0.5, 1000)),
    "NoiseRanges no expert": lambda: NoiseRanges.equal(0),
    "ExpertBank half an expert": lambda: ExpertBank(tiny_predictor(), 2.5),
    "ExpertBank no expert": lambda: ExpertBank(tiny_predictor(), 0),
    "ExpertBank more than timesteps": lambda: ExpertBank(tiny_predictor(), 5, steps=3),
    "ClassTask infinite temperature": lambda: ClassTask(math.inf),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_option_is_refused_where_it_is_given(case: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        REFUSED[case]()
    said = str(error.value)
    assert "\n" not in said
    assert re.search("got|choose|must|need|expression|finite|write|run from", said)


@pytest.mark.parametrize(
    "steps", [1, 25, 1000, np.int64(5), "7", "ddim25", "10,15,20", "fast27", "8 to 80", "linspace9"]
)
def test_every_spacing_that_a_schedule_keeps_to_is_taken(steps: Any) -> None:
    assert len(DDIM(steps).respace(SCHEDULE)) == len(SCHEDULE.respace(DDIM(steps).spacing))
