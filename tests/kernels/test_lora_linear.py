"""A linear layer with LoRA: values, gradients, and what a frozen weight costs (nothing)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ppap_kernels import lora_linear
from ppap_kernels.lora_linear import low_rank_matmul_op
from ppap_kernels.triton_matmul import precision
from torch import Tensor

Function = Callable[..., Tensor]


def problem(
    rows: tuple[int, ...] = (2, 5),
    inner: int = 7,
    out: int = 6,
    rank: int = 3,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((*rows, inner), (out, inner), (rank, inner), (out, rank), (out,))
    tensors = [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    return [t.requires_grad_() for t in tensors]


def through_op(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor, scale: float = 1.0
) -> Tensor:
    """The operator's own torch formulation and its registered derivative, on a CPU."""
    from ppap_kernels.lora_linear import _apply

    rows = x.reshape(-1, x.shape[-1])
    y, _ = _apply(rows, weight.t(), a.t(), b.t(), bias, scale, False)
    return y.reshape(*x.shape[:-1], -1)


def test_it_is_the_layer_with_its_weight_updated() -> None:
    x, weight, a, b, bias = problem()
    expected = x @ (weight + 0.5 * b @ a).t() + bias
    torch.testing.assert_close(lora_linear(x, weight, a, b, bias, 0.5), expected)
    torch.testing.assert_close(through_op(x, weight, a, b, bias, 0.5), expected)


@pytest.mark.parametrize("function", [lora_linear, through_op])
def test_gradients(function: Function) -> None:
    assert torch.autograd.gradcheck(lambda *t: function(*t, 0.5), problem((3,), 4, 2, 1))


def test_second_derivatives_of_the_operator() -> None:
    inputs = problem((2,), 3, 2, 1)
    assert torch.autograd.gradgradcheck(lambda *t: through_op(*t, 0.5).square(), inputs)


@pytest.mark.parametrize("function", [lora_linear, through_op])
def test_a_frozen_weight_gets_no_gradient_and_none_is_computed(function: Function) -> None:
    x, weight, a, b, bias = problem((64,), 48, 40, 2)
    y = function(x, weight.detach(), a, b, bias.detach())
    with torch.profiler.profile(with_flops=True) as profile:
        y.sum().backward()
    assert weight.grad is None
    assert bias.grad is None
    # dW would be a product of 64 x 48 x 40; dx is one such, the rank-2 ones are far smaller.
    flops = sum(e.flops for e in profile.key_averages())
    assert flops < 1.5 * 2 * 64 * 48 * 40


def test_only_the_input_gradient_is_computed_when_the_adapter_is_frozen_too() -> None:
    x, weight, a, b, bias = problem()
    y = through_op(x, *(t.detach() for t in (weight, a, b, bias)))
    y.sum().backward()
    assert x.grad is not None
    assert a.grad is b.grad is None


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself
def test_opcheck() -> None:
    x, weight, a, b, bias = problem((5,), dtype=torch.float32)
    p = weight.detach().t()
    q, r = (t.detach().t().requires_grad_() for t in (a, b))
    torch.library.opcheck(low_rank_matmul_op, (x, p, q, r, bias, 0.5, False))
    torch.library.opcheck(low_rank_matmul_op, (x, p, q.detach(), r.detach(), None, 0.5, False))


@pytest.mark.parametrize("function", [lora_linear, through_op])
def test_compiles_whole(function: Function) -> None:
    x, weight, a, b, bias = problem()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(function(x, weight, a, b, bias, 0.5).sum(), (x, a, b))
    got = torch.autograd.grad(compiled(x, weight, a, b, bias, 0.5).sum(), (x, a, b))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("function", [lora_linear, through_op])
def test_functional_gradients(function: Function) -> None:
    x, weight, a, b, bias = (t.detach() for t in problem())
    gradient = torch.func.grad(lambda x: function(x, weight, a, b, bias, 0.5).sum())(x)
    expected = (weight + 0.5 * b @ a).sum(0).expand_as(x)
    torch.testing.assert_close(gradient, expected)


def test_autocast() -> None:
    tensors = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = lora_linear(*tensors)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), lora_linear(*tensors), rtol=0.05, atol=0.1)


def test_one_vector_is_a_row() -> None:
    x, weight, a, b, bias = problem((1,))
    torch.testing.assert_close(
        lora_linear(x[0], weight, a, b, bias), lora_linear(x, weight, a, b, bias)[0]
    )


def test_errors_say_what_was_expected() -> None:
    x, weight, a, b, bias = problem()
    with pytest.raises(ValueError, match=r"a \(r, 7\)"):
        lora_linear(x, weight, a[:, :-1], b, bias)
    with pytest.raises(TypeError, match="autocast"):
        lora_linear(x.float(), weight, a, b, bias)
    with pytest.raises(ValueError, match="CUDA"):
        lora_linear(x, weight, a, b, bias, backend="triton")
    with pytest.raises(ValueError, match="backend"):
        lora_linear(x, weight, a, b, bias, backend="cuda")


def test_float32_products_are_as_pytorchs_whatever_switch_was_used(float32_switches: Any) -> None:
    """The older getter raises once the newer switch has been used alone."""
    x = torch.ones(1)
    for older, mode in (("high", "tf32"), ("highest", "ieee"), ("medium", "tf32")):
        torch.set_float32_matmul_precision(older)
        assert precision(x) == mode
    torch.set_float32_matmul_precision("highest")
    float32_switches.cuda.matmul.fp32_precision = "tf32"
    assert precision(x) == "tf32"
    float32_switches.cuda.matmul.fp32_precision = "none"
    assert precision(x) == "ieee"
    assert precision(x.half()) == "tf32"
