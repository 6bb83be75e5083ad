"""One guided reverse step against its closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ppap_kernels import guided_ddim_step, guided_ddpm_step
from ppap_kernels.guided_step import guided_ddim_op, guided_ddpm_op
from torch import Tensor

Function = Callable[..., Tensor]

SHAPE = (3, 2, 4, 5)


def images(
    count: int, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


def levels(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Signal, previous signal and sigma of three images at different timesteps."""
    values = ([0.1, 0.5, 0.9], [0.2, 0.7, 0.95], [0.0, 0.3, 0.1])
    return [torch.tensor(v, dtype=dtype) for v in values]


def columns(*vectors: Tensor) -> list[Tensor]:
    return [v.view(-1, 1, 1, 1) for v in vectors]


@pytest.fixture(params=["torch", "op"])
def ddim(request: pytest.FixtureRequest) -> Function:
    if request.param == "torch":
        return guided_ddim_step
    from ppap_kernels.guided_step import _ddim

    return lambda x, e, s, p, d, g=None, z=None, clip=True: _ddim(x, e, s, p, d, g, z, clip, False)


@pytest.fixture(params=["torch", "op"])
def ddpm(request: pytest.FixtureRequest) -> Function:
    if request.param == "torch":
        return guided_ddpm_step
    from ppap_kernels.guided_step import _ddpm

    return lambda *t, clip=True: _ddpm(*t, clip, False)


def test_ddim_unguided_is_equation_12_of_song(ddim: Function) -> None:
    (x, e, z), (abar, prev, sigma) = images(3), levels()
    a, p, s = columns(abar, prev, sigma)
    x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
    expected = p.sqrt() * x0 + (1 - p - s**2).sqrt() * e + s * z
    torch.testing.assert_close(ddim(x, e, abar, prev, sigma, None, z, False), expected)


def test_ddim_guidance_shifts_the_noise_by_the_gradient(ddim: Function) -> None:
    (x, e, g), (abar, prev, sigma) = images(3), levels()
    shifted = e - columns((1 - abar).sqrt())[0] * g
    expected = ddim(x, shifted, abar, prev, sigma, None, None, False)
    torch.testing.assert_close(ddim(x, e, abar, prev, sigma, g, None, False), expected)


def test_ddim_clips_before_it_guides(ddim: Function) -> None:
    (x, e), (abar, prev, _) = images(2), levels()
    a, p = columns(abar, prev)
    x0 = ((x - (1 - a).sqrt() * e) / a.sqrt()).clamp(-1, 1)
    assert (x0.abs() == 1).any()
    e_clipped = (x - a.sqrt() * x0) / (1 - a).sqrt()
    expected = p.sqrt() * x0 + (1 - p).sqrt() * e_clipped
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(ddim(x, e, abar, prev, zero), expected)


def test_the_last_step_returns_the_clipped_image(ddim: Function) -> None:
    (x, e), (abar, _, _) = images(2), levels()
    one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    a = columns(abar)[0]
    expected = ((x - (1 - a).sqrt() * e) / a.sqrt()).clamp(-1, 1)
    torch.testing.assert_close(ddim(x, e, abar, one, zero), expected)


@pytest.mark.parametrize("pixelwise", [False, True])
def test_ddpm_is_the_shifted_posterior(ddpm: Function, pixelwise: bool) -> None:
    x, e, g, z, v = images(5)
    abar, c0, ct = levels()
    log_variance = 0.3 * v if pixelwise else torch.tensor([-2.0, -1.0, -3.0], dtype=torch.float64)
    lv = log_variance if pixelwise else columns(log_variance)[0]
    a, k0, kt = columns(abar, c0, ct)
    x0 = ((x - (1 - a).sqrt() * e) / a.sqrt()).clamp(-1, 1)
    expected = k0 * x0 + kt * x + lv.exp() * g + (0.5 * lv).exp() * z
    got = ddpm(x, e, abar, c0, ct, log_variance, None, g, z)
    torch.testing.assert_close(got, expected)


def test_ddpm_takes_a_variance_of_its_own_and_no_noise_at_minus_infinity(ddpm: Function) -> None:
    x, e, g, z = images(4)
    abar, c0, ct = levels()
    nothing = torch.full((3,), -torch.inf, dtype=torch.float64)
    got = ddpm(x, e, abar, c0, ct, nothing, torch.zeros(3, dtype=torch.float64), g, z)
    expected = ddpm(x, e, abar, c0, ct, nothing, None, None, None)
    torch.testing.assert_close(got, expected)


def test_a_batch_of_mixed_timesteps_equals_its_images_one_by_one(ddim: Function) -> None:
    tensors, coefficients = images(4), levels()
    x, e, g, z = tensors
    whole = ddim(x, e, *coefficients, g, z)
    for i in range(3):
        x, e, g, z = (t[i : i + 1] for t in tensors)
        one = ddim(x, e, *(c[i : i + 1] for c in coefficients), g, z)
        torch.testing.assert_close(whole[i : i + 1], one)


def test_gradients(ddim: Function, ddpm: Function) -> None:
    x, e, g, z = (t.requires_grad_() for t in images(4, shape=(3, 2)))
    coefficients = [c.requires_grad_() for c in levels()]
    assert torch.autograd.gradcheck(ddim, (x, e, *coefficients, g, z))
    log_variance = torch.tensor([-2.0, -1.0, -3.0], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ddpm, (x, e, *coefficients, log_variance, None, g, z))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself
def test_opcheck() -> None:
    x, e, g, z = (t.requires_grad_() for t in images(4, torch.float32))
    coefficients = levels(torch.float32)
    torch.library.opcheck(guided_ddim_op, (x, e, *coefficients, g, z, True, False))
    torch.library.opcheck(guided_ddim_op, (x, e, *coefficients, None, None, False, False))
    log_variance = torch.zeros(3)
    arguments = (x, e, *coefficients, log_variance, None, g, z, True, False)
    torch.library.opcheck(guided_ddpm_op, arguments)


def test_compiles_whole_and_takes_functional_gradients(ddim: Function) -> None:
    (x, e), coefficients = images(2), levels()

    def call(x: Tensor) -> Tensor:
        return ddim(x, e, *coefficients).square().sum()

    expected = torch.func.grad(call)(x)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)


def test_half_precision_images_keep_their_dtype() -> None:
    (x, e), coefficients = images(2, torch.float16), levels(torch.float32)
    step = guided_ddim_step(x, e, *coefficients)
    assert step.dtype == torch.float16
    wide = guided_ddim_step(x.double(), e.double(), *coefficients)
    torch.testing.assert_close(step.double(), wide, rtol=2e-3, atol=2e-3)


def test_errors_say_what_was_expected() -> None:
    (x, e), (abar, prev, sigma) = images(2), levels()
    with pytest.raises(ValueError, match=r"signal must hold one value per image, \(3,\)"):
        guided_ddim_step(x, e, abar[:1], prev, sigma)
    with pytest.raises(ValueError, match="gradient must be shaped like x_t"):
        guided_ddim_step(x, e, abar, prev, sigma, e[:, :1])
    with pytest.raises(ValueError, match="log_variance must be shaped like x_t"):
        guided_ddpm_step(x, e, abar, prev, sigma, e[:, :1])
