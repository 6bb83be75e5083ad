"""Guidance through the denoiser, of pixels and of latents, against autograd by hand."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import linear_schedule
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.x0_gradient import X0Gradient
from ppap.guidance.wrappers import ClippedGradient
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import CLASSES, images, tiny_denoiser, tiny_predictor

LATENT = (4, 4, 4)
SCALING = 0.6


class Decoder(nn.Module):
    """A small seeded variational autoencoder's: latents (B, 4, 4, 4) -> images (B, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
        freeze(self.vae)

    def forward(self, latents: Tensor) -> Tensor:
        found: Tensor = self.vae.decode(latents / SCALING).sample
        return found


def latent_denoiser() -> Denoiser:
    torch.manual_seed(1)
    layer = freeze(nn.Conv2d(4, 4, 3, padding=1))

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(layer(x_t) + t[:, None, None, None] / 1000)

    return Denoiser(network, linear_schedule(), LATENT, decode=Decoder())


def smooth_predictor() -> Predictor:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, CLASSES))
    return Predictor(freeze(network))


def test_a_predictor_of_images_guides_latents_through_the_decoder() -> None:
    denoiser, predictor, targets = latent_denoiser(), smooth_predictor(), torch.tensor([0, 3, 1])
    x_t = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([800, 300, 20])
    guide = X0Gradient(ImageLikelihood(predictor, ClassTask(), targets), 2.5)
    found = guide(State(x_t, t, denoiser))
    leaf = x_t.clone().requires_grad_()
    level = torch.from_numpy(denoiser.schedule.alphas_cumprod)[t].float()[:, None, None, None]
    clean = (leaf - (1 - level).sqrt() * denoiser.network(leaf, t)) / level.sqrt()
    decoder = denoiser.decoder
    assert isinstance(decoder, Decoder)
    logits = predictor(decoder.vae.decode(clean / SCALING).sample)
    likelihood = logits.log_softmax(1)[torch.arange(3), targets].sum()
    (expected,) = torch.autograd.grad(likelihood, leaf)
    torch.testing.assert_close(found, 2.5 * expected, rtol=1e-4, atol=1e-6)


def test_latents_are_sampled_and_images_returned() -> None:
    denoiser, predictor, target = latent_denoiser(), smooth_predictor(), 3
    guide = ClippedGradient(X0Gradient(ImageLikelihood(predictor, ClassTask(), target), 20.0), 5.0)
    sampler = DDIM("8 to 80", clip=False)
    steered, free = (sample(denoiser, 6, g, sampler, batch=4) for g in (guide, None))
    assert steered.shape == (6, 3, 8, 8)
    likely = [predictor(x).log_softmax(1)[:, target].mean() for x in (steered, free)]
    assert likely[0] > likely[1] + 0.1


def test_pixels_are_guided_by_a_clean_predictor_of_the_image_ahead() -> None:
    denoiser, predictor = tiny_denoiser(), tiny_predictor()
    guide = X0Gradient(ImageLikelihood(predictor, ClassTask(), [1, 4]), 3.0)
    x_t, t = images(2), torch.tensor([500, 100])
    state = State(x_t, t, denoiser)
    found = guide(state)
    leaf = x_t.clone().requires_grad_()
    level = denoiser.schedule.signal(t)[:, None, None, None]
    clean = (leaf - (1 - level).sqrt() * denoiser(leaf, t).epsilon) / level.sqrt()
    likelihood = predictor(clean).log_softmax(1)[torch.arange(2), torch.tensor([1, 4])].sum()
    (expected,) = torch.autograd.grad(3.0 * likelihood, leaf)
    torch.testing.assert_close(found, expected)
    assert guide.rows(slice(1, 2)).likelihood.targets.tolist() == [4]
