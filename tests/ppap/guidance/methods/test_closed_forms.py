"""Single steps of the methods without golden figures, against their formulas by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.guide import State
from ppap.diffusion.noise_levels import NoiseLevels, NoiseLevelsError
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import cosine_schedule, linear_schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.diffusion.stepping import SamplingStep, StepGuide
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.files.images import NonFiniteError
from ppap.guidance.likelihoods import ImageLikelihood, NoisyLikelihood
from ppap.guidance.methods import fk_steering
from ppap.guidance.methods.adam import AdamGuidance
from ppap.guidance.methods.autoguidance import Autoguidance
from ppap.guidance.methods.classifier_free import ClassifierFreeGuidance
from ppap.guidance.methods.dps import DPS
from ppap.guidance.methods.elucd import CalibratedLogits, EluCD
from ppap.guidance.methods.fk_steering import FKSteering
from ppap.guidance.methods.mpgd import MPGD
from ppap.guidance.methods.particles import systematic
from ppap.guidance.methods.tfg import TFG
from ppap.predictors.softplus import with_softplus
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import SHAPE, TinyResNet, images, tiny_denoiser, tiny_predictor

INDEX = 2


class Brightness:
    """log p = -(mean - target)^2: its gradient is known by hand."""

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return -(prediction.mean((1, 2, 3)) - targets).square()


class Grey:
    """log p = -(x - target)^2 / 2, summed: its gradient is another in every pixel."""

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        away = prediction - targets[:, None, None, None]
        return -away.square().sum((1, 2, 3)) / 2


BRIGHT = ImageLikelihood(lambda x: x, Brightness(), 0.5)


def bright_gradient(x: Tensor) -> Tensor:
    away = x.mean((1, 2, 3), keepdim=True) - 0.5
    return -2 * away / math.prod(SHAPE) * torch.ones_like(x)


def step_of(guide: StepGuide | None, sampler: Sampler, **options: Any) -> tuple[Update, State]:
    denoiser = tiny_denoiser()
    schedule = sampler.respace(denoiser.schedule)
    timestep = int(schedule.timesteps[INDEX])
    state = State(images(2), torch.full((2,), timestep), denoiser, seeds=(1, 2), **options)
    noise = images(2, 9) if sampler.stochastic else None
    step = SamplingStep(sampler, schedule, INDEX, state, noise)
    with torch.no_grad():
        return (step.plain() if guide is None else guide.step(step)), state


def test_elucd_moves_the_mean_by_the_variance_and_a_sine_of_the_largest_one() -> None:
    sampler = DDPM(5)
    free, _ = step_of(None, sampler)
    found, _ = step_of(EluCD(BRIGHT, 30.0, gamma=0.4), sampler)
    betas = sampler.respace(linear_schedule()).betas
    variance = betas[INDEX] + 0.4 * math.sin(math.pi * INDEX / 5) * betas.max()
    expected = free.x + variance * 30 * bright_gradient(free.x_0)
    torch.testing.assert_close(found.x, expected)


def test_calibrated_logits_weigh_joint_and_marginal_apart() -> None:
    logits, targets = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]]), torch.tensor([0, 2])
    found = CalibratedLogits(0.8, 0.25).log_likelihood(logits, targets)
    expected = [0.8 * 1.0, 0.8 * 3.0] - (0.25 * logits).exp().sum(1).log().numpy()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
    usual = ClassTask().log_likelihood(logits, targets)
    torch.testing.assert_close(CalibratedLogits(1.0, 1.0).log_likelihood(logits, targets), usual)


@pytest.mark.parametrize("found", [{"joint": -1.0}, {"marginal": -0.5}, {"marginal": math.inf}])
def test_a_temperature_of_logits_that_is_none_is_refused(found: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="temperature must be finite and at least 0"):
        CalibratedLogits(**found)


def test_calibrated_logits_take_what_the_classes_task_takes() -> None:
    logits = torch.zeros(2, 3)
    for targets in (torch.tensor([0, 3]), torch.tensor([0]), torch.tensor([0.0, 1.0])):
        for task in (ClassTask(), CalibratedLogits()):
            with pytest.raises(ValueError, match=r"class|labels"):
                task.log_likelihood(logits, targets)
    bytes_of = torch.tensor([0, 2], dtype=torch.uint8)
    assert CalibratedLogits().log_likelihood(logits, bytes_of).shape == (2,)


def test_softplus_replaces_every_relu_of_a_copy() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Sequential(nn.ReLU()))
    smooth, x = with_softplus(network, 100.0), images(2)
    assert not any(isinstance(module, nn.ReLU) for module in smooth.modules())
    assert isinstance(network[1], nn.ReLU)
    torch.testing.assert_close(smooth(x), network(x), rtol=0, atol=0.02)
    shared = nn.ReLU()
    often = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 4, 1), shared)
    assert [type(module) for module in with_softplus(often)[1::2]] == [nn.Softplus] * 2
    with pytest.raises(ValueError, match=r"no nn\.ReLU"):
        with_softplus(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="positive beta"):
        with_softplus(network, 0.0)


def test_mpgd_moves_the_image_and_holds_the_noise() -> None:
    sampler = DDIM(5, clip=False)
    found, state = step_of(MPGD(BRIGHT, 40.0), sampler)
    schedule = sampler.respace(linear_schedule())
    before = schedule.alphas_cumprod_prev[INDEX]
    x_0 = state.x_0() + 40 * bright_gradient(state.x_0())
    expected = math.sqrt(before) * x_0 + math.sqrt(1 - before) * state.prediction().epsilon
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.x_0, x_0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("enters", ["after", "gradient"])
def test_adams_first_correction_has_the_same_length_in_every_pixel(enters: Any) -> None:
    grey = ImageLikelihood(lambda x: x, Grey(), 0.5)
    sampler, guide = DDIM(5, clip=False), AdamGuidance(grey, 0.1, enters=enters)
    found, state = step_of(guide, sampler)
    assert found.gradient is not None
    torch.testing.assert_close(found.gradient.abs(), torch.full_like(found.x, 0.1))
    schedule = sampler.respace(linear_schedule())
    if enters == "after":
        moved = found.gradient / math.sqrt(1 - schedule.betas[INDEX])
        expected = step_of(None, sampler)[0].x + moved
    else:
        args = schedule, INDEX, state.x_t, state.prediction(), found.gradient
        expected = sampler.step(*args).x
    torch.testing.assert_close(found.x, expected)


def test_adam_remembers_a_trajectory_and_forgets_it_before_the_next() -> None:
    guide = AdamGuidance(BRIGHT, 0.1, beta1=0.5, beta2=0.9)
    memory: dict[object, Any] = {}
    first, _ = step_of(guide, DDIM(5), memory=memory)
    _, m, v = memory[guide]
    second, _ = step_of(guide, DDIM(5), memory=memory)
    assert first.gradient is not None
    assert second.gradient is not None
    torch.testing.assert_close(second.gradient, first.gradient)  # the same gradient twice
    assert memory[guide][0] == 2
    torch.testing.assert_close(memory[guide][1], 1.5 * m)
    torch.testing.assert_close(memory[guide][2], 1.9 * v)
    images_of = [sample(tiny_denoiser(), 2, guide, DDIM(5)) for _ in range(2)]
    assert torch.equal(*images_of)


def other_denoiser() -> Denoiser:
    return Denoiser(lambda x, t: torch.tanh(0.7 * x), linear_schedule(), SHAPE)


@pytest.mark.parametrize("sampler", [DDIM(5), DDPM(5)], ids=["DDIM", "DDPM"])
def test_classifier_free_guidance_of_scale_1_samples_the_conditional_denoiser(
    sampler: Sampler,
) -> None:
    found = sample(tiny_denoiser(), 3, ClassifierFreeGuidance(other_denoiser(), 1.0), sampler)
    expected = sample(other_denoiser(), 3, None, sampler)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_autoguidance_goes_as_far_beyond_the_good_one_as_the_bad_one_is_behind() -> None:
    good, bad = tiny_denoiser(), other_denoiser()
    mirrored = Denoiser(
        lambda x, t: 2 * good.network(x, t) - bad.network(x, t), linear_schedule(), SHAPE
    )
    found = sample(good, 3, Autoguidance(bad, 1.0), DDIM(5))
    torch.testing.assert_close(found, sample(mirrored, 3, None, DDIM(5)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [ClassifierFreeGuidance, Autoguidance])
def test_a_denoiser_made_for_other_noise_guides_no_other(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same timestep it would be shown more noise than it knows there, or less."""
    again = Denoiser(tiny_denoiser().network, linear_schedule(), SHAPE)
    compared = []
    check = NoiseLevels.check
    monkeypatch.setattr(
        NoiseLevels, "check", lambda *given: (compared.append(given), check(*given))
    )
    assert sample(tiny_denoiser(), 2, method(again, 1.0), DDIM(5), batch=1).isfinite().all()
    assert len(compared) == 2  # once a trajectory
    for schedule, differs in (
        (cosine_schedule(), "share of signal"),
        (linear_schedule(500), "500"),
    ):
        other = Denoiser(again.network, schedule, SHAPE)
        with pytest.raises(NoiseLevelsError, match=f"^the denoiser that guides .*{differs}"):
            sample(tiny_denoiser(), 1, method(other, 1.0), DDIM(2))
    with pytest.raises(TypeError, match=r"guides by another ppap\.Denoiser.*, got TinyResNet$"):
        method(TinyResNet())


