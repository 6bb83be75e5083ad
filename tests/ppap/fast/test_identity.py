"""The fast path guides by what it is given, with the weights it has now, or not at all."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.sampling import Step
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from ppap.guidance.wrappers import (
    ClippedGradient,
    GradientReuse,
    GuidanceInterval,
    SignalWeighted,
)
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.experts.test_grouped import bank_of
from tests.ppap.fast.test_path import COUNT, TARGETS, learned_denoiser, smooth_bank
from tests.ppap.networks import SHAPE, tiny_predictor

SCALE = 30.0


class NoiseAware(nn.Module):
    """A smooth noise-aware classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Conv2d(3, 5, 3)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return torch.tanh(self.layer(x_t) + timesteps[:, None, None, None] / 1000).mean((2, 3))


def drawn(path: FastPath, guide: Guide | None, sampler: Sampler | None = None) -> Tensor:
    """By the fast path, which must agree with the plain one."""
    sampler = DDIM(5) if sampler is None else sampler
    found, plain = (
        sample(path.denoiser, COUNT, guide, sampler, fast=fast) for fast in (path, False)
    )
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0)
    return found


def test_many_guides_share_one_fast_path() -> None:
    """Also those whose models lie where another's lay before."""
    path, seen = FastPath(learned_denoiser(), COUNT, compile=False), []
    for seed in range(6):
        predictor = smooth_predictor(seed)
        seen.append(drawn(path, naive_guide(predictor, ClassTask(), TARGETS, SCALE)))
        del predictor
        gc.collect()
    assert all((a - b).abs().max() > 1e-2 for a, b in pairwise(seen))


def smooth_predictor(seed: int) -> Predictor:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Predictor(network.eval())


def test_the_same_model_is_compiled_once() -> None:
    path, predictor = FastPath(learned_denoiser(), COUNT, compile=False), smooth_predictor(0)
    for _ in range(3):
        drawn(path, naive_guide(predictor, ClassTask(), TARGETS, SCALE))
    assert len(path._gradients._known) == 1


def bank() -> ExpertBank:
    return smooth_bank()


CHANGED: dict[str, Callable[[], tuple[Any, nn.Module | None]]] = {
    "a predictor": lambda: ((p := smooth_predictor(0)), p),
    "a noise-aware classifier": lambda: ((m := NoiseAware().eval()), m),
    "a bank's experts": lambda: ((b := bank()), b.experts),
    "a bank's base": lambda: ((b := bank()), b.predictor.network),
    "the denoiser": lambda: (None, None),
}


def guide_of(model: Any) -> Guide | None:
    if model is None:
        return None
    if isinstance(model, ExpertBank):
        return model.guide(TARGETS, SCALE)
    if isinstance(model, Predictor):
        return naive_guide(model, ClassTask(), TARGETS, SCALE)
    return LikelihoodGuide(model, ClassTask(), TARGETS, SCALE)


def shifted(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.add_(0.3)


def shifted_through_data(tensor: Tensor) -> None:
    tensor.data.add_(0.3)


def replaced(tensor: Tensor) -> None:
    tensor.data = tensor.data + 0.3


@pytest.mark.parametrize("write", [shifted, shifted_through_data, replaced])
@pytest.mark.parametrize("what", CHANGED)
def test_weights_that_change_between_calls_are_noticed(
    what: str, write: Callable[[Tensor], None]
) -> None:
    model, part = CHANGED[what]()
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    before = drawn(path, guide_of(model))
    for parameter in (path.denoiser if part is None else part).parameters():
        write(parameter)
    if isinstance(model, ExpertBank):
        model.train().eval()  # the plain path forgets what it had merged
    after = drawn(path, guide_of(model))
    assert (after - before).abs().max() > 1e-2


def test_a_predictor_with_other_weights_types_and_normalisation_is_traced_anew() -> None:
    path, predictor = FastPath(learned_denoiser(), COUNT, compile=False), smooth_predictor(0)
    guide = naive_guide(predictor, ClassTask(), TARGETS, SCALE)
    before = drawn(path, guide)
    predictor.std.mul_(0.5)
    normalised = drawn(path, guide)
    assert (normalised - before).abs().max() > 1e-3
    predictor.network = smooth_predictor(1).network
    assert (drawn(path, guide) - normalised).abs().max() > 1e-3


def test_another_denoiser_is_refused() -> None:
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    with pytest.raises(ValueError, match="another denoiser"):
        sample(learned_denoiser(), COUNT, fast=path)


@dataclass(frozen=True)
class Shrinking(DDIM):
    """An override of the update."""

    def step(self, *arguments: Any, **options: Any) -> Update:
        update = super().step(*arguments, **options)
        return Update(0.9 * update.x, update.x_0, update.gradient)


@dataclass(frozen=True)
class Noiseless(DDPM):
    """An override of one property of it."""

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, schedule: Any, index: Any, *arguments: Any, **options: Any) -> Update:
        update = super().step(schedule, index, *arguments, **options)
        return Update(update.x_0, update.x_0, update.gradient)


