"""Sampling leaves networks, statistics and its own x_t alone, and what they are left in leaves it.

Networks in training mode, networks that compute in place, models called from several threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.diffusion.stepping import Stepper, plain_step
from ppap.diffusion.synthesis import synthesize
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.x0_gradient import X0Gradient
from ppap.guidance.wrappers import GuidanceInterval
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.targets import targets_of_images
from tests.ppap.networks import SHAPE, images, scrambled, tiny_denoiser, tiny_predictor

SCHEDULE = linear_schedule()


class Noisy(nn.Module):
    """Dropout and batch statistics: two calls in training mode differ."""

    def __init__(self, outputs: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.3)
        self.head = nn.Linear(3, outputs) if outputs else None

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        x = self.drop(self.norm(self.conv(x))).tanh()
        return x if self.head is None else self.head(x.mean((2, 3)))


def trained(network: nn.Module) -> nn.Module:
    """In training mode, as every module is made; statistics as after some training."""
    network.norm.running_mean += 0.1
    return network.train()


def bank_in_training() -> ExpertBank:
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Norms("bn"), Biases())))
    return scrambled(bank).train()


GUIDES: dict[str, Callable[[nn.Module], Guide]] = {
    "a predictor": lambda n: naive_guide(Predictor(n), ClassTask(), 1, 50.0),
    "a bare network": lambda n: naive_guide(n, ClassTask(), 1, 50.0),
    "a function around it": lambda n: naive_guide(lambda x: n(x) + 0, ClassTask(), 1, 50.0),
    "a noise-aware network": lambda n: LikelihoodGuide(n, ClassTask(), 1, 50.0),
    "an interval": lambda n: GuidanceInterval(LikelihoodGuide(n, ClassTask(), 1, 50.0), last=900),
    "predicted images": lambda n: X0Gradient(ImageLikelihood(n, ClassTask(), 1), 50.0),
}


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_a_guides_network_computes_in_evaluation_mode_and_finds_its_own_again(
    make: Callable[[nn.Module], Guide],
) -> None:
    network, denoiser = trained(Noisy(5)), tiny_denoiser()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    guide = make(network)
    first, second = (sample(denoiser, 3, guide, DDIM(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(part.training for part in network.modules())
    state = State(images(3), torch.full((3,), 500), denoiser)
    in_training = guide(state)
    network.eval()
    assert torch.equal(guide(state), in_training)
    assert torch.equal(sample(denoiser, 3, guide, DDIM(2)), first)


def test_a_bank_in_training_guides_as_in_evaluation() -> None:
    bank = bank_in_training()
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    guide = LikelihoodGuide(bank, ClassTask(), 1, 50.0)
    found = sample(tiny_denoiser(), 3, guide, DDIM(4))
    assert all(torch.equal(value, before[key]) for key, value in bank.state_dict().items())
    assert bank.training
    assert torch.equal(sample(tiny_denoiser(), 3, bank.guide(1, 50.0), DDIM(4)), found)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_denoiser_in_training_mode_draws_the_same_images_twice(wrapped: bool) -> None:
    network = trained(Noisy())
    held = (lambda x, t: network(x)) if wrapped else network
    denoiser = Denoiser(held, SCHEDULE, SHAPE, decode=lambda x: network(x) * 0 + x)
    mean = network.norm.running_mean.clone()
    first = sample(denoiser, 3, sampler=DDIM(2))
    assert torch.equal(sample(denoiser, 3, sampler=DDIM(2)), first)
    alone = sample(denoiser, [2], sampler=DDIM(2))
    torch.testing.assert_close(alone[0], first[2], atol=1e-4, rtol=0)
    assert torch.equal(*(synthesize(denoiser, 3, DDIM(2)) for _ in range(2)))
    assert torch.equal(network.norm.running_mean, mean)
    assert network.training


def test_the_fast_path_agrees_on_networks_in_training_mode() -> None:
    denoiser = Denoiser(trained(Noisy()), SCHEDULE, SHAPE)
    guide = naive_guide(Predictor(trained(Noisy(5))), ClassTask(), 1, 50.0)
    plain = sample(denoiser, 3, guide, DDIM(2))
    fast = sample(denoiser, 3, guide, DDIM(2), stepper=FastPath(denoiser, 3, compile=False).step)
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_what_is_to_be_trained_still_is_after_sampling(
    make: Callable[[nn.Module], Guide], fast: bool
) -> None:
    network, own = trained(Noisy(5)), trained(Noisy())
    own.conv.bias.requires_grad_(False)
    before = [weight.requires_grad for part in (network, own) for weight in part.parameters()]
    denoiser = Denoiser(own, SCHEDULE, SHAPE)
    stepper = FastPath(denoiser, 3, compile=False).step if fast else plain_step
    sample(denoiser, 3, make(network), DDIM(2), stepper=stepper)
    weights = [*network.parameters(), *own.parameters()]
    assert [weight.requires_grad for weight in weights] == before
    assert all(weight.grad is None for weight in weights)
    assert all(part.training for held in (network, own) for part in held.modules())


def test_targets_are_taken_from_images_in_evaluation_mode() -> None:
    network, task, x = trained(Noisy(5)), ClassTask(), images(16).tanh()
    assert torch.equal(*(targets_of_images(network, task, x, size) for size in (16, 3)))
    assert network.training


class InPlace(nn.Module):
    """Scales what it is given, as preconditioned networks often do; so may its timesteps be."""

    def __init__(self, outputs: int = 0, in_place: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.in_place = in_place
        self.last = nn.Linear(192, outputs) if outputs else nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        if not self.in_place:
            x = x.clone()
        x.mul_(0.7)
        if t is not None:
            t = t.mul_(2) if self.in_place else t * 2
            x.add_(t[:, None, None, None] * 1e-4)
        if y is not None:
            y = y.add_(1) if self.in_place else y + 1
            x.add_(y[:, None, None, None] * 0.01)
        return self.last(x.flatten(1) if isinstance(self.last, nn.Linear) else x)


SAMPLERS: list[Sampler] = [DDIM(3), DDPM(3)]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_denoiser_that_computes_in_place_does_not_change_x_t(
    sampler: Sampler, fast: bool
) -> None:
    drawn = []
    for in_place in (False, True):
        denoiser = Denoiser(InPlace(in_place=in_place), SCHEDULE, SHAPE).eval()
        denoiser = denoiser.with_conditions(y=torch.tensor([3.0]))
        options = {"stepper": FastPath(denoiser, 2, compile=False).step} if fast else {}
        drawn.append(sample(denoiser, 2, sampler=sampler, **options))
        assert denoiser.conditions["y"].item() == 3
    torch.testing.assert_close(drawn[1], drawn[0], atol=1e-5 if fast else 0, rtol=0)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_a_guide_whose_network_computes_in_place_owns_its_x_t(
    make: Callable[[nn.Module], Guide], fast: bool
) -> None:
    denoiser, drawn = tiny_denoiser(), []
    for in_place in (False, True):
        guide = make(InPlace(5, in_place).eval())
        options = {"stepper": FastPath(denoiser, 2, compile=False).step} if fast else {}
        drawn.append(sample(denoiser, 2, guide, DDIM(2), **options))
    torch.testing.assert_close(drawn[1], drawn[0], atol=1e-5 if fast else 0, rtol=0)


def test_a_bank_of_raw_students_owns_its_images() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 5))
    bank = ExpertBank(Predictor(network), 2, Adapter((Biases(),)), normalised=False)
    sample(tiny_denoiser(), 2, bank.guide(1, 5.0), DDIM(2))
    x, t = images(4), torch.tensor([900, 5, 900, 5])
    kept = x.clone()
    bank(x, t)
    bank.predict(x, 0)
    bank.train().predict(x, 1)
    assert torch.equal(x, kept)


def test_a_guide_or_sampler_that_overwrites_x_t_is_named() -> None:
    class Clamping(LikelihoodGuide):
        def __call__(self, state: State) -> Tensor:
            state.x_t.clamp_(-1, 1)
            return super().__call__(state)

    class Overwriting(DDIM):
        def step(self, *given: Any) -> Update:  # type: ignore[override]
            x_t = given[2]
            return Update(x_t.mul_(0.5), x_t)

    with pytest.raises(ValueError, match=r"Clamping.*overwrote x_t"):
        sample(tiny_denoiser(), 2, Clamping(lambda x, t: x.mean((2, 3)), ClassTask(), 1), DDIM(2))
    with pytest.raises(ValueError, match=r"Overwriting.*overwrote x_t"):
        sample(tiny_denoiser(), 2, sampler=Overwriting(2))


def test_sampling_works_where_inference_mode_is_on() -> None:
    guide = naive_guide(tiny_predictor(), ClassTask(), 1, 50.0)
    expected = sample(tiny_denoiser(), 2, guide, DDIM(2))
    with torch.inference_mode():
        assert torch.equal(sample(tiny_denoiser(), 2, guide, DDIM(2)), expected)
        guide(State(images(2), torch.zeros(2)))


def test_one_bank_guides_in_several_threads() -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 3, ppap_adapter(2, 2.0)))
    t = torch.tensor([10, 500, 900, 20])
    batches = [images(4, seed) for seed in range(6)]

    def every(x: Tensor) -> list[Tensor]:
        whole = [bank(x, t), bank.predictor(x), *(bank.predict(x, number) for number in range(3))]
        guided = bank.guide(1, 50.0)(State(x, t))
        return [*(part.detach() for part in whole), guided]

    expected = [every(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            for found, wanted in zip(pool.map(every, batches), expected, strict=True):
                assert all(map(torch.equal, found, wanted))


def test_one_fast_path_guides_in_several_threads() -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 3, ppap_adapter(2, 2.0)))
    denoiser = tiny_denoiser()
    path = FastPath(denoiser, 2, compile=False)

    def draw(seed: int) -> Tensor:
        guide = bank.guide(seed % 5, 20.0)
        return sample(denoiser, [seed, seed + 50], guide, DDIM(5), stepper=path.step)

    expected = [draw(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert all(map(torch.equal, pool.map(draw, range(6)), expected))


class Rollout:
    """A guide that looks at what would be drawn from here on."""

    target_count = None

    def __init__(self, stepper: Stepper, guide: Guide) -> None:
        self.stepper, self.guide = stepper, guide

    def __call__(self, state: State) -> Tensor:
        count, guide = len(state.x_t), self.guide
        ahead = sample(state.denoiser, count, guide, DDIM(2), x_T=state.x_t, stepper=self.stepper)
        return 0.1 * (ahead - state.x_t)

    def rows(self, chosen: slice) -> Rollout:
        return Rollout(self.stepper, self.guide.rows(chosen))


def test_a_guide_may_sample_within_its_step_by_the_same_fast_path() -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 3, ppap_adapter(2, 2.0)))
    denoiser = tiny_denoiser()
    path = FastPath(denoiser, 2, compile=False)

    def draw(stepper: Stepper) -> Tensor:
        guide = bank.guide([1, 3], 2.0)
        both = SumOfGuides((guide, Rollout(stepper, bank.guide([0, 2], 2.0)), guide))
        return sample(denoiser, 2, both, DDIM(5), stepper=stepper)

    found: list[Tensor] = []
    drawing = Thread(target=lambda: found.append(draw(path.step)), daemon=True)
    drawing.start()
    drawing.join(60)
    assert found, "it waits for itself"
    torch.testing.assert_close(found[0], draw(plain_step), rtol=0, atol=1e-4)
