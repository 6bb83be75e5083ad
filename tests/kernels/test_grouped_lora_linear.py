"""A batch of mixed experts equals each sample through its own expert."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ppap_kernels import grouped_lora_linear, lora_linear
from ppap_kernels.grouped_lora_linear import grouped_low_rank_matmul_op, grouped_outer_op
from torch import Tensor

Function = Callable[..., Tensor]

INDICES = {
    "unsorted": [2, 0, 1, 0, 2],
    "an empty expert": [2, 0, 0, 2, 2],
    "no adapter": [-1, 2, -1, 0, 1],
    "one expert": [1, 1, 1, 1, 1],
    "none at all": [-1, -1, -1, -1, -1],
}


def problem(
    batch: int = 5,
    tokens: tuple[int, ...] = (4,),
    inner: int = 7,
    out: int = 6,
    rank: int = 2,
    experts: int = 3,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, *tokens, inner), (out, inner), (experts, rank, inner), (experts, out, rank))
    tensors = [torch.randn(s, generator=generator, dtype=dtype) for s in (*shapes, (out,))]
    return [t.requires_grad_() for t in tensors]


def through_op(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, index: Tensor, bias: Tensor, scale: float = 1.0
) -> Tensor:
    """The operator's own torch formulation and its registered derivative, on a CPU."""
    from ppap_kernels.grouped_lora_linear import _apply

    rows = x.reshape(len(x), -1, x.shape[-1])
    stacks = (weight.t(), a.transpose(1, 2), b.transpose(1, 2))
    return _apply(rows, *stacks, bias, index, scale, False)[0].reshape(*x.shape[:-1], -1)


def by_sample(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, index: Tensor, bias: Tensor, scale: float
) -> Tensor:
    outputs = []
    for row, e in zip(x, index.tolist(), strict=True):
        plain = torch.nn.functional.linear(row, weight, bias)
        outputs.append(plain if e < 0 else lora_linear(row, weight, a[e], b[e], bias, scale))
    return torch.stack(outputs)


@pytest.mark.parametrize("function", [grouped_lora_linear, through_op])
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_it_equals_each_sample_through_its_expert(function: Function, index: list[int]) -> None:
    x, weight, a, b, bias = problem()
    index = torch.tensor(index)
    y = function(x, weight, a, b, index, bias, 0.5)
    expected = by_sample(x, weight, a, b, index, bias, 0.5)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    inputs = (x, weight, a, b, bias)
    got = torch.autograd.grad(y, inputs, upstream)
    wanted = torch.autograd.grad(
        expected, inputs, upstream, allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16])
def test_experts_are_integers_of_any_width(dtype: torch.dtype) -> None:
    """In unsigned ones the mark of no expert, -1, is the largest number there is."""
    x, weight, a, b, bias = problem()
    index = torch.tensor(INDICES["unsorted"])
    expected = grouped_lora_linear(x, weight, a, b, index, bias, 0.5)
    assert torch.equal(grouped_lora_linear(x, weight, a, b, index.to(dtype), bias, 0.5), expected)


@pytest.mark.parametrize("tokens", [(), (1,), (2, 3)])
def test_any_number_of_dimensions(tokens: tuple[int, ...]) -> None:
    x, weight, a, b, bias = problem(tokens=tokens)
    index = torch.tensor(INDICES["no adapter"])
    y = grouped_lora_linear(x, weight, a, b, index, bias, 0.5)
    torch.testing.assert_close(y, by_sample(x, weight, a, b, index, bias, 0.5))


@pytest.mark.parametrize("function", [grouped_lora_linear, through_op])
def test_gradients(function: Function) -> None:
    index = torch.tensor([1, -1, 0])
    x, weight, a, b, bias = problem(3, (2,), 3, 2, 1, 2)

    def call(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        return function(x, weight, a, b, index, bias, 0.5)

    assert torch.autograd.gradcheck(call, (x, weight, a, b, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight.detach(), a, b, bias.detach()))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself
def test_opcheck() -> None:
    x, weight, a, b, bias = problem(dtype=torch.float32)
    index = torch.tensor(INDICES["no adapter"])
    q, r = (t.detach().transpose(1, 2).requires_grad_() for t in (a, b))
    stacks = (weight.detach().t(), q, r)
    torch.library.opcheck(grouped_low_rank_matmul_op, (x, *stacks, bias, index, 0.5, False))
    torch.library.opcheck(grouped_outer_op, (x, x.detach()[..., :3], index, 3, 0.5, False))


@pytest.mark.parametrize("function", [grouped_lora_linear, through_op])
def test_compiles_whole_and_takes_functional_gradients(function: Function) -> None:
    x, weight, a, b, bias = (t.detach() for t in problem())
    index = torch.tensor(INDICES["no adapter"])

    def call(x: Tensor, a: Tensor) -> Tensor:
        return function(x, weight, a, b, index, bias, 0.5).square().sum()

    expected = torch.func.grad(call, (0, 1))(x, a)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x.requires_grad_(), a.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(compiled(x, a), (x, a)), expected)


def test_errors_say_what_was_expected() -> None:
    x, weight, a, b, bias = problem()
    index = torch.tensor(INDICES["unsorted"])
    with pytest.raises(ValueError, match=r"index \(B,\)"):
        grouped_lora_linear(x, weight, a, b, index[:-1], bias)
    with pytest.raises(TypeError, match="integers"):
        grouped_lora_linear(x, weight, a, b, index.float(), bias)
    with pytest.raises(RuntimeError, match="index must lie in -1"):
        grouped_lora_linear(x, weight, a, b, index + 1, bias)
