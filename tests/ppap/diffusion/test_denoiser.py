"""What a network predicts becomes the noise, exactly."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppap.denoisers.unet import UNetModel
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, RescaledTimesteps, SpaceToDepth, Target
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import Schedule, linear_schedule
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.x0_gradient import X0Gradient
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import SHAPE, images


@pytest.mark.parametrize("target", ["epsilon", "x_0", "v"])
def test_a_perfect_network_gives_the_noise_back(target: Target) -> None:
    schedule = linear_schedule()
    t = torch.tensor([0, 10, 400, 900])
    x_0, noise = images(4, seed=1), images(4, seed=2)
    level = schedule.signal(t)[:, None, None, None]
    answers = {
        "epsilon": noise,
        "x_0": x_0,
        "v": level.sqrt() * noise - (1 - level).sqrt() * x_0,
    }
    denoiser = Denoiser(lambda x, t: answers[target], schedule, SHAPE, target)
    predicted = denoiser(schedule.add_noise(x_0, t, noise), t).epsilon
    # At t = 0 the noise is divided by 0.01, which float32 knows to 3e-4, and so is the rounding
    # of an image: 2.4e-7 between 2 and 4.
    torch.testing.assert_close(predicted, noise, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("target", ["epsilon", "x_0", "v"])
def test_a_network_may_count_its_timesteps_from_1(target: Target) -> None:
    """Its noise levels are those of the timesteps it is shown, for the guide as well."""
    levels = linear_schedule().alphas_cumprod
    from_0, from_1 = Schedule(levels), Schedule(levels, np.arange(1, 1001))
    guide = X0Gradient(ImageLikelihood(lambda x: x.mean((2, 3)), ClassTask(), 2), 20.0)

    def drawn(schedule: Schedule, first: int) -> Tensor:
        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(0.9 * x_t + (t - first)[:, None, None, None] / 1000)

        return sample(Denoiser(network, schedule, SHAPE, target), 3, guide, DDIM(5))

    assert torch.equal(drawn(from_1, 1), drawn(from_0, 0))


def test_learned_variance_is_split_off() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x, x + 1], dim=1)

    prediction = Denoiser(network, linear_schedule(), SHAPE, learned_variance=True)(
        images(2), torch.tensor([1, 2])
    )
    assert torch.equal(prediction.epsilon, images(2))
    assert prediction.variance_fraction is not None
    assert torch.equal(prediction.variance_fraction, images(2) + 1)


def test_unexpected_channels_name_the_mend() -> None:
    denoiser = Denoiser(lambda x, t: torch.cat([x, x], 1), linear_schedule(), SHAPE)
    with pytest.raises(ValueError, match="learned_variance"):
        denoiser(images(2), torch.tensor([1, 2]))


def test_diffusers_style_output_is_unwrapped() -> None:
    class Output:
        sample = images(2)

    denoiser = Denoiser(lambda x, t: Output(), linear_schedule(), SHAPE)
    assert torch.equal(denoiser(images(2), torch.tensor([1, 2])).epsilon, images(2))


class Labelled(nn.Module):
    """Predicts its label, plus noise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.dropout(torch.ones_like(x)) * y[:, None, None, None]


def test_conditions_go_to_the_network_by_row() -> None:
    labels = torch.tensor([3.0, 4.0, 5.0])
    bare = Denoiser(Labelled().eval(), linear_schedule(), SHAPE)
    denoiser = bare.with_conditions(y=labels)
    t = torch.tensor([1, 2, 3])
    assert bare.condition_count is None
    assert denoiser.condition_count == 3
    assert denoiser(images(3), t).epsilon[:, 0, 0, 0].tolist() == [3, 4, 5]
    assert denoiser.rows(slice(1, 3))(images(2), t[:2]).epsilon[:, 0, 0, 0].tolist() == [4, 5]
    assert bare.with_conditions(y=labels[:1]).rows(slice(1, 3)).condition_count is None
    with pytest.raises(ValueError, match="y is given for 3 images, got 2"):
        denoiser(images(2), t[:2])


