"""What a guide sees of a batch: computed once, when asked for, with a graph if asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, Prediction
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import linear_schedule
from tests.ppap.networks import SHAPE, images, tiny_denoiser


class Counting:
    """A network that counts its forward passes."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(0.9 * x_t + timesteps[:, None, None, None] / 1000)


class Looking:
    """A guide that looks at what it is made for, and pulls towards grey."""

    target_count = None

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, state: State) -> Tensor:
        if self.how == "x_t":
            return -0.1 * state.x_t
        if self.how == "x_0":
            return -0.1 * state.x_0().clamp(-1, 1)
        inner = state.with_graph()
        with torch.enable_grad():
            loss = 0.1 * inner.x_0().square().sum()
            (gradient,) = torch.autograd.grad(loss, inner.x_t)
        return -gradient.clamp(-1, 1)

    def rows(self, chosen: slice) -> Looking:
        del chosen
        return self


@pytest.mark.parametrize("how", ["x_t", "x_0", "through the denoiser"])
def test_looking_at_the_prediction_costs_no_forward_pass(how: str) -> None:
    network = Counting()
    sample(Denoiser(network, linear_schedule(), SHAPE), 3, Looking(how), DDIM(5))
    assert network.calls == 5


def test_the_image_ahead_is_the_denoisers_and_has_a_graph_on_request() -> None:
    denoiser, x_t, t = tiny_denoiser(), images(3), torch.tensor([10, 400, 999])
    state = State(x_t, t, denoiser)
    level = torch.from_numpy(denoiser.schedule.alphas_cumprod)[t].float()[:, None, None, None]
    torch.testing.assert_close(state.signal[:, None, None, None], level)

    def x_0(x: Tensor) -> Tensor:
        return (x - (1 - level).sqrt() * denoiser(x, t).epsilon) / level.sqrt()

    torch.testing.assert_close(state.x_0(), x_0(x_t))
    assert not state.x_0().requires_grad
    inner = state.with_graph()
    with torch.no_grad():  # as in the loop
        ahead = inner.x_0()
    (found,) = torch.autograd.grad(ahead.square().sum(), inner.x_t)
    leaf = x_t.clone().requires_grad_()
    (expected,) = torch.autograd.grad(x_0(leaf).square().sum(), leaf)
    torch.testing.assert_close(found, expected)
    assert not x_t.requires_grad


def test_a_prediction_made_elsewhere_is_used() -> None:
    state = State(images(2), torch.tensor([3, 3]), tiny_denoiser())
    other = Prediction(images(2, 1))
    state.share(other)
    assert torch.equal(state.prediction().epsilon, other.epsilon)
    state.share(Prediction(images(2, 2)))
    assert torch.equal(state.prediction().epsilon, other.epsilon), "unless there is one already"


def test_a_prediction_with_a_graph_serves_the_step_without_it() -> None:
    state = State(images(2), torch.tensor([3, 3]), tiny_denoiser())
    inner = state.with_graph().prediction()
    assert inner.epsilon.requires_grad
    assert not state.prediction().epsilon.requires_grad
    assert torch.equal(state.prediction().epsilon, inner.epsilon)


def test_a_state_of_other_images_is_of_the_same_step_of_the_same_samples() -> None:
    memory: dict[object, int] = {"step": 1}
    given = torch.tensor([3, 9]), tiny_denoiser()
    other = State(images(2), *given, seeds=(4, 5), number=7, memory=memory).at(images(2, 1))
    assert (other.seeds, other.number, other.denoiser) == ((4, 5), 7, given[1])
    assert other.memory is memory
    assert torch.equal(other.timesteps, given[0])
    assert other.known_prediction is None


def test_a_state_without_a_denoiser_says_what_is_missing() -> None:
    state = State(images(1), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"State\(x_t, timesteps, denoiser\)"):
        state.prediction()
