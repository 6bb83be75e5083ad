"""The fast path computes what the plain path says, compiles once and writes to nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ppap.compute.tracing import Traced
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.guide import State
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.solver import Sampler
from ppap.diffusion.stepping import plain_step
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.guidance.guides import Guide, LikelihoodGuide, SumOfGuides, naive_guide
from ppap.tasks.classes import ClassTask
from tests.ppap.experts.test_grouped import bank_of, transformer
from tests.ppap.networks import SHAPE, images, tiny_denoiser, tiny_predictor

COUNT = 6
TARGETS = torch.arange(COUNT) % 5
SAMPLERS = [DDIM(10), DDIM(10, eta=0.7, clip=False), DDPM(12), DDPM(12, "small")]


class Learned(nn.Module):
    """A smooth network with weights, whose second half of channels is a learned variance."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return torch.tanh(self.layer(x_t) + timesteps[:, None, None, None] / 1000)


def learned_denoiser() -> Denoiser:
    return Denoiser(Learned(), linear_schedule(1000), SHAPE, learned_variance=True)


def smooth_bank() -> ExpertBank:
    """Without kinks, at which rounding could turn a trajectory."""
    return bank_of(transformer(), Adapter((Biases(""), Lora(3, 2.0, "qkv|proj")))).eval()


def sampled(fast: FastPath | None, denoiser: Denoiser, sampler: Sampler, guide: Guide) -> Tensor:
    return sample(denoiser, COUNT, guide, sampler, batch=4, fast=fast)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("make", [tiny_denoiser, learned_denoiser])
def test_images_are_those_of_the_plain_path(make: Callable[[], Denoiser], sampler: Sampler) -> None:
    denoiser, guide = make(), smooth_bank().guide(TARGETS, 5.0)
    plain = sampled(None, denoiser, sampler, guide)
    fast = sampled(FastPath(denoiser, 4, compile=False), denoiser, sampler, guide)
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=0)
    unguided = sample(denoiser, COUNT, None, sampler, batch=4)
    assert (plain - unguided).abs().max() > 0.1


GUIDES: dict[str, Callable[[], Guide]] = {
    "experts, batch norms folded": lambda: (
        bank_of(tiny_predictor(), ppap_adapter(2, 2.0)).eval().guide(TARGETS, 3.0)
    ),
    "full experts": lambda: bank_of(tiny_predictor(), Adapter((Full(),))).eval().guide(TARGETS, 3),
    "naive": lambda: naive_guide(tiny_predictor(), ClassTask(), TARGETS, 2.0),
    "sum": lambda: SumOfGuides(
        (smooth_bank().guide(TARGETS, 3.0), naive_guide(transformer(), ClassTask(), TARGETS))
    ),
    "a function": lambda: LikelihoodGuide(
        lambda x, t: x.mean((2, 3)) * t[:, None], ClassTask(), TARGETS % 3, 2.0
    ),
}


@pytest.mark.parametrize("kind", GUIDES)
def test_one_step_is_that_of_the_plain_path(kind: str) -> None:
    denoiser, guide, sampler = tiny_denoiser(), GUIDES[kind](), DDIM(10)
    schedule = denoiser.schedule.respace(sampler.spacing)
    fast = FastPath(denoiser, COUNT, compile=False)
    x_t = images(COUNT)
    for index in (9, 5, 4, 0):
        t = torch.full((COUNT,), int(schedule.timesteps[index]))
        expected, found = (
            step(sampler, schedule, index, State(x_t, t, denoiser), guide, None, None)
            for step in (plain_step, fast.step)
        )
        for part in ("x", "x_0", "gradient"):
            torch.testing.assert_close(
                getattr(found, part), getattr(expected, part), atol=1e-4, rtol=1e-4
            )


def test_an_expert_that_trained_meanwhile_is_merged_again() -> None:
    bank, denoiser = smooth_bank(), tiny_denoiser()
    fast, guide = FastPath(denoiser, COUNT, compile=False), bank.guide(TARGETS, 5.0)
    before = sampled(fast, denoiser, DDIM(5), guide)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(0.3)
    bank.train().eval()
    after = sampled(fast, denoiser, DDIM(5), guide)
    plain = sampled(None, denoiser, DDIM(5), guide)
    torch.testing.assert_close(after, plain, atol=1e-4, rtol=0)
    assert (after - before).abs().max() > 1e-2


def test_nothing_is_written_into_bank_or_predictor() -> None:
    bank, denoiser = bank_of(tiny_predictor(), ppap_adapter(2, 2.0)).eval(), tiny_denoiser()
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    sampled(FastPath(denoiser, 4, compile=False), denoiser, DDIM(10), bank.guide(TARGETS, 3.0))
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_switching_experts_compiles_nothing_and_other_processes_find_the_graphs(
    tmp_path: Path,
) -> None:
    denoiser, guide = learned_denoiser(), smooth_bank().guide(TARGETS, 5.0)
    fast = FastPath(denoiser, 4, cache=tmp_path)
    found = sampled(fast, denoiser, DDIM(10), guide)
    assert fast.compilations == 2  # the denoiser's graph, and one gradient for five experts
    torch.testing.assert_close(found, sampled(None, denoiser, DDIM(10), guide), atol=1e-4, rtol=0)
    again = FastPath(learned_denoiser(), 4, cache=tmp_path)
    torch.testing.assert_close(
        sampled(again, again.denoiser, DDIM(10), smooth_bank().guide(TARGETS, 5.0)), found
    )
    assert again.compilations == 0


def test_every_input_of_a_graph_has_the_layout_it_was_compiled_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A package takes the strides of its examples for those of all inputs, and reads past them."""

    def package(
        traced: Traced, arguments: tuple[Any, ...], *_: object
    ) -> tuple[Callable[..., list[Tensor]], bool]:
        layouts = [tensor.stride() for tensor in tree_leaves(arguments)]

        def read(*inputs: Any) -> list[Tensor]:
            assert [tensor.stride() for tensor in tree_leaves(inputs)] == layouts
            return traced(*inputs)

        return read, True

    monkeypatch.setattr("ppap.fast.path.package", package)
    monkeypatch.setattr("ppap.fast.path.can_compile", lambda: True)
    denoiser, bank = learned_denoiser(), smooth_bank()
    path, noise = FastPath(denoiser, 4), images(4)
    for count, targets in ((4, [2]), (4, [0, 1, 2, 3]), (3, [2]), (3, [0, 1, 2])):
        for x_T in (noise, noise.mT, noise.to(memory_format=torch.channels_last)):  # noqa: N806
            guide = bank.guide(targets, 5.0)
            found, plain = (
                sample(denoiser, count, guide, DDIM(3), x_T=x_T[:count], fast=fast)
                for fast in (path, False)
            )
            torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)


def test_a_batch_that_is_too_large_is_refused() -> None:
    denoiser = tiny_denoiser()
    with pytest.raises(ValueError, match="up to 4 images, got 6"):
        sample(denoiser, 6, None, DDIM(5), fast=FastPath(denoiser, 4, compile=False))
