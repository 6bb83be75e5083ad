"""One reverse step under guidance as a single elementwise pass.

Two forms. `guided_ddim_step` is DDIM (Song et al., arXiv 2010.02502, eq. 12) with the guidance
gradient added to the score as in Dhariwal & Nichol (arXiv 2105.05233, algorithm 2).
`guided_ddpm_step` is the ancestral step (Ho et al., arXiv 2006.11239, eq. 6-7) with the mean
shifted by variance times gradient (Dhariwal & Nichol, algorithm 1). The caller passes each
image's coefficients, not a schedule, so images of one batch may be at different timesteps.

The operator reads x_t, eps, gradient and noise once and writes the result once. Its derivative,
off the hot path, is that of the plain-torch reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppap_kernels.dispatch import Backend, select, uses_op
from ppap_kernels.operators import differentiable, reference_vjp

__all__ = [
    "guided_ddim_op",
    "guided_ddim_reference",
    "guided_ddim_step",
    "guided_ddpm_op",
    "guided_ddpm_reference",
    "guided_ddpm_step",
]


def guided_ddim_reference(
    x_t: Tensor,
    eps: Tensor,
    signal: Tensor,
    signal_prev: Tensor,
    sigma: Tensor,
    gradient: Tensor | None = None,
    noise: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """The same in plain torch; also what runs on a CPU. See `guided_ddim_step`."""
    root, rest = _column(signal.sqrt(), x_t), _column((1 - signal).sqrt(), x_t)
    x, e = x_t.to(root.dtype), eps.to(root.dtype)
    if clip:
        x0 = ((x - rest * e) / root).clamp(-1, 1)
        e = (x - root * x0) / rest
    if gradient is not None:
        e = e - rest * gradient.to(root.dtype)
    x0 = (x - rest * e) / root
    direction = (1 - signal_prev - sigma.square()).clamp(min=0).sqrt()
    result = _column(signal_prev.sqrt(), x_t) * x0 + _column(direction, x_t) * e
    if noise is not None:
        result = result + _column(sigma, x_t) * noise.to(root.dtype)
    return result.to(x_t.dtype)


def guided_ddim_step(
    x_t: Tensor,
    eps: Tensor,
    signal: Tensor,
    signal_prev: Tensor,
    sigma: Tensor,
    gradient: Tensor | None = None,
    noise: Tensor | None = None,
    clip: bool = True,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """x_{t-1} of DDIM, with the guidance gradient in the score.

    Args:
        x_t: (B, ...) noisy images.
        eps: like x_t, predicted noise. May be a slice of the network's output: only each image
            need be contiguous.
        signal: (B,) abar_t in (0, 1), float32 or float64; float64 keeps 1 - abar_t accurate
            where little noise is left.
        signal_prev: (B,) abar_{t-1} in (0, 1].
        sigma: (B,) standard deviation of the fresh noise, 0 for the deterministic step.
        gradient: like x_t, gradient of the log-likelihood times the guidance scale.
        noise: like x_t, standard normal; not needed where sigma is 0.
        clip: clip the predicted image to [-1, 1] before guidance.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        Like x_t; the arithmetic is float32, or float64 for float64 images.

    Raises:
        ValueError: if a shape does not fit, or the backend cannot run here.
    """
    _check(x_t, {"signal": signal, "signal_prev": signal_prev, "sigma": sigma},
           {"eps": eps, "gradient": gradient, "noise": noise})  # fmt: skip
    if not _takes_op(backend, "guided_ddim_step", x_t, eps, gradient):
        return guided_ddim_reference(x_t, eps, signal, signal_prev, sigma, gradient, noise, clip)
    force = backend == "triton"
    arguments = (x_t, eps, signal, signal_prev, sigma, gradient, noise, clip, force)
    return _ddim(*arguments)  # type: ignore[no-any-return]


def guided_ddpm_reference(
    x_t: Tensor,
    eps: Tensor,
    signal: Tensor,
    x0_weight: Tensor,
    x_t_weight: Tensor,
    log_variance: Tensor,
    variance: Tensor | None = None,
    gradient: Tensor | None = None,
    noise: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """The same in plain torch; also what runs on a CPU. See `guided_ddpm_step`."""
    root, rest = _column(signal.sqrt(), x_t), _column((1 - signal).sqrt(), x_t)
    x = x_t.to(root.dtype)
    x0 = (x - rest * eps.to(root.dtype)) / root
    if clip:
        x0 = x0.clamp(-1, 1)
    result = _column(x0_weight, x_t) * x0 + _column(x_t_weight, x_t) * x
    log_var = _column(log_variance, x_t)
    if gradient is not None:
        var = log_var.exp() if variance is None else _column(variance, x_t)
        result = result + var * gradient.to(root.dtype)
    if noise is not None:
        result = result + (0.5 * log_var).exp() * noise.to(root.dtype)
    return result.to(x_t.dtype)


def guided_ddpm_step(
    x_t: Tensor,
    eps: Tensor,
    signal: Tensor,
    x0_weight: Tensor,
    x_t_weight: Tensor,
    log_variance: Tensor,
    variance: Tensor | None = None,
    gradient: Tensor | None = None,
    noise: Tensor | None = None,
    clip: bool = True,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """x_{t-1} of DDPM's ancestral step, the mean shifted by variance times gradient.

    Args:
        x_t: (B, ...) noisy images.
        eps: like x_t, predicted noise.
        signal: (B,) abar_t in (0, 1), float32 or float64.
        x0_weight: (B,) factor of the predicted image in the posterior mean.
        x_t_weight: (B,) factor of x_t in the posterior mean.
        log_variance: (B,), or like x_t where the network predicts it; -inf adds no noise.
        variance: (B,) variance that scales the gradient where it is not exp(log_variance), as
            at the last step of a schedule whose log-variance is clipped there.
        gradient: like x_t, gradient of the log-likelihood times the guidance scale.
        noise: like x_t, standard normal; none at the last step.
        clip: clip the predicted image to [-1, 1].
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        Like x_t; the arithmetic is float32, or float64 for float64 images.

    Raises:
        ValueError: if a shape does not fit, or the backend cannot run here.
    """
    pixelwise = log_variance.ndim > 1
    vectors = {"signal": signal, "x0_weight": x0_weight, "x_t_weight": x_t_weight}
    vectors |= {} if pixelwise else {"log_variance": log_variance}
    vectors |= {} if variance is None else {"variance": variance}
    images = {"eps": eps, "gradient": gradient, "noise": noise}
    _check(x_t, vectors, images | ({"log_variance": log_variance} if pixelwise else {}))
    arguments = (x_t, eps, signal, x0_weight, x_t_weight, log_variance, variance, gradient, noise)
    if not _takes_op(backend, "guided_ddpm_step", x_t, eps, gradient):
        return guided_ddpm_reference(*arguments, clip)
    return _ddpm(*arguments, clip, backend == "triton")  # type: ignore[no-any-return]


@torch.library.custom_op("ppap_kernels::guided_ddim_step", mutates_args=())
def guided_ddim_op(
    x_t: Tensor,
    eps: Tensor,
    signal: Tensor,
    signal_prev: Tensor,
    sigma: Tensor,
    gradient: Tensor | None,
    noise: Tensor | None,
    clip: bool,
    force: bool,
) -> Tensor:
    """`guided_ddim_step` as an operator; `force` takes Triton against the table."""
    entry = select("guided_ddim_step", x_t, _size(x_t), force)
    vectors, images = (signal, signal_prev, sigma), (gradient, noise)
    if entry is None:
        return _fresh(guided_ddim_reference(x_t, eps, *vectors, *images, clip), x_t)
    from ppap_kernels import triton_elementwise

    return triton_elementwise.guided_ddim(x_t, eps, vectors, images, clip, entry.config)


@torch.library.custom_op("ppap_kernels::guided_ddpm_step", mutates_args=())
def guided_ddpm_op(
    x_t: Tensor,
    eps: Tensor,
    signal: Tensor,
    x0_weight: Tensor,
    x_t_weight: Tensor,
    log_variance: Tensor,
    variance: Tensor | None,
    gradient: Tensor | None,
    noise: Tensor | None,
    clip: bool,
    force: bool,
) -> Tensor:
    """`guided_ddpm_step` as an operator; `force` takes Triton against the table."""
    entry = select("guided_ddpm_step", x_t, _size(x_t), force)
    vectors, images = (signal, x0_weight, x_t_weight), (gradient, noise)
    if entry is None:
        result = guided_ddpm_reference(x_t, eps, *vectors, log_variance, variance, *images, clip)
        return _fresh(result, x_t)
    from ppap_kernels import triton_elementwise

    return triton_elementwise.guided_ddpm(
        x_t, eps, vectors, (log_variance, variance, *images), clip, entry.config
    )


def _fake(x_t: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x_t, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-2])
    ctx.clip = inputs[-2]


def _ddim_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    vjp = reference_vjp(guided_ddim_reference, (*ctx.saved_tensors, ctx.clip), grad)
    return (*vjp, None)


def _ddpm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    vjp = reference_vjp(guided_ddpm_reference, (*ctx.saved_tensors, ctx.clip), grad)
    return (*vjp, None)


guided_ddim_op.register_fake(_fake)
guided_ddpm_op.register_fake(_fake)
_ddim = differentiable(guided_ddim_op, _setup_context, _ddim_backward)
_ddpm = differentiable(guided_ddpm_op, _setup_context, _ddpm_backward)


def _column(coefficient: Tensor, x_t: Tensor) -> Tensor:
    """A per-image coefficient shaped to broadcast over images, in the dtype of the arithmetic."""
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    shaped = coefficient if coefficient.ndim > 1 else coefficient.view(-1, *[1] * (x_t.ndim - 1))
    return shaped.to(dtype)


def _takes_op(backend: Backend, kernel: str, *tensors: Tensor | None) -> bool:
    """Whether a step goes through the operator; not where it is to be differentiated.

    An H200 takes twice as long for the operator's gradient as for torch's.
    """
    x_t = tensors[0]
    assert x_t is not None
    differentiated = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
    return uses_op(backend, x_t, kernel) and not (backend == "auto" and differentiated)


def _size(x_t: Tensor) -> dict[str, int]:
    return {"batch": x_t.shape[0], "pixels": x_t[0].numel() if len(x_t) else 0}


def _fresh(result: Tensor, x_t: Tensor) -> Tensor:
    """An operator's output: contiguous, as its fake says, and never one of its inputs."""
    return result.clone() if result is x_t else result.contiguous()


def _check(x_t: Tensor, vectors: dict[str, Tensor], images: dict[str, Tensor | None]) -> None:
    for name, vector in vectors.items():
        if vector.shape != x_t.shape[:1]:
            raise ValueError(
                f"{name} must hold one value per image, ({x_t.shape[0]},), "
                f"got {tuple(vector.shape)}"
            )
    for name, image in images.items():
        if image is not None and image.shape != x_t.shape:
            raise ValueError(
                f"{name} must be shaped like x_t, {tuple(x_t.shape)}, got {tuple(image.shape)}"
            )