class Doubled(LikelihoodGuide):
    """An override of the gradient."""

    def __call__(self, state: State) -> Tensor:
        return 2 * super().__call__(state)

    def rows(self, chosen: slice) -> Doubled:
        return Doubled(self.model, self.task, self.targets[chosen], self.scale)


class Negated(Predictor):
    """An override of the prediction."""

    def forward(self, images: Tensor) -> Any:
        return -super().forward(images)


class Hushed(ExpertBank):
    """An override of the experts' prediction."""

    def predict(self, images: Tensor, expert: int) -> Any:
        return 0.1 * super().predict(images, expert)


@pytest.mark.parametrize("sampler", [Shrinking(5), Noiseless(5)], ids=repr)
def test_a_sampler_of_the_callers_steps_by_its_own_code(sampler: Sampler) -> None:
    path, guide = FastPath(learned_denoiser(), COUNT, compile=False), bank().guide(TARGETS, SCALE)
    (base,) = type(sampler).__bases__
    assert (drawn(path, guide, sampler) - drawn(path, guide, base(5))).abs().max() > 1e-2


def test_a_guide_a_predictor_or_a_bank_of_the_callers_is_run_as_it_is() -> None:
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    predictor, experts = smooth_predictor(0), bank()
    plain = drawn(path, naive_guide(predictor, ClassTask(), TARGETS, SCALE))
    doubled = Doubled(experts, ClassTask(), TARGETS, SCALE)
    assert (drawn(path, doubled) - drawn(path, experts.guide(TARGETS, SCALE))).abs().max() > 1e-3
    negated = Negated(predictor.network)
    assert (
        drawn(path, naive_guide(negated, ClassTask(), TARGETS, SCALE)) - plain
    ).abs().max() > 1e-3
    hushed = Hushed(tiny_predictor(), 5, ppap_adapter(2, 2.0)).eval()
    drawn(path, hushed.guide(TARGETS, 3.0))


SCALES: dict[str, Any] = {
    "one per sample": torch.linspace(0, 40, COUNT),
    "a function of the noise level": lambda signal: 60 * signal,
}


@pytest.mark.parametrize("kind", SCALES)
def test_scales_are_those_of_the_plain_path(kind: str) -> None:
    path, experts = FastPath(learned_denoiser(), 4, compile=False), bank()
    guide = experts.guide(TARGETS, SCALES[kind])
    found, plain = (
        sample(path.denoiser, COUNT, guide, DDIM(5), batch=4, fast=fast) for fast in (path, False)
    )
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0)
    unscaled = sample(path.denoiser, COUNT, experts.guide(TARGETS, 1.0), DDIM(5), batch=4)
    assert (found - unscaled).abs().max() > 1e-2


CALLS: list[nn.Module] = []
"""Layers, in the order in which they were called; a count that a network reaches has it run as it
is, for it may decide the next call's result."""


def _called(layer: nn.Module, inputs: Any, output: Tensor) -> None:
    CALLS.append(layer)


class Called:
    """A noise-aware model of which one knows how often it was called, and a guide by it."""

    def __init__(self, targets: Tensor) -> None:
        self._model = NoiseAware()
        self._model.layer.register_forward_hook(_called)
        self.guide = LikelihoodGuide(self._model, ClassTask(), targets, SCALE)

    @property
    def calls(self) -> int:
        return sum(layer is self._model.layer for layer in CALLS)


