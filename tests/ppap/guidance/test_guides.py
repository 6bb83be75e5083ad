"""Guides against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import Guide, State
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from ppap.guidance.likelihoods import (
    AtLeastNoise,
    ImageLikelihood,
    NoisyLikelihood,
    clean_gradient,
    noisy_gradient,
)
from ppap.guidance.methods.dps import DPS
from ppap.guidance.methods.fk_steering import FKSteering
from ppap.guidance.methods.mpgd import MPGD
from ppap.guidance.methods.x0_gradient import X0Gradient
from ppap.guidance.wrappers import (
    ClippedGradient,
    GradientReuse,
    GuidanceInterval,
    SignalWeighted,
)
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from tests.ppap.networks import images, tiny_denoiser, tiny_dense, tiny_predictor


def test_the_gradient_of_a_linear_classifier_by_hand() -> None:
    # log p(y | x) = w_y x - logsumexp(W x): gradient w_y - sum_k p_k w_k.
    weight = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    x, targets = images(4), torch.tensor([0, 3, 3, 1])
    guide = LikelihoodGuide(lambda x, t: x.flatten(1) @ weight.T, ClassTask(), targets, 2.5)
    share = (x.flatten(1) @ weight.T).softmax(1)
    expected = 2.5 * (weight[targets] - share @ weight)
    torch.testing.assert_close(guide(State(x, torch.zeros(4))).flatten(1), expected)


def test_the_naive_guide_ignores_the_timestep() -> None:
    guide = naive_guide(tiny_predictor(), ClassTask(), torch.zeros(2).long())
    x = images(2)
    assert torch.equal(
        guide(State(x, torch.tensor([0, 0]))), guide(State(x, torch.tensor([900, 5])))
    )


def test_guides_add_up() -> None:
    parts = [naive_guide(tiny_predictor(s), ClassTask(), torch.arange(4), s + 1.0) for s in (0, 1)]
    x, t = images(4), torch.zeros(4)
    both = SumOfGuides(tuple(parts))
    assert both.target_count == 4
    state = State(x, t)
    torch.testing.assert_close(both(state), parts[0](state) + parts[1](state))
    chosen = slice(1, 3)
    torch.testing.assert_close(both.rows(chosen)(State(x[chosen], t[chosen])), both(state)[chosen])


def test_class_depth_and_segmentation_guide_at_once_each_by_its_experts_and_scale() -> None:
    n, generator = 3, torch.Generator().manual_seed(1)
    asked: list[tuple[Task, torch.Tensor, float]] = [
        (ClassTask(), torch.arange(n), 2.0),
        (DepthTask(), torch.rand(n, 8, 8, generator=generator), 30.0),
        (SegmentationTask(), torch.randint(0, 4, (n, 8, 8), generator=generator), 7.0),
    ]
    networks = [tiny_predictor(), tiny_dense(1), tiny_dense(4)]
    banks = [ExpertBank(network, 2, Adapter((Biases(),))) for network in networks]
    for bank in banks:
        for number in range(2):
            for tensor in bank.expert(number).parameters():
                tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)
    x, t = images(n), torch.tensor([10, 10, 10])
    guides = [
        bank.guide(targets, scale, task)
        for bank, (task, targets, scale) in zip(banks, asked, strict=True)
    ]
    x_t = x.clone().requires_grad_()
    total = sum(
        scale * task.log_likelihood(bank(x_t, t), targets).sum()
        for bank, (task, targets, scale) in zip(banks, asked, strict=True)
    )
    assert isinstance(total, torch.Tensor)
    (expected,) = torch.autograd.grad(total, x_t)
    torch.testing.assert_close(SumOfGuides(tuple(guides))(State(x, t)), expected)
    other = SumOfGuides(tuple(guides))(State(x, t + 900))
    assert not torch.allclose(other, expected)  # the experts of the other range


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_batch_of_mixed_timesteps_is_guided_by_the_experts_of_each(outputs: int) -> None:
    bank = ExpertBank(tiny_dense(outputs), 2, ppap_adapter(2, 1.0)).eval()
    generator = torch.Generator().manual_seed(2)
    for tensor in bank.experts.parameters():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    x, t = images(4), torch.tensor([900, 3, 600, 400])
    together = bank(x, t)
    alone = torch.cat([bank(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_guides_of_different_lengths_are_refused() -> None:
    parts = [naive_guide(tiny_predictor(), ClassTask(), torch.arange(n)) for n in (2, 3)]
    with pytest.raises(ValueError, match="number of targets"):
        SumOfGuides(tuple(parts))


def test_a_guide_works_where_gradients_are_off() -> None:
    guide = naive_guide(tiny_predictor(), ClassTask(), torch.zeros(2).long())
    with torch.no_grad():
        assert guide(State(images(2), torch.zeros(2))).abs().sum() > 0


def test_what_a_derived_guide_overrides_reaches_every_batch() -> None:
    class Silent(LikelihoodGuide):
        def __call__(self, state: State) -> None:
            return None

    class Doubled(SumOfGuides):
        def __call__(self, state: State) -> torch.Tensor | None:
            gradient = super().__call__(state)
            return None if gradient is None else 2 * gradient

    x, t = images(2), torch.zeros(2)
    part = naive_guide(tiny_predictor(), ClassTask(), torch.arange(4))
    silent = Silent(part.model, part.task, part.targets)
    assert silent.rows(slice(0, 2))(State(x, t)) is None
    once, twice = (kind((part,)).rows(slice(1, 3))(State(x, t)) for kind in (SumOfGuides, Doubled))
    assert torch.equal(twice, 2 * once)


def test_under_autocast_networks_are_rounded_and_likelihoods_are_not() -> None:
    # Depth maps around 10: in bfloat16 their mean and what lies beside it have three digits.
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 8
    targets = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1))
    given = (lambda x, t: 10 + (x[:, 0].flatten(1) @ weight).view(-1, 8, 8)), DepthTask(), targets
    state = State(images(4), torch.zeros(4))
    guides: list[Callable[[State], Any]] = [
        LikelihoodGuide(*given),
        lambda state: noisy_gradient(NoisyLikelihood(*given), state)[0],
    ]
    for guide in guides:
        exact = guide(state)
        with torch.autocast("cpu", torch.bfloat16):
            found = guide(state)
        assert found.dtype == torch.float32
        assert 0 < (found - exact).norm() < 0.1 * exact.norm()


class Linear(nn.Module):
    """Logits of flattened images, with or without a timestep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(192, 3)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_bare_network_is_shown_images_in_the_type_of_its_weights(dtype: torch.dtype) -> None:
    """As denoisers, decoders and predictors are: it met float32, and failed within PyTorch."""

    def gradients(network: nn.Module) -> list[Tensor | None]:
        given: Any = network, ClassTask(), [1, 2]
        looking = X0Gradient(ImageLikelihood(*given)), X0Gradient(NoisyLikelihood(*given))
        least = X0Gradient(ImageLikelihood(AtLeastNoise(network), ClassTask(), [1, 2]))
        return [
            guide(state())
            for guide in (LikelihoodGuide(*given), naive_guide(*given), *looking, least)
        ]

    pairs = zip(gradients(Linear().to(dtype)), gradients(Linear()), strict=True)
    for found, expected in pairs:
        assert found is not None
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))