def test_fk_steering_needs_no_gradient_and_raises_the_reward() -> None:
    def rounded(x: Tensor) -> Tensor:
        return (100 * x.detach()).round() / 100

    reward = ImageLikelihood(rounded, Brightness(), 0.6)
    sampler = DDIM(10, eta=1.0)

    def mean_reward(guide: StepGuide | None) -> float:
        x = sample(tiny_denoiser(), 12, guide, sampler)
        return float(Brightness().log_likelihood(x, torch.tensor(0.6)).mean())

    one, many = (mean_reward(FKSteering(reward, 50.0, n, 3)) for n in (1, 8))
    assert one == pytest.approx(mean_reward(None), abs=1e-6)
    assert many > one + 0.01


def test_fk_steerings_particles_go_on_undrawn_where_a_function_of_the_noise_is_0() -> None:
    sampler = DDIM(10, eta=1.0)
    levels = sampler.respace(linear_schedule()).alphas_cumprod[::-1]  # as steps see them

    def rewards(scales: Sequence[float], every: int = 3) -> Tensor:
        def scale(level: Tensor) -> float:
            return scales[int(abs(levels - float(level[0])).argmin())]

        x = sample(tiny_denoiser(), 12, FKSteering(BRIGHT, scale, 8, every), sampler)
        return Brightness().log_likelihood(x, torch.tensor(0.5))

    drawn = [50.0] * 10
    without_reward = [50.0, 50.0, 0.0, 50.0, 50.0, 0.0, 50.0, 50.0, 0.0, 50.0]
    best = rewards(drawn, every=100)  # of 8 particles that were never drawn
    assert torch.equal(rewards(without_reward), best)
    assert torch.equal(rewards([50.0] + [0.0] * 9), best)
    assert not torch.equal(rewards(drawn), best)
    assert torch.equal(rewards([50.0] * 4 + [0.0, 50.0, 0.0] + [50.0] * 3), rewards(drawn))


