"""A convolution with an adapter equals the convolution with its weight updated."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from ppap_kernels import grouped_lora_conv, lora_conv
from ppap_kernels.lora_conv import (
    grouped_lora_conv_reference,
    lora_conv_reference,
)
from ppap_kernels.lora_conv_operator import low_rank_conv_dx_op, low_rank_conv_op
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[..., Tensor]

UNIT = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
ODD = {"stride": (2, 3), "padding": (1, 0), "dilation": (1, 2)}
POINT = {"stride": (2, 1), "padding": (0, 0), "dilation": (1, 1)}
GEOMETRIES = {
    "same size": ((3, 3), UNIT),
    "strided, dilated, not square": ((3, 2), ODD),
    "1 x 1": ((1, 1), POINT),
    "padded 1 x 1": ((1, 1), UNIT),
}
INDICES = {
    "unsorted": [2, 0, 1, 0, 2],
    "an empty expert": [2, 0, 0, 2, 2],
    "no adapter": [-1, 2, -1, 0, 1],
    "one expert": [1, 1, 1, 1, 1],
    "none at all": [-1, -1, -1, -1, -1],
}
geometries = pytest.mark.parametrize(
    ("kernel", "geometry"), GEOMETRIES.values(), ids=GEOMETRIES.keys()
)


def problem(
    batch: int = 2,
    inner: int = 3,
    out: int = 4,
    rank: int = 2,
    kernel: tuple[int, int] = (3, 3),
    size: tuple[int, int] = (6, 7),
    experts: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    stack = () if experts is None else (experts,)
    shapes = (
        (batch, inner, *size),
        (out, inner, *kernel),
        (*stack, rank, inner, *kernel),
        (*stack, out, rank),
        (out,),
    )
    tensors = [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    return [t.requires_grad_() for t in tensors]


def through_op(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    **geometry: Any,
) -> Tensor:
    """The operator's own torch formulation and its registered derivative, on a CPU."""
    from ppap_kernels.lora_conv_operator import low_rank_conv

    y, _ = low_rank_conv(x, weight, a[None], b[None], bias, None, *geometry.values(), scale, False)
    return y


def grouped_through_op(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    index: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    **geometry: Any,
) -> Tensor:
    from ppap_kernels.lora_conv_operator import low_rank_conv

    return low_rank_conv(x, weight, a, b, bias, index, *geometry.values(), scale, False)[0]


def merged(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor, scale: float, **geometry: Any
) -> Tensor:
    update = scale * torch.einsum("or,rihw->oihw", b, a)
    return F.conv2d(x, weight + update, bias, **geometry)


def by_sample(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    index: Tensor,
    bias: Tensor,
    scale: float,
    **geometry: Any,
) -> Tensor:
    rows = []
    for row, e in zip(x[:, None], index.tolist(), strict=True):
        own = (a[e], b[e]) if e >= 0 else (a[0] * 0, b[0] * 0)
        rows.append(merged(row, weight, *own, bias, scale, **geometry))
    return torch.cat(rows)


each = pytest.mark.parametrize("function", [lora_conv, through_op, lora_conv_reference])
each_grouped = pytest.mark.parametrize(
    "function", [grouped_lora_conv, grouped_through_op, grouped_lora_conv_reference]
)


def assert_same(
    function: Function, wanted: Function, inputs: list[Tensor], **geometry: Any
) -> None:
    """Values and all gradients."""
    y, expected = function(*inputs, 0.5, **geometry), wanted(*inputs, 0.5, **geometry)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    at = [t for t in inputs if t.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(y, at, upstream), torch.autograd.grad(expected, at, upstream)
    )


@each
@geometries
def test_it_is_the_convolution_with_its_weight_updated(
    function: Function, kernel: tuple[int, int], geometry: dict[str, Any]
) -> None:
    assert_same(function, merged, problem(kernel=kernel), **geometry)