AROUND: dict[str, Callable[[Guide], Guide]] = {
    "an interval": lambda guide: GuidanceInterval(guide, first=300, last=700),
    "a gradient used again": lambda guide: GradientReuse(guide, 2),
    "a bound": lambda guide: ClippedGradient(guide, 0.5),
    "a weight": SignalWeighted,
    "a sum with an interval": lambda guide: SumOfGuides((guide, GuidanceInterval(guide, last=500))),
}


@pytest.mark.parametrize("kind", AROUND)
def test_guides_around_guides_are_those_of_the_plain_path(kind: str) -> None:
    path, guide = FastPath(learned_denoiser(), COUNT, compile=False), bank().guide(TARGETS, SCALE)
    around = AROUND[kind](guide)
    assert (drawn(path, around) - drawn(path, guide)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", AROUND)
def test_guides_within_others_run_by_their_graphs(kind: str) -> None:
    path, inner = FastPath(learned_denoiser(), COUNT, compile=False), Called(TARGETS)
    sample(path.denoiser, COUNT, AROUND[kind](inner.guide), DDIM(5), fast=path)
    traced = inner.calls
    sample(path.denoiser, COUNT, AROUND[kind](inner.guide), DDIM(5), fast=path)
    assert 0 < traced == inner.calls


def test_weights_that_change_before_an_interval_begins_are_noticed() -> None:
    path, experts = FastPath(learned_denoiser(), COUNT, compile=False), bank()
    guide = GuidanceInterval(experts.guide(TARGETS, SCALE), last=500)
    before = drawn(path, guide)
    for parameter in experts.parameters():
        shifted_through_data(parameter)
    assert (drawn(path, guide) - before).abs().max() > 1e-2


@pytest.mark.parametrize("sampler", [DPMSolver(8), DDIM("8 to 80"), DDPM("8 to 80")], ids=repr)
def test_samplers_with_a_memory_or_an_early_end_are_those_of_the_plain_path(
    sampler: Sampler,
) -> None:
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    guide = bank().guide(TARGETS, SCALE)
    assert (drawn(path, guide, sampler) - drawn(path, None, sampler)).abs().max() > 1e-2


def test_where_a_scale_is_0_no_step_is_guided() -> None:
    denoiser, model = learned_denoiser(), NoiseAware()
    path = FastPath(denoiser, COUNT, compile=False)

    def steps(scale: Any, fast: Any) -> list[Step]:
        found: list[Step] = []
        guide = LikelihoodGuide(model, ClassTask(), TARGETS, scale)
        sample(denoiser, COUNT, guide, DDIM(5), fast=fast, on_step=found.append)
        return found

    unguided = steps(0.0, path)
    for scale in (lambda signal: 0.0, torch.zeros_like, [0.0] * COUNT):
        for step, other in zip(steps(scale, path), unguided, strict=True):
            assert step.gradient is None
            assert torch.equal(step.x, other.x)
    for fast in (path, False):
        late = steps(lambda signal: SCALE * (signal > 0.3), fast)
        guided = [step.gradient is not None for step in late]
        assert guided == [False, False, False, True, True]


class Deciding(nn.Module):
    """Depends on values in a way that no graph holds."""

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        if float(x_t.mean()) > 1e9:
            return x_t.mean((2, 3))
        return torch.tanh(x_t).mean((2, 3)) * float(x_t.detach().abs().mean())


class Counting(nn.Module):
    """Another function at its second call, so that its graph is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x_t).mean((2, 3)) * min(self.calls, 2)


@pytest.mark.parametrize("make", [Deciding, Counting])
def test_a_model_that_its_graph_does_not_stand_for_is_run_as_it_is(
    make: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    path, model = FastPath(learned_denoiser(), COUNT, compile=False), make()
    guide = LikelihoodGuide(model, ClassTask(), TARGETS % 3, SCALE)
    with caplog.at_level(logging.WARNING, "ppap.fast"):
        found = sample(path.denoiser, COUNT, guide, DDIM(5), fast=path)
    torch.testing.assert_close(found, sample(path.denoiser, COUNT, guide, DDIM(5), fast=False))
    assert len(caplog.records) == 1
    assert f"{make.__name__} is run as it is" in caplog.text


class Reading:
    """A network, and a task, that look values up beside PyTorch."""

    def network(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        shares = torch.tensor([step / 1000 for step in timesteps.tolist()])
        return torch.tanh(x_t + shares[:, None, None, None])

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        rows = enumerate(targets.numpy())
        return torch.stack([prediction[row, target] for row, target in rows])


def test_values_that_are_read_are_those_of_every_call() -> None:
    reading = Reading()
    denoiser = Denoiser(reading.network, linear_schedule(1000), SHAPE)
    guide = LikelihoodGuide(NoiseAware(), reading, TARGETS, SCALE)  # several batches
    path = FastPath(denoiser, 2, compile=False)
    found, expected = (
        sample(denoiser, COUNT, guide, DDIM(4), batch=2, fast=fast) for fast in (path, False)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_denoiser_that_its_graph_does_not_stand_for_is_run_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    denoiser = Denoiser(Counted(), linear_schedule(1000), SHAPE)
    with caplog.at_level(logging.WARNING, "ppap.fast"):
        found = sample(denoiser, COUNT, sampler=DDIM(5), fast=FastPath(denoiser, COUNT, False))
    torch.testing.assert_close(found, sample(denoiser, COUNT, sampler=DDIM(5), fast=False))
    assert "the denoiser is run as it is" in caplog.text


class Counted(Counting):
    """As a denoiser's network."""

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x_t) * min(self.calls, 2) / 2