def test_fk_steering_of_one_scale_per_sample_leaves_those_of_0_alone() -> None:
    sampler = DDIM(6, eta=1.0)

    def scale(level: Tensor) -> Tensor:  # the second sample's is 0 in the middle and at the end
        return torch.stack([0 * level[0], 50.0 * (level[1] < 1e-3), 50 + 0 * level[2]])

    found = sample(tiny_denoiser(), 3, FKSteering(BRIGHT, scale, 4, 2), sampler)
    free = sample(tiny_denoiser(), 3, None, sampler)
    steered = sample(tiny_denoiser(), 3, FKSteering(BRIGHT, 50.0, 4, 2), sampler)
    undrawn = sample(tiny_denoiser(), 3, FKSteering(BRIGHT, 50.0, 4, 100), sampler)
    for row, expected in enumerate((free, undrawn, steered)):
        assert torch.equal(found[row], expected[row])


class Told:
    """A reward of each particle that is known beforehand, in the order in which it is asked."""

    target_count = None

    def __init__(self, *rewards: float) -> None:
        self.rewards = list(rewards)
        self.clips: list[float | None] = []

    def of_state(
        self, state: State, jitter: Tensor | None = None, clip: float | None = None
    ) -> Tensor:
        self.clips.append(clip)
        return torch.full((len(state.x_t),), self.rewards.pop(0))