@pytest.mark.parametrize(("inner", "size"), [(3, (9, 9)), (3, (2, 2)), (70, (9, 9))])
@pytest.mark.parametrize("trains", [True, False])
def test_every_formulation_of_the_cpu_is_the_same(
    inner: int, size: tuple[int, int], trains: bool
) -> None:
    inputs = problem(inner=inner, size=size)
    for adapter in inputs[2:4]:
        adapter.requires_grad_(trains)
    assert_same(lora_conv, merged, inputs, **UNIT)


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_pefts_layer(groups: int) -> None:
    torch.manual_seed(0)
    base = nn.Conv2d(4, 6, 3, 2, 1, groups=groups)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd")
        model = peft.inject_adapter_in_model(config, nn.Sequential(base))
    layer = model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, 4, 9, 8, requires_grad=True)
    expected = model(x)
    got = lora_conv(x, base.weight, a, b, base.bias, 1.5, stride=2, padding=1, groups=groups)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, (x, a, b), upstream),
        torch.autograd.grad(expected, (x, a, b), upstream),
    )


@each_grouped
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_a_mixed_batch_equals_each_sample_through_its_expert(
    function: Function, index: list[int]
) -> None:
    x, *rest, bias = problem(5, experts=3)
    assert_same(function, by_sample, [x, *rest, torch.tensor(index), bias], **ODD)


@each_grouped
@geometries
@pytest.mark.parametrize("size", [(9, 8), (3, 3)])  # a sample larger and smaller than its weights
def test_grouped_geometries(
    function: Function, kernel: tuple[int, int], geometry: dict[str, Any], size: tuple[int, int]
) -> None:
    x, *rest, bias = problem(5, 6, 5, kernel=kernel, size=size, experts=3)
    index = torch.tensor(INDICES["no adapter"])
    assert_same(function, by_sample, [x, *rest, index, bias], **geometry)


def test_one_formulation_for_any_layout() -> None:
    x, weight, a, b, bias = problem()
    last = x.contiguous(memory_format=torch.channels_last)
    y = through_op(last, weight, a, b, bias, **UNIT)
    torch.testing.assert_close(y, through_op(x, weight, a, b, bias, **UNIT))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_second_derivatives_of_the_operators() -> None:
    inputs = problem(2, 2, 2, 1, (2, 2), (4, 3))
    geometry = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    assert torch.autograd.gradcheck(lambda *t: through_op(*t, 0.5, **geometry), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: through_op(*t, 0.5, **geometry), inputs)
    x, *rest, bias = problem(3, 2, 2, 1, (2, 2), (4, 3), experts=2)
    index = torch.tensor([1, -1, 0])

    def grouped(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        return grouped_through_op(x, weight, a, b, index, bias, 0.5, **geometry)

    assert torch.autograd.gradgradcheck(grouped, (x, *rest, bias))


def test_a_frozen_weight_gets_no_gradient_and_none_is_computed() -> None:
    x, weight, a, b, bias = problem(inner=16, out=16, size=(8, 8), kernel=(3, 3))
    y = through_op(x, weight.detach(), a, b, bias.detach(), **UNIT)
    with torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
        y.sum().backward()
    assert weight.grad is bias.grad is None
    # One event per convolution's gradient: dx of the base and of the adapter, and dA.
    names = [e.name for e in profile.events()]
    assert names.count("aten::convolution_backward") == 3


def test_only_the_input_gradient_is_computed_when_the_adapter_is_frozen_too() -> None:
    x, *rest = problem()
    frozen = [t.detach() for t in rest]
    for function in (lora_conv, through_op):
        (gradient,) = torch.autograd.grad(function(x, *frozen, **UNIT).sum(), x)
        assert gradient.shape == x.shape


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself
def test_opcheck() -> None:
    x, weight, a, b, bias = problem(5, experts=3, dtype=torch.float32)
    frozen = weight.detach()
    geometry = ((2, 1), (1, 0), (1, 1))
    index = torch.tensor(INDICES["no adapter"])
    torch.library.opcheck(low_rank_conv_op, (x, frozen, a, b, bias, index, *geometry, 0.5, False))
    one = (a.detach()[:1], b.detach()[:1], None, None)
    rest = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (x, frozen, *one, *geometry, 0.5, False)
    torch.library.opcheck(low_rank_conv_op, arguments, test_utils=rest)
    dy, dh = (torch.randn(5, c, 3, 5, requires_grad=True) for c in (4, 2))
    about = ((6, 7), *geometry, False)
    torch.library.opcheck(low_rank_conv_dx_op, (dy, dh, frozen, a, index, *about))
    arguments = (dy, dh.detach(), frozen, one[0], None, *about)
    torch.library.opcheck(low_rank_conv_dx_op, arguments, test_utils=rest)


@pytest.mark.parametrize("function", [lora_conv, through_op])
def test_compiles_whole_and_takes_functional_gradients(function: Function) -> None:
    x, weight, a, b, bias = problem()

    def call(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return function(x, weight.detach(), a, b, bias.detach(), 0.5, **UNIT).square().sum()

    inputs = (x, a, b)
    wanted = torch.autograd.grad(merged(x, weight, a, b, bias, 0.5, **UNIT).square().sum(), inputs)
    gradients = torch.func.grad(call, (0, 1, 2))(*(t.detach() for t in inputs))
    torch.testing.assert_close(gradients, wanted)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), wanted)


