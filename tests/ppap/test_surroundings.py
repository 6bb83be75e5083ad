"""What a call is surrounded by changes nothing: default types, modes of gradients, checks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppap
from ppap.diffusion.schedule import linear_schedule
from ppap.fast.path import FastPath
from tests.ppap.networks import SHAPE, scrambled, tiny_predictor

COUNT = 3
SAMPLERS = (ppap.DDIM(4), ppap.DDPM(4), ppap.DPMSolver(4))


@contextmanager
def switched(switch: Callable[[Any], None], to: Any, back: Any) -> Iterator[None]:
    switch(to)
    try:
        yield
    finally:
        switch(back)


def default_type(dtype: torch.dtype) -> AbstractContextManager[None]:
    return switched(torch.set_default_dtype, dtype, torch.get_default_dtype())


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "a default device": lambda: torch.device("cpu"),
    "warnings are errors": lambda: warnings.catch_warnings(action="error"),
}


def plain_denoiser() -> ppap.Denoiser:
    """Whose network has no type of its own but the images'."""
    return ppap.Denoiser(lambda x, t: torch.tanh(0.9 * x), linear_schedule(), SHAPE)


def guided(bank: ppap.ExpertBank, sampler: ppap.Sampler, fast: bool) -> Tensor:
    denoiser = plain_denoiser()
    path = FastPath(denoiser, COUNT, compile=False) if fast else False
    return ppap.sample(denoiser, COUNT, bank.guide([2, 0, 1], 3.0), sampler, fast=path)


def trained(bank: ppap.ExpertBank) -> list[Tensor]:
    """After a few steps on images that are drawn anew."""
    denoiser = plain_denoiser()
    drawn = ppap.synthesize(denoiser, 8, ppap.DDIM(2), batch=4)
    ppap.transfer(bank, denoiser, drawn, training=ppap.Training(steps=8, batch=4))
    return [parameter.detach().clone() for parameter in bank.experts.parameters()]


def bank(trained_already: bool = True) -> ppap.ExpertBank:
    fresh = ppap.ExpertBank(tiny_predictor(), 2)
    return scrambled(fresh) if trained_already else fresh


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_samples_are_the_same_bit_for_bit(name: str) -> None:
    for sampler in SAMPLERS:
        for fast in (False, True):
            expected = guided(bank(), sampler, fast)
            own = bank()
            with SURROUNDINGS[name]():
                found = guided(own, sampler, fast)
            assert found.dtype == torch.float32
            assert torch.equal(found, expected), (sampler, fast)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_trainings_are_the_same_bit_for_bit(name: str) -> None:
    expected, own = trained(bank(trained_already=False)), bank(trained_already=False)
    with SURROUNDINGS[name]():
        found = trained(own)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_bank_of_inference_tensors_cannot_be_trained() -> None:
    with torch.inference_mode():
        made = bank(trained_already=False)
    with pytest.raises(ValueError, match="inference_mode"):
        trained(made)


def test_a_fresh_bank_is_the_same_under_another_default_type() -> None:
    predictor = tiny_predictor()
    with default_type(torch.float64):
        found = ppap.ExpertBank(predictor, 2)
    expected = bank(trained_already=False)
    for (name, ours), theirs in zip(
        found.experts.named_parameters(), expected.experts.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_no_images_are_float32_as_some_are(dtype: torch.dtype) -> None:
    denoiser = plain_denoiser()
    decoded = ppap.Denoiser(denoiser.network, denoiser.schedule, SHAPE, decode=nn.Conv2d(3, 3, 1))
    with default_type(dtype):
        assert ppap.sample(denoiser, []).dtype == torch.float32
        assert ppap.sample(decoded, []).dtype == torch.float32