def test_conditions_for_different_numbers_of_images_are_refused() -> None:
    def network(x: Tensor, t: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x + (y + z)[:, None, None, None]

    denoiser = Denoiser(network, linear_schedule(), SHAPE)
    with pytest.raises(ValueError, match=r"as many images.* got y for 3, z for 5$"):
        denoiser.with_conditions(y=[1.0, 2.0, 3.0], z=[1.0, 2.0, 3.0, 4.0, 5.0])
    labelled = denoiser.with_conditions(y=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="y for 3, z for 2"):
        labelled.with_conditions(z=torch.ones(2))
    assert labelled.with_conditions(y=[1.0, 2.0], z=0.5).condition_count == 2


def test_conditions_share_the_network_and_leave_its_mode_alone() -> None:
    network = Labelled().eval()
    denoiser = Denoiser(network, linear_schedule(), SHAPE)
    assert denoiser.with_conditions(y=torch.ones(1)).network is network
    assert not network.training


def test_rescaled_timesteps_are_shown() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return x

    RescaledTimesteps(Spy(), 0.25)(images(2), torch.tensor([3, 400]))
    assert seen[0].tolist() == [0.75, 100.0]


def test_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon, x_0, v"):
        Denoiser(lambda x, t: x, linear_schedule(), SHAPE, target="noise")  # type: ignore[arg-type]


def test_space_to_depth_is_undone() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.shape[1:] == (12, 4, 4)
            return 2 * x

    assert torch.equal(SpaceToDepth(Twice())(images(2), torch.tensor([0, 1])), 2 * images(2))


class Wrapped(nn.Module):
    """Adds the labels; its output is wrapped as diffusers' are."""

    def forward(self, x_t: Tensor, timesteps: Tensor, y: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=x_t + y[:, None, None, None])


@pytest.mark.parametrize("wrap", [lambda n: n, SpaceToDepth, lambda n: RescaledTimesteps(n, 2.0)])
def test_conditions_reach_a_network_whatever_it_is_wrapped_in(wrap: Any) -> None:
    denoiser = Denoiser(wrap(Wrapped()), linear_schedule(), SHAPE)
    x, t, labels = images(3), torch.tensor([1, 2, 3]), torch.tensor([0, 2, 1])
    expected = x + labels[:, None, None, None]
    for given in (labels, [0, 2, 1], (0, 2, 1), labels.numpy()):
        told = denoiser.with_conditions(y=given)
        assert told.condition_count == 3
        assert torch.equal(told(x, t).epsilon, expected)
    for one in (2, [2], torch.tensor(2)):
        told = denoiser.with_conditions(y=one)
        assert told.condition_count is None
        assert torch.equal(told(x, t).epsilon, x + 2)
    assert denoiser.train().with_conditions(y=1).training
    assert not denoiser.eval().with_conditions(y=1).training
    with pytest.raises(TypeError, match="the condition y is a tensor"):
        denoiser.with_conditions(y="cat")
    with pytest.raises(TypeError, match=r"Wrapped takes no condition labels; .* it takes y$"):
        denoiser.with_conditions(labels=[0, 2, 1])


def test_names_of_conditions_are_those_of_the_network_where_it_says_them() -> None:
    def bare(x_t: Tensor, timesteps: Tensor) -> Tensor:
        return x_t

    def open_ended(x_t: Tensor, *args: Tensor, **anything: Tensor) -> Tensor:
        return x_t + anything["y"]

    x, t = images(2), torch.tensor([1, 2])
    told = Denoiser(open_ended, linear_schedule(), SHAPE).with_conditions(y=2.0)
    assert torch.equal(told(x, t).epsilon, x + 2)
    with pytest.raises(TypeError, match=r"bare takes no condition y, z; .* it takes none"):
        Denoiser(bare, linear_schedule(), SHAPE).with_conditions(y=1, z=2)
    part = Denoiser(partial(Wrapped().forward, y=torch.ones(1)), linear_schedule(), SHAPE)
    assert torch.equal(part.with_conditions(y=2.0)(x, t).epsilon, x + 2)
    with pytest.raises(TypeError, match="takes no condition x_t"):
        part.with_conditions(x_t=1)


def test_half_precision_torso_stays_close_and_keeps_norms_in_float32() -> None:
    torch.manual_seed(0)
    network = UNetModel(16, 3, 32, 3, 1, (2,), channel_mult=(1, 2), num_head_channels=32).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([7])
    with torch.no_grad():
        single = network(x, t)
        network.convert_to_fp16()
        half = network(x, t)
    assert half.dtype == torch.float32
    assert network.middle_block[0].in_layers[0].weight.dtype == torch.float32
    assert network.middle_block[0].in_layers[2].weight.dtype == torch.float16
    torch.testing.assert_close(half, single, rtol=0.02, atol=0.02 * single.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_is_shown_images_of_its_own(dtype: torch.dtype) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
            return self.layer(x_t)

    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([3, 500])
    denoiser = Denoiser(Network(), linear_schedule(), (3, 4, 4))
    expected = denoiser(x, t).epsilon
    found = denoiser.to(dtype)(x, t).epsilon
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("wrapped", [lambda x: (x,), lambda x: {"sample": x}, lambda x: None])
def test_an_output_that_is_no_tensor_is_named(wrapped: Any) -> None:
    denoiser = Denoiser(lambda x, t: wrapped(x), linear_schedule(), SHAPE)
    with pytest.raises(TypeError, match=r"returns a tensor \(B, C, H, W\), or an object.*got "):
        denoiser(images(2), torch.tensor([3, 3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_decoder_is_shown_latents_of_its_own_precision_and_may_return_an_object(
    dtype: torch.dtype,
) -> None:
    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 2, stride=2)

        def decode(self, z: Tensor) -> Any:
            return SimpleNamespace(sample=self.layer(z))

    vae = Vae().to(dtype)
    latents = images(2).requires_grad_()
    expected = vae.layer(latents.to(dtype)).float()
    for decode in (vae.layer, vae.decode):
        denoiser = Denoiser(lambda x, t: x, linear_schedule(), SHAPE, decode=decode)
        decoded = denoiser.decode(latents)
        assert torch.equal(decoded, expected)
        assert decoded.dtype == torch.float32
        assert torch.autograd.grad(decoded.sum(), latents)[0].any()
        assert denoiser.image_shape() == (2, 4, 4)
    nothing = Denoiser(lambda x, t: x, linear_schedule(), SHAPE, decode=lambda z: (z,))
    with pytest.raises(TypeError, match=r"decoder returns a tensor .*, got tuple$"):
        nothing.decode(latents)


def test_a_decoders_images_are_one_for_each_latent() -> None:
    latents = torch.full((2, *SHAPE), 0.5)
    for wrong in (lambda z: z[0], lambda z: z[:1], lambda z: (255 * z).byte()):
        denoiser = Denoiser(lambda x, t: x, linear_schedule(), SHAPE, decode=wrong)
        with pytest.raises(ValueError, match=r"a decoder returns images .* 2 of as many latents"):
            denoiser.decode(latents)