@pytest.mark.parametrize("function", [grouped_lora_conv, grouped_through_op])
def test_the_grouped_form_does_so_too(function: Function) -> None:
    x, weight, a, b, bias = (t.detach() for t in problem(5, experts=3))
    index = torch.tensor(INDICES["no adapter"])

    def call(x: Tensor, a: Tensor) -> Tensor:
        return function(x, weight, a, b, index, bias, 0.5, **UNIT).square().sum()

    gradients = torch.func.grad(call, (0, 1))(x, a)
    x.requires_grad_(), a.requires_grad_()
    expected = by_sample(x, weight, a, b, index, bias, 0.5, **UNIT).square().sum()
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, a)))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x, a), (x, a)), gradients)


def test_autocast() -> None:
    tensors = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = lora_conv(*tensors, **UNIT)
    assert y.dtype == torch.bfloat16
    single = lora_conv(*tensors, **UNIT)
    # Values of 8 bits are off by 0.2 % on average, and so is a sum of their products.
    assert (y - single).norm() < 0.02 * single.norm()


def test_an_update_finer_than_the_weights_precision_is_not_lost() -> None:
    # 256 + 0.5 is 256 in bfloat16; the base cancels over the two channels, the update does not.
    x = torch.tensor([1.0, -1.0], dtype=torch.bfloat16).view(1, 2, 1, 1)
    weight = torch.full((1, 2, 1, 1), 256.0, dtype=torch.bfloat16)
    a = torch.tensor([0.5, 0.0], dtype=torch.bfloat16).view(1, 2, 1, 1)
    b = torch.ones(1, 1, dtype=torch.bfloat16)
    assert lora_conv(x, weight, a, b, stride=1, padding=0).item() == 0.5
    index = torch.tensor([0])
    y = grouped_lora_conv(x, weight, a[None], b[None], index, stride=1, padding=0)
    assert y.item() == 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16])
def test_experts_are_integers_of_any_width(dtype: torch.dtype) -> None:
    x, weight, a, b, bias = problem()
    stacks = (torch.stack([a, -a]), torch.stack([b, b]))
    index = torch.tensor([1, 0])
    expected = grouped_lora_conv(x, weight, *stacks, index, bias, **UNIT)
    found = grouped_lora_conv(x, weight, *stacks, index.to(dtype), bias, **UNIT)
    assert torch.equal(found, expected)


def test_errors_say_what_was_expected() -> None:
    x, weight, a, b, bias = problem()
    with pytest.raises(ValueError, match=r"a \(r, 3, 3, 3\)"):
        lora_conv(x, weight, a[:, :-1], b, bias, **UNIT)
    with pytest.raises(ValueError, match=r"b \(4, r / groups\)"):
        lora_conv(x, weight, a, b[:-1], bias, **UNIT)
    with pytest.raises(ValueError, match="dimensions"):
        lora_conv(x[0], weight, a, b, bias, **UNIT)
    with pytest.raises(TypeError, match="autocast"):
        lora_conv(x.float(), weight, a, b, bias, **UNIT)
    with pytest.raises(ValueError, match="CUDA"):
        lora_conv(x, weight, a, b, bias, **UNIT, backend="triton")
    index = torch.tensor([0, 0])
    with pytest.raises(ValueError, match="one per sample"):
        grouped_lora_conv(x, weight, a[None], b[None], index[:-1], bias, **UNIT)
    with pytest.raises(TypeError, match="integers"):
        grouped_lora_conv(x, weight, a[None], b[None], index.double(), bias, **UNIT)
    with pytest.raises(RuntimeError, match="index must lie in -1"):
        grouped_lora_conv(x, weight, a[None], b[None], index + 1, bias, **UNIT)