def test_the_fast_path_shows_them_so_too(caplog: pytest.LogCaptureFixture) -> None:
    guide = LikelihoodGuide(Linear().double(), ClassTask(), [1, 2], 5.0)
    denoiser = tiny_denoiser()
    path = FastPath(denoiser, 2, compile=False)
    fast, plain = (sample(denoiser, 2, guide, DDIM(2), fast=way) for way in (path, False))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4)
    assert "run as it is" not in caplog.text


def state() -> State:
    return State(images(2), torch.tensor([3, 3]), tiny_denoiser())


@pytest.mark.parametrize("made", ["not recorded", "of other images"])
def test_what_has_no_gradient_in_the_images_is_named(made: str) -> None:
    weight = torch.ones(3, requires_grad=True)

    def predict(x: Tensor) -> Tensor:
        seen = x.detach().mean((2, 3))
        return seen if made == "not recorded" else seen * weight

    with pytest.raises(ValueError, match=r"no gradient in the images: .*without torch.no_grad"):
        naive_guide(predict, ClassTask(), 1)(state())
    likelihood = ImageLikelihood(predict, ClassTask(), 1)
    with pytest.raises(ValueError, match="no gradient in the images"):
        noisy_gradient(likelihood, state())
    with pytest.raises(ValueError, match="no gradient in the images"):
        clean_gradient(likelihood, images(2), state())


def test_a_sum_of_none_says_so_and_any_iterable_makes_one() -> None:
    for empty in ((), [], iter(())):
        with pytest.raises(ValueError, match="at least one of the guides, got none"):
            SumOfGuides(empty)  # type: ignore[arg-type]
    one = naive_guide(tiny_predictor(), ClassTask(), 1, 2.0)
    listed = SumOfGuides(one for _ in range(2))  # type: ignore[arg-type]
    together = SumOfGuides((one, one))(state())
    found = listed(state())
    assert found is not None
    assert together is not None
    torch.testing.assert_close(found, together, rtol=0, atol=0)


def test_a_model_of_the_other_kind_is_named() -> None:
    predictor, task = tiny_predictor(), ClassTask()
    bank = ExpertBank(predictor, 2)
    for made in (LikelihoodGuide, NoisyLikelihood):
        with pytest.raises(TypeError, match=r"guide by ppap\.naive_guide or ppap\.Image"):
            made(predictor, task, 1)
    for made in (naive_guide, ImageLikelihood):
        with pytest.raises(TypeError, match=r"ExpertBank is called with timesteps.*its guide\("):
            made(bank, task, 1)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"DPS guides by a likelihood.*got LikelihoodGuide$"):
        DPS(bank.guide(1))  # type: ignore[arg-type]


