"""Calibrated logits, of any guide towards classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppap.diffusion.guide import Guide, State
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides
from ppap.guidance.likelihoods import ImageLikelihood, NoisyLikelihood
from ppap.guidance.methods.adm_g import classifier_guidance
from ppap.guidance.methods.calibrated import calibrated, calibrated_guidance
from ppap.guidance.methods.elucd import CalibratedLogits
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
from tests.ppap.networks import images, tiny_denoiser

TARGETS = torch.tensor([2, 0, 1])


def classify(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, :4] * (1 + t[:, None] / 100)


def depth(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x.mean(1, keepdim=True) * (1 + t[:, None, None, None] / 1000)


def state() -> State:
    return State(images(3), torch.full((3,), 300), tiny_denoiser())


def by_hand(marginal: float, scale: float) -> torch.Tensor:
    """The gradient of f_y less the logarithm of the sum, by the softmax's closed form."""
    logits = classify(state().x_t, state().timesteps)
    weights = -marginal * (marginal * logits).softmax(1)
    weights[torch.arange(3), TARGETS] += 1.0
    found = torch.zeros_like(state().x_t)
    found.flatten(1)[:, :4] = 4.0 * weights  # the model multiplies by 1 + 300 / 100
    return scale * found


@pytest.mark.parametrize("marginal", [0.0, 0.25, 0.5, 1.0])
def test_the_gradient_is_that_of_the_closed_form(marginal: float) -> None:
    likelihood = NoisyLikelihood(classify, ClassTask(), TARGETS)
    found = calibrated_guidance(likelihood, 3.0, marginal)(state())
    torch.testing.assert_close(found, by_hand(marginal, 3.0))


def test_with_a_whole_marginal_it_is_the_guide_as_published() -> None:
    likelihood = NoisyLikelihood(classify, ClassTask(), TARGETS)
    ours, published = (
        calibrated_guidance(likelihood, 3.0, 1.0),
        classifier_guidance(likelihood, 3.0),
    )
    torch.testing.assert_close(ours(state()), published(state()))


def guide(scale: Any = 3.0) -> LikelihoodGuide:
    return LikelihoodGuide(classify, ClassTask(), TARGETS, scale)


@pytest.mark.parametrize(
    "around",
    [
        lambda guide: GuidanceInterval(guide, last=500),
        lambda guide: GradientReuse(guide, 2),
        lambda guide: ClippedGradient(guide, 1.0),
        SignalWeighted,
        lambda guide: SumOfGuides((guide, guide)),
        lambda guide: SignalWeighted(SumOfGuides((GuidanceInterval(guide, last=500),))),
    ],
)
def test_what_is_around_a_guide_stays_around_it(around: Callable[[Guide], Guide]) -> None:
    plain, before = around(guide()), around(guide())(state())
    found, expected = calibrated(plain, 0.5), around(calibrated(guide(), 0.5))
    assert type(found) is type(plain)
    torch.testing.assert_close(found(state()), expected(state()))
    torch.testing.assert_close(plain(state()), before, rtol=0, atol=0)
    assert not torch.allclose(found(state()), before)


def test_other_targets_are_followed_as_before() -> None:
    shape = state().x_t.shape[-2:]
    towards = LikelihoodGuide(depth, DepthTask(), torch.rand(3, *shape), 2.0)
    found = calibrated(SumOfGuides((guide(), towards)), 0.5)
    torch.testing.assert_close(found(state()), by_hand(0.5, 3.0) + towards(state()))
    torch.testing.assert_close(calibrated(towards)(state()), towards(state()), rtol=0, atol=0)


def test_rows_scales_and_targets_are_those_of_the_guide() -> None:
    each = torch.tensor([1.0, 2.0, 0.0])
    found = calibrated(guide(each), 0.5)
    assert found.target_count == 3
    torch.testing.assert_close(found(state()), by_hand(0.5, 1.0) * each[:, None, None, None])
    assert found.rows(slice(1, 3)).target_count == 2


class Mine:
    """A guide of a user's, whose logits nobody sees."""

    target_count = None

    def __call__(self, state: State) -> torch.Tensor:
        return state.x_t

    def to(self, device: Any) -> None: ...

    def rows(self, chosen: slice) -> Mine:
        return self


@pytest.mark.parametrize(
    "other",
    [
        Mine(),
        MPGD(ImageLikelihood(lambda x: x.flatten(1)[:, :4], ClassTask(), TARGETS)),
        X0Gradient(ImageLikelihood(lambda x: x.flatten(1)[:, :4], ClassTask(), TARGETS)),
        SumOfGuides((guide(), Mine())),
    ],
    ids=["a user's", "MPGD", "x0", "in a sum"],
)
def test_a_guide_whose_logits_are_not_to_be_seen_is_refused(other: Any) -> None:
    with pytest.raises(
        TypeError, match=r"got (Mine|MPGD|X0Gradient); give its likelihood the task"
    ):
        calibrated(other)


def test_a_clean_predictor_and_a_temperature_that_is_none_are_refused() -> None:
    with pytest.raises(TypeError, match="takes a NoisyLikelihood"):
        calibrated_guidance(ImageLikelihood(classify, ClassTask(), TARGETS))
    with pytest.raises(ValueError, match="the marginal temperature must be finite and at least 0"):
        calibrated(guide(), -1.0)
    assert CalibratedLogits().marginal == 0.5


def test_a_guide_that_is_calibrated_keeps_its_temperatures() -> None:
    found = calibrated(calibrated(guide(), 0.25), 0.5)
    torch.testing.assert_close(found(state()), by_hand(0.25, 3.0))


def test_a_task_of_a_users_is_not_replaced_without_a_word() -> None:
    class Turned(ClassTask):
        """Towards the next class."""

    with pytest.raises(TypeError, match="Turned has a likelihood of its own"):
        calibrated(LikelihoodGuide(classify, Turned(), TARGETS))