@pytest.mark.parametrize(
    ("potential", "expected"),
    [
        ("difference", [[-1, -5], [-3 + 1, -0.5 + 1], [-2 + 0.5, -2 + 3]]),
        ("max", [[-1, -5], [-1, -0.5], [-0.5, -1]]),
    ],
)
def test_particles_are_weighed_by_their_own_rewards_so_far(
    potential: Any, expected: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is drawn takes along what its ancestors were rewarded with."""
    seen: list[list[float]] = []
    drawn = [[0, 0], [1, 0], [0, 1]]  # of two particles: the first twice, then crosswise

    def systematic(log_weights: Tensor, noise: Tensor) -> Tensor:
        seen.append(log_weights[:, 0].tolist())
        return torch.tensor(drawn[len(seen) - 1])[:, None].expand(2, len(noise))

    monkeypatch.setattr(fk_steering, "systematic", systematic)
    reward = Told(-1, -5, -3, -0.5, -2, -2)
    guide = FKSteering(reward, 2.0, 2, 1, potential, clip=0.8)  # type: ignore[arg-type]
    memory: dict[object, Any] = {}
    for number in range(3):
        step_of(guide, DDIM(5, eta=1.0), number=number, memory=memory)
    assert seen == [[2 * weight for weight in pair] for pair in expected]
    assert reward.clips == [0.8] * 6


def test_fk_steering_that_is_left_out_for_a_step_begins_anew_with_the_sample_itself() -> None:
    sampler, denoiser = DDIM(10, eta=1.0), tiny_denoiser()
    schedule, method = sampler.respace(linear_schedule()), FKSteering(BRIGHT, 50.0, 3, 100)
    memory: dict[object, Any] = {}
    for number in (2, 3, 5):
        index = 9 - number
        at = torch.full((2,), int(schedule.timesteps[index]))
        state = State(images(2, number), at, denoiser, seeds=(1, 2), number=number, memory=memory)
        step = SamplingStep(sampler, schedule, index, state, images(2, 9))
        with torch.no_grad():
            plain, found = step.plain(), method.step(step)
        assert torch.equal(found.x, plain.x) == (number != 3)


class Lit:
    """A reward of 0 for each image that is lit enough, another for the rest."""

    def __init__(self, least: float, otherwise: float) -> None:
        self.least, self.otherwise = least, otherwise

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        del targets
        return torch.where(prediction.mean((1, 2, 3)) > self.least, 0.0, self.otherwise)


def test_the_best_particle_is_so_within_the_range_in_which_images_are_returned() -> None:
    class Beyond:
        def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
            return (prediction.abs() > 1).float().mean((1, 2, 3))

    sampler, denoiser = DDIM(6, eta=1.0, clip=False), tiny_denoiser()
    beyond = ImageLikelihood(lambda x: x, Beyond(), 0.0)
    free = sample(denoiser, 6, None, sampler)
    assert torch.equal(sample(denoiser, 6, FKSteering(beyond, 1.0, 4, 100), sampler), free)
    held = FKSteering(beyond, 1.0, 4, 100, clip=None)
    assert not torch.equal(sample(denoiser, 6, held, sampler), free)


@pytest.mark.parametrize("every", [2, 100])
def test_a_reward_that_is_no_number_is_refused_unless_the_sample_is_not_steered(every: int) -> None:
    lost, sampler = ImageLikelihood(lambda x: x, Lit(9.0, math.nan), 0.0), DDIM(6, eta=1.0)
    with pytest.raises(NonFiniteError, match=r"row 1 \(seed 1\) has a particle without a finite"):
        sample(tiny_denoiser(), 3, FKSteering(lost, [0.0, 1.0, 1.0], 3, every), sampler)
    free = sample(tiny_denoiser(), 3, None, sampler)
    unsteered = FKSteering(lost, lambda level: 0.0 * level, 3, every)
    assert torch.equal(sample(tiny_denoiser(), 3, unsteered, sampler), free)


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_particles_that_are_impossible_are_never_drawn_unless_all_are(potential: Any) -> None:
    sampler, denoiser = DDIM(10, eta=1.0), tiny_denoiser()
    for least, possible in ((-0.26, True), (9.0, False)):
        reward = ImageLikelihood(lambda x: x, Lit(least, -math.inf), 0.0)
        found = sample(denoiser, 6, FKSteering(reward, 1.0, 32, 5, potential), sampler)
        assert bool((found.mean((1, 2, 3)) > least).all()) == possible
    assert torch.equal(found, sample(denoiser, 6, None, sampler))


def test_fk_steering_refuses_samplers_under_which_copies_stay_copies() -> None:
    with pytest.raises(ValueError, match=r"DDIM\(eta > 0\) or DDPM"):
        sample(tiny_denoiser(), 2, FKSteering(BRIGHT, 1.0), DDIM(5))


def test_particles_are_drawn_in_proportion_to_their_weights() -> None:
    weights = torch.tensor([[0.5, 0.0], [0.25, 0.0], [0.25, 0.0], [0.0, 1.0]])
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = systematic(weights.log(), noise)
    assert found[:, 0].tolist() == [0, 0, 1, 2]
    assert found[:, 1].tolist() == [3, 3, 3, 3]


def test_the_last_particle_is_drawn_where_rounding_leaves_nothing_to_draw() -> None:
    """A uniform of 1, against weights whose sum is rounded to less."""
    weights = torch.zeros(41, 1)
    assert weights.softmax(0).cumsum(0)[-1] < 1
    found = systematic(weights, torch.full((1, *SHAPE), 9.0))
    assert int(found.max()) == len(weights) - 1


def test_a_target_that_is_certain_pulls_nowhere_under_dps() -> None:
    class Certain:
        def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
            return -(prediction - 100).relu().sum((1, 2, 3))

    found, _ = step_of(DPS(ImageLikelihood(lambda x: x, Certain(), 0)), DDIM(5))
    assert found.gradient is not None
    assert not found.gradient.any()
    assert torch.equal(found.x, step_of(None, DDIM(5))[0].x)


def test_tfg_spreads_its_ascent_and_its_draws_as_it_is_told() -> None:
    sampler = DDIM(5, clip=False)
    guide = TFG(
        BRIGHT, 3.0, rho=0.0, mu=2.0, sigma=0.3, iterations=1, mu_spread="decrease",
        sigma_spread="constant", clip=None,
    )  # fmt: skip
    found, state = step_of(guide, sampler)
    schedule = sampler.respace(linear_schedule())
    jitter = 0.3 * SamplingStep(sampler, schedule, INDEX, state).draw()
    share = schedule.betas[INDEX] / schedule.betas.mean()
    ascent = 3 * 2 * share * bright_gradient(state.x_0() + jitter)
    moved = math.sqrt(schedule.alphas_cumprod_prev[INDEX]) * ascent
    torch.testing.assert_close(found.x, step_of(None, sampler)[0].x + moved, rtol=0, atol=1e-5)


def test_a_bank_looks_at_x_t_by_the_expert_of_t_and_at_images_by_that_of_least_noise() -> None:
    bank = ExpertBank(tiny_predictor(), 4, Adapter((Biases(),)))
    for number in range(4):
        for tensor in bank.expert(number).parameters():
            tensor.data += 0.3 * (number + 1)
    denoiser, x_t, t = tiny_denoiser(), images(2), torch.tensor([900, 300])
    state = State(x_t, t, denoiser).with_graph()
    on_x_t, on_x_0 = bank.likelihood([1, 4]), bank.likelihood([1, 4], on="x_0")
    assert isinstance(on_x_t, NoisyLikelihood)
    picked = torch.arange(2), torch.tensor([1, 4])
    by_t = torch.stack([bank.predict(x_t, n).log_softmax(1)[i] for i, n in enumerate((3, 1))])
    torch.testing.assert_close(on_x_t.of_state(state), by_t[picked])
    least = bank.predict(state.x_0(), 0).log_softmax(1)
    torch.testing.assert_close(on_x_0.of_state(state), least[picked])
    # Seen as a function of the image, x_t moves with it; at x̂₀ it is x_t itself.
    torch.testing.assert_close(on_x_t.of_image(state.x_0(), state), by_t[picked])
    with pytest.raises(ValueError, match="'x_t' or 'x_0'"):
        bank.likelihood(1, on="x_1")  # type: ignore[arg-type]