class Own:
    """A guide of one's own."""

    target_count = None

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        self.give = give

    def __call__(self, state: State) -> Any:
        return self.give(state.x_t)

    def rows(self, chosen: slice) -> Own:
        return self


WRAPPED: dict[str, Callable[[Any], Guide]] = {
    "alone": lambda guide: guide,
    "in a sum": lambda guide: SumOfGuides((guide, Own(torch.ones_like))),
    "in an interval": GuidanceInterval,
    "reused": lambda guide: GradientReuse(guide, 2),
    "clipped": lambda guide: ClippedGradient(guide, 1.0),
    "weighted": SignalWeighted,
}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_gradient_that_would_be_broadcast_is_refused(
    wrap: Callable[[Any], Guide], fast: bool
) -> None:
    denoiser = tiny_denoiser()
    path = FastPath(denoiser, 2, compile=False) if fast else False
    for shape in ((), (2, 1, 1, 1), (1, 3, 8, 8), (3, 8, 8), (2, 1, 8, 8)):
        guide = wrap(Own(lambda x, shape=shape: torch.ones(shape)))
        with pytest.raises(ValueError, match=r"gradient in x_t, \(2, 3, 8, 8\), Own gave \("):
            sample(denoiser, 2, guide, DDIM(2), fast=path)
    for given in (0.5, (torch.ones(2, 3, 8, 8),)):
        with pytest.raises(TypeError, match=r"gradient \(B, C, H, W\) or None, Own gave "):
            sample(denoiser, 2, wrap(Own(lambda x, given=given: given)), DDIM(2), fast=path)


def test_a_gradient_is_one_in_the_type_of_x_t() -> None:
    denoiser = tiny_denoiser()
    expected = sample(denoiser, 2, Own(lambda x: 0.5 * x), DDIM(3))
    found = sample(denoiser, 2, Own(lambda x: 0.5 * x.double()), DDIM(3))
    assert torch.equal(found, expected)


class OwnTask:
    """A task of one's own, whose log-likelihoods are put together in some way."""

    def __init__(self, join: Callable[[Tensor], Any]) -> None:
        self.join = join

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Any:
        return self.join(-((prediction - targets[:, None]) ** 2))


def test_log_likelihoods_are_one_number_per_image() -> None:
    # A mean over the batch would guide an image less beside more others.
    denoiser, predictor, aims = tiny_denoiser(), tiny_predictor(), torch.tensor([0.1, 0.7])
    path = FastPath(denoiser, 2, compile=False)
    for join in (torch.mean, lambda each: each, lambda each: each[:, :1], lambda each: each.sum(0)):
        task: Any = OwnTask(join)
        likelihood = ImageLikelihood(predictor, task, aims)
        guides = (naive_guide(predictor, task, aims), X0Gradient(likelihood), MPGD(likelihood))
        for guide in guides:
            for fast in (False, path):
                with pytest.raises(ValueError, match=r"of OwnTask is a number per image, \(2,\)"):
                    sample(denoiser, 2, guide, DDIM(2), fast=fast)
        with pytest.raises(ValueError, match="is a number per image"):
            sample(denoiser, 2, FKSteering(likelihood, every=1), DDIM(2, eta=1.0))
    with pytest.raises(TypeError, match=r"a tensor \(B,\), a number per image, got float"):
        sample(denoiser, 2, naive_guide(predictor, OwnTask(lambda each: 1.0), aims), DDIM(2))
    assert len(sample(denoiser, 2, naive_guide(predictor, OwnTask(lambda e: e.sum(1)), aims))) == 2


def test_a_sampler_visits_a_schedule() -> None:
    class Listing(DDIM):
        def respace(self, schedule: Any) -> Any:
            return [900, 400]

    with pytest.raises(TypeError, match=r"respace gives a schedule.*that of Listing gave list"):
        sample(tiny_denoiser(), 2, sampler=Listing(2))


def test_a_step_gives_an_update_of_its_images() -> None:
    class Method(Own):
        def step(self, step: Any) -> Any:
            return self.give(step.take())

    with pytest.raises(TypeError, match=r"gives a ppap.diffusion.solver.Update.*Method gave Tens"):
        sample(tiny_denoiser(), 2, Method(lambda update: update.x), DDIM(2))
    with pytest.raises(ValueError, match=r"like x_t, \(2, 3, 8, 8\).*Method gave \(1, 3, 8, 8\)"):
        sample(tiny_denoiser(), 2, Method(lambda update: replace(update, x=update.x[:1])), DDIM(2))
