"""Guides against closed forms."""

from __future__ import annotations

import pytest
import torch

from ppap.guidance import LikelihoodGuide, SumOfGuides, naive_guide
from ppap.tasks import ClassTask

from .networks import images, tiny_predictor


def test_the_gradient_of_a_linear_classifier_by_hand() -> None:
    # log p(y | x) = w_y x - logsumexp(W x): gradient w_y - sum_k p_k w_k.
    weight = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    x, targets = images(4), torch.tensor([0, 3, 3, 1])
    guide = LikelihoodGuide(lambda x, t: x.flatten(1) @ weight.T, ClassTask(), targets, 2.5)
    share = (x.flatten(1) @ weight.T).softmax(1)
    expected = 2.5 * (weight[targets] - share @ weight)
    torch.testing.assert_close(guide(x, torch.zeros(4)).flatten(1), expected)


def test_the_naive_guide_ignores_the_timestep() -> None:
    guide = naive_guide(tiny_predictor(), ClassTask(), torch.zeros(2).long())
    x = images(2)
    assert torch.equal(guide(x, torch.tensor([0, 0])), guide(x, torch.tensor([900, 5])))


def test_guides_add_up() -> None:
    parts = [naive_guide(tiny_predictor(s), ClassTask(), torch.arange(4), s + 1.0) for s in (0, 1)]
    x, t = images(4), torch.zeros(4)
    both = SumOfGuides(tuple(parts))
    assert len(both) == 4
    torch.testing.assert_close(both(x, t), parts[0](x, t) + parts[1](x, t))
    chosen = slice(1, 3)
    torch.testing.assert_close(both.rows(chosen)(x[chosen], t[chosen]), both(x, t)[chosen])


def test_guides_of_different_lengths_are_refused() -> None:
    parts = [naive_guide(tiny_predictor(), ClassTask(), torch.arange(n)) for n in (2, 3)]
    with pytest.raises(ValueError, match="number of targets"):
        SumOfGuides(tuple(parts))


def test_a_guide_works_where_gradients_are_off() -> None:
    guide = naive_guide(tiny_predictor(), ClassTask(), torch.zeros(2).long())
    with torch.no_grad():
        assert guide(images(2), torch.zeros(2)).abs().sum() > 0