def test_targets_of_another_number_are_refused() -> None:
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    state = State(torch.zeros(4, *SHAPE), torch.zeros(4, dtype=torch.int64), path.denoiser)
    schedule = DDIM(5).respace(path.denoiser.schedule)
    with pytest.raises(ValueError, match="4 images, but targets for 6"):
        path.step(DDIM(5), schedule, 0, state, bank().guide(TARGETS, SCALE), None)


def test_experts_with_kinks_are_guided_alike() -> None:
    """The check of a graph does not stumble over what rounding may decide."""
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    guide = bank_of(tiny_predictor(), ppap_adapter(2, 2.0)).eval().guide(TARGETS, 0.5)
    drawn(path, guide)
    assert path._gradients.terms(guide, 500)  # which there are of what has a graph


class Uncopyable(nn.Module):
    """Holds what cannot be copied, and a batch norm to be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.stream = (value for value in ())

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(images))).mean((2, 3))


class Hooked(Uncopyable):
    """Reads what a hook has kept, in a dictionary that a copy would not share."""

    def __init__(self) -> None:
        super().__init__()
        del self.stream
        self.kept: dict[str, Tensor] = {}
        self.norm.register_forward_hook(lambda layer, x, out: self.kept.update(out=out))

    def forward(self, images: Tensor) -> Tensor:
        self.norm(self.conv(images))
        return torch.tanh(self.kept["out"]).mean((2, 3))


@pytest.mark.parametrize("make", [Uncopyable, Hooked])
def test_predictors_that_cannot_be_copied_are_guided_by_all_the_same(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    network = make().eval()
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    drawn(path, naive_guide(Predictor(network), ClassTask(), TARGETS, SCALE), DDIM(3))
    adapted = bank_of(Predictor(network), ppap_adapter(2, 2.0, "conv")).eval()
    drawn(path, adapted.guide(TARGETS, SCALE), DDIM(3))


def test_a_model_whose_other_form_fails_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Unreadable(NoiseAware):
        def named_parameters(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("no parameters here")

    path = FastPath(learned_denoiser(), COUNT, compile=False)
    guide = LikelihoodGuide(Unreadable().eval(), ClassTask(), TARGETS, SCALE)
    with caplog.at_level(logging.WARNING, "ppap.fast"):
        found = sample(path.denoiser, COUNT, guide, DDIM(3), fast=path)
    assert caplog.messages == ["Unreadable is run as it is: no parameters here"]
    torch.testing.assert_close(found, sample(path.denoiser, COUNT, guide, DDIM(3), fast=False))
