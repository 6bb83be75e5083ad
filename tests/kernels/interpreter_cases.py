"""The Triton kernels in Triton's interpreter against float64 references.

`test_interpreter.py` runs this file in a process of its own, because TRITON_INTERPRET must be set
before the kernels are decorated and must not leak into other tests. The interpreter has bfloat16
products wrong; that dtype is left to a GPU. Every output starts as NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ppap_kernels import (
    grouped_lora_conv,
    grouped_lora_linear,
    guided_ddim_step,
    guided_ddpm_step,
    lora_conv,
    lora_linear,
    merge_lora,
    transfer_loss,
    triton_conv,
    triton_elementwise,
    triton_matmul,
)
from ppap_kernels.dispatch import interpreting, table
from ppap_kernels.grouped_lora_linear import grouped_low_rank_matmul_op
from ppap_kernels.lora_conv import (
    grouped_lora_conv_reference,
    lora_conv_reference,
)
from ppap_kernels.lora_conv_operator import low_rank_conv_dx_op, low_rank_conv_op
from ppap_kernels.lora_linear import low_rank_matmul_op
from ppap_kernels.merge_lora import merge_lora_reference
from torch import Tensor

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
LIMIT = {torch.float32: 3e-6, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreting()
    original = torch.Tensor.new_empty

    def new_empty(self: Tensor, *size: Any, **options: Any) -> Tensor:
        fresh = original(self, *size, **options)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


def randoms(dtype: torch.dtype, *shapes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Relative to the largest value: cancellation makes small ones as uncertain as large."""
    for one, reference in zip(got, expected, strict=True):
        error = (one.double() - reference).abs().max() / reference.abs().max().clamp(min=1e-30)
        assert error <= LIMIT[one.dtype]


@dtypes
@pytest.mark.parametrize(("m", "k", "n", "r"), [(5, 7, 6, 3), (19, 70, 66, 64), (33, 100, 70, 1)])
def test_lora_linear(dtype: torch.dtype, m: int, k: int, n: int, r: int) -> None:
    inputs = randoms(dtype, (m, k), (n, k), (r, k), (n, r), (n,))
    upstream = torch.randn(m, n).to(dtype)
    y = lora_linear(*inputs, scale=0.5, backend="triton")
    got = torch.autograd.grad(y, inputs, upstream)
    references = wide(inputs)
    expected = lora_linear(*references, scale=0.5, backend="torch")
    wanted = torch.autograd.grad(expected, references, upstream.double())
    assert_close((y, *got), (expected, *wanted))


@dtypes
@pytest.mark.parametrize(
    "index",
    [[2, 0, -1, 0, 2], [1, 1, 1, 1, 1], [-1, -1, -1, -1, -1]],
    ids=["mixed", "one expert", "none"],
)
def test_grouped_lora_linear(dtype: torch.dtype, index: list[int]) -> None:
    inputs = randoms(dtype, (5, 7, 21), (18, 21), (3, 5, 21), (3, 18, 5), (18,))
    experts, upstream = torch.tensor(index), torch.randn(5, 7, 18).to(dtype)

    def call(tensors: Sequence[Tensor], backend: Any) -> Tensor:
        *matrices, bias = tensors
        return grouped_lora_linear(*matrices, experts, bias, 0.5, backend=backend)

    y = call(inputs, "triton")
    got = torch.autograd.grad(y, inputs, upstream)
    references = wide(inputs)
    expected = call(references, "torch")
    wanted = torch.autograd.grad(expected, references, upstream.double())
    assert_close((y, *got), (expected, *wanted))
    for expert in set(range(3)) - set(index):
        assert not got[2][expert].any()
        assert not got[3][expert].any()


@pytest.mark.parametrize("layout", ["every second", "one for all"])
def test_a_bias_of_any_stride(layout: str) -> None:
    """As the key's and value's part of a packed bias may be, taken apart without a copy."""
    x, weight, a, b = (t.detach() for t in randoms(torch.float32, (3, 7), (6, 7), (2, 7), (6, 2)))
    bias = torch.arange(12.0)[::2] if layout == "every second" else torch.ones(1).expand(6)
    index, about = torch.tensor([0, -1, 1]), {"stride": 1, "padding": 1, "backend": "triton"}
    stacks = (torch.stack([a, -a]), torch.stack([b, b]))
    taps = [t[..., None, None].expand(*t.shape, 3, 3) for t in (weight, a, stacks[0])]
    pixels = x[..., None, None].expand(3, 7, 4, 4)

    def with_bias(bias: Tensor) -> list[Tensor]:
        return [
            lora_linear(x, weight, a, b, bias, backend="triton"),
            grouped_lora_linear(x, weight, *stacks, index, bias, backend="triton"),
            lora_conv(pixels, taps[0], taps[1], b, bias, **about),
            grouped_lora_conv(pixels, taps[0], taps[2], stacks[1], index, bias, **about),
        ]

    for found, expected in zip(with_bias(bias), with_bias(bias.clone()), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("tokens", [(), (4,), (2, 3)])
def test_no_samples_at_all(tokens: tuple[int, ...]) -> None:
    shapes = ((0, *tokens, 7), (6, 7), (3, 2, 7), (3, 6, 2))
    x, weight, a, b = randoms(torch.float32, *shapes)
    y = grouped_lora_linear(x, weight, a, b, torch.zeros(0).long(), backend="triton")
    assert y.shape == (0, *tokens, 6)
    for gradient in torch.autograd.grad(y.sum(), (weight, a, b)):
        assert not gradient.any()


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_no_images_at_all(kernel: int, backend: Any) -> None:
    taps = (7, kernel, kernel)
    x, *inputs = randoms(torch.float32, (0, 7, 5, 4), (6, *taps), (2, *taps), (6, 2))
    weight, a, b = inputs
    stacks = (torch.stack([a, a]), torch.stack([b, b]))
    about = {"stride": 1, "padding": kernel // 2, "backend": backend}
    for y in (
        lora_conv(x, *inputs, **about),
        grouped_lora_conv(x, weight, *stacks, torch.zeros(0).long(), **about),
    ):
        assert y.shape == (0, 6, 5, 4)
        for gradient in torch.autograd.grad(y.sum(), inputs):
            assert not gradient.any()


CONVOLUTIONS = {
    # images, weight, rank, stride, padding, dilation
    "3 x 3": ((2, 5, 7, 6), (6, 5, 3, 3), 3, 1, 1, 1),
    "strided": ((2, 5, 8, 9), (6, 5, 3, 3), 4, 2, 1, 1),
    "not square, dilated": ((2, 5, 8, 9), (6, 5, 3, 2), 1, (2, 1), (1, 0), (1, 2)),
    "phases without taps": ((2, 3, 9, 9), (6, 3, 3, 3), 2, (2, 3), (2, 0), (2, 2)),
    "wider than a tile": ((1, 70, 3, 5), (66, 70, 3, 3), 64, 1, 1, 1),
    "1 x 1": ((2, 5, 7, 6), (6, 5, 1, 1), 3, 2, 0, 1),
    "padded 1 x 1": ((2, 5, 7, 6), (6, 5, 1, 1), 3, 2, 1, 1),
}
Convolution = tuple[tuple[int, ...], tuple[int, ...], int, Any, Any, Any]


@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, torch.contiguous_format), (torch.float16, torch.channels_last)],
    ids=["fp32", "fp16 channels-last"],
)
def test_lora_conv(dtype: torch.dtype, shape: Convolution, layout: torch.memory_format) -> None:
    images, weight, r, stride, padding, dilation = shape
    adapter = ((r, *weight[1:]), (weight[0], r))
    inputs = randoms(dtype, images, weight, *adapter, weight[:1])
    about = {"stride": stride, "padding": padding, "dilation": dilation}
    x, *rest = inputs
    y = lora_conv(x.contiguous(memory_format=layout), *rest, 0.5, **about, backend="triton")
    assert y.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(y.shape).to(dtype)
    got = torch.autograd.grad(y, inputs, upstream)
    references = wide(inputs)
    expected = lora_conv_reference(*references, 0.5, **about)
    wanted = torch.autograd.grad(expected, references, upstream.double())
    assert_close((y, *got), (expected, *wanted))


@dtypes
@pytest.mark.parametrize(("kernel", "stride"), [(1, (2, 1)), (3, 1), (3, (2, 1))])
@pytest.mark.parametrize(
    "index",
    [[2, 0, -1, 0, 2], [1, 1, 1, 1, 1], [-1, -1, -1, -1, -1]],
    ids=["mixed", "one expert", "none"],
)
def test_grouped_lora_conv(dtype: torch.dtype, index: list[int], kernel: int, stride: Any) -> None:
    square = (kernel, kernel)
    shapes = ((5, 7, 4, 5), (18, 7, *square), (3, 5, 7, *square), (3, 18, 5), (18,))
    inputs = randoms(dtype, *shapes)
    experts, about = torch.tensor(index), {"stride": stride, "padding": kernel // 2}

    *matrices, bias = inputs
    y = grouped_lora_conv(*matrices, experts, bias, 0.5, **about, backend="triton")
    upstream = torch.randn(y.shape).to(dtype)
    got = torch.autograd.grad(y, inputs, upstream)
    references = wide(inputs)
    *matrices, bias = references
    expected = grouped_lora_conv_reference(*matrices, experts, bias, 0.5, **about)
    wanted = torch.autograd.grad(expected, references, upstream.double())
    assert_close((y, *got), (expected, *wanted))
    for expert in set(range(3)) - set(index):
        assert not got[2][expert].any()
        assert not got[3][expert].any()


@pytest.mark.parametrize("kernel", ["low_rank_conv", "grouped_low_rank_conv"])
def test_every_shipped_tile_gives_the_same_convolution(kernel: str) -> None:
    shapes = ((2, 37, 5, 7), (70, 37, 3, 3), (2, 9, 37, 3, 3), (2, 70, 9))
    x, weight, a, b = (t.detach() for t in randoms(torch.float32, *shapes))
    index = torch.tensor([1, 0]) if kernel.startswith("grouped") else None
    doubles = [t.double().requires_grad_() for t in (x, weight, a, b)]
    chosen = torch.tensor([0, 0]) if index is None else index
    expected = grouped_lora_conv_reference(*doubles, chosen, None, 0.5, padding=1)
    dy, geometry = torch.randn(expected.shape), ((1, 1), (1, 1), (1, 1))
    (wanted,) = torch.autograd.grad(expected, doubles[0], dy.double())
    dh = torch.einsum("bohw,bor->brhw", dy, 0.5 * b[chosen])
    for entry in table("default")[kernel]:
        y, _ = triton_conv.low_rank_conv(
            x, weight, a, b, None, index, (5, 7), geometry, 0.5, entry.config
        )
        dx = triton_conv.low_rank_conv_dx(dy, dh, weight, a, index, (5, 7), geometry, entry.config)
        assert_close((y, dx), (expected, wanted))


@pytest.mark.parametrize("kernel", ["low_rank_matmul", "grouped_low_rank_matmul"])
def test_every_shipped_tile_gives_the_same_product(kernel: str) -> None:
    x, p, q, r = (
        t.detach() for t in randoms(torch.float32, (2, 70, 45), (45, 77), (45, 9), (9, 77))
    )
    expected = x.double() @ p.double() + 0.5 * x.double() @ q.double() @ r.double()
    for entry in table("default")[kernel]:
        if kernel == "low_rank_matmul":
            y, h = triton_matmul.low_rank_matmul(x.flatten(0, 1), p, q, r, None, 0.5, entry.config)
            y, h = y.view(2, 70, 77), h.view(2, 70, 9)
        else:
            index = torch.tensor([1, 0])
            stacks = (q.expand(2, -1, -1), r.expand(2, -1, -1))
            y, h = triton_matmul.grouped_low_rank_matmul(
                x, p, *stacks, None, index, 0.5, entry.config
            )
        assert_close((y, h), (expected, x.double() @ q.double()))


@dtypes
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_guided_ddim_step(dtype: torch.dtype, guided: bool, clip: bool) -> None:
    x, both, g, z = (
        t.detach() for t in randoms(dtype, (3, 2, 5, 7), (3, 4, 5, 7), (3, 2, 5, 7), (3, 2, 5, 7))
    )
    eps = both[:, :2]
    levels = [torch.tensor(v) for v in ([0.1, 0.5, 0.9], [0.2, 0.7, 1.0], [0.2, 0.3, 0.0])]
    images = (g, z) if guided else (None, None)
    got = guided_ddim_step(x, eps, *levels, *images, clip, backend="triton")
    wide_images = [None if t is None else t.double() for t in images]
    doubles = [t.double() for t in (x, eps, *levels)]
    assert_close([got], [guided_ddim_step(*doubles, *wide_images, clip, backend="torch")])


@dtypes
@pytest.mark.parametrize("pixelwise", [True, False])
@pytest.mark.parametrize("own_variance", [True, False])
def test_guided_ddpm_step(dtype: torch.dtype, pixelwise: bool, own_variance: bool) -> None:
    x, e, g, z, v = (t.detach() for t in randoms(dtype, *[(3, 2, 5, 7)] * 5))
    levels = [torch.tensor(v) for v in ([0.1, 0.5, 0.9], [0.2, 0.7, 1.0], [0.2, 0.3, 0.0])]
    log_variance = v if pixelwise else torch.tensor([-2.0, -1.0, -torch.inf])
    variance = torch.tensor([0.1, 0.2, 0.0]) if own_variance else None
    arguments = (x, e, *levels, log_variance, variance, g, z)
    got = guided_ddpm_step(*arguments, backend="triton")
    doubles = [None if t is None else t.double() for t in arguments]
    assert_close([got], [guided_ddpm_step(*doubles, backend="torch")])


@pytest.mark.parametrize("guided", [True, False])
def test_noise_that_is_not_finite_is_not_clipped_away(guided: bool) -> None:
    """Of two numbers a GPU takes the one that is not NaN: such pixels would end at -1."""
    x, e, g = (t.detach() for t in randoms(torch.float32, *[(2, 1, 2, 2)] * 3))
    e[1, 0, 1, 0] = torch.nan
    gradient, levels = g if guided else None, [torch.tensor(v) for v in ([0.1, 0.5], [0.2, 0.7])]
    nothing, log_variance = torch.zeros(2), torch.tensor([-2.0, -1.0])
    for step, rest in (
        (guided_ddim_step, (nothing, gradient)),
        (guided_ddpm_step, (nothing, log_variance, None, gradient)),
    ):
        got, expected = (step(x, e, *levels, *rest, backend=b) for b in ("triton", "torch"))
        torch.testing.assert_close(got, expected, equal_nan=True)
        assert got.isnan().nonzero().tolist() == [[1, 0, 1, 0]]


@dtypes
@pytest.mark.parametrize("whose", [0, 1])
def test_transfer_loss_of_nan_is_nan(dtype: torch.dtype, whose: int) -> None:
    both = [t.detach() for t in randoms(dtype, (5, 10), (5, 10))]
    both[whose][3, 2] = torch.nan
    assert transfer_loss(*both, 0.5, backend="triton").isnan()


@dtypes
@pytest.mark.parametrize("shape", [(5, 10), (3, 1000), (37, 21)])
def test_transfer_loss(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    student, teacher = randoms(dtype, shape, shape)
    loss = transfer_loss(student, teacher, 0.5, backend="triton")
    (got,) = torch.autograd.grad(loss, student)
    (reference,) = wide([student])
    expected = transfer_loss(reference, teacher.double(), 0.5, backend="torch")
    (wanted,) = torch.autograd.grad(expected, reference)
    assert_close((loss, got), (expected, wanted))


@dtypes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_merge_lora(dtype: torch.dtype, layout: torch.memory_format, kernel: int) -> None:
    shapes = ((10, 23, kernel, kernel), (5 * kernel, 23 * kernel), (10 * kernel, 5 * kernel))
    weight, a, b = (t.detach() for t in randoms(dtype, *shapes))
    laid_out = weight.to(memory_format=layout)
    out = torch.full_like(laid_out, torch.nan)
    merge_lora(out, laid_out, a, b, 0.5, backend="triton")
    assert_close([out], [merge_lora_reference(weight.double(), a.double(), b.double(), 0.5)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_merge_lora_of_all_experts_in_pefts_form(layout: torch.memory_format) -> None:
    shapes = ((10, 23, 3, 3), (2, 5, 23, 3, 3), (2, 10, 5))
    weight, a, b = (t.detach() for t in randoms(torch.float32, *shapes))
    weight = weight.contiguous(memory_format=layout)
    out = torch.stack([torch.full_like(weight, torch.nan)] * 2)
    merge_lora(out, weight, a, b, 0.5, backend="triton")
    assert_close([out], [merge_lora_reference(weight.double(), a.double(), b.double(), 0.5)])


def test_merge_lora_of_a_linear_layer() -> None:
    weight, a, b = (t.detach() for t in randoms(torch.float32, (70, 67), (33, 67), (70, 33)))
    out = torch.full_like(weight, torch.nan)
    merge_lora(out, weight, a, b, 0.5, backend="triton")
    assert_close([out], [merge_lora_reference(weight.double(), a.double(), b.double(), 0.5)])


def test_the_operators_pass_opcheck_on_their_triton_path() -> None:
    x, p, q, r, bias = randoms(torch.float32, (5, 7), (7, 6), (7, 3), (3, 6), (6,))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments = (x, p, q, r, bias, 0.5, True)
    torch.library.opcheck(low_rank_matmul_op, arguments, test_utils=checks)
    stacks = (q[None], r[None], bias, torch.tensor([0]), 0.5, True)
    torch.library.opcheck(grouped_low_rank_matmul_op, (x[None], p, *stacks), test_utils=checks)
    x, dy, dh, w, a, b, bias = randoms(
        torch.float32,
        (2, 3, 5, 4), (2, 4, 5, 4), (2, 2, 5, 4), (4, 3, 3, 3), (1, 2, 3, 3, 3), (1, 4, 2), (4,),
    )  # fmt: skip
    geometry = ((1, 1), (1, 1), (1, 1))
    for index in (None, torch.tensor([0, -1])):
        arguments = (x, w, a, b, bias, index, *geometry, 0.5, True)
        torch.library.opcheck(low_rank_conv_op, arguments, test_utils=checks)
        arguments = (dy, dh, w, a, index, (5, 4), *geometry, True)
        torch.library.opcheck(low_rank_conv_dx_op, arguments, test_utils=checks)


def test_it_is_the_kernels_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("launched")

    monkeypatch.setattr(triton_matmul, "low_rank_matmul", refuse)
    monkeypatch.setattr(triton_conv, "low_rank_conv", refuse)
    monkeypatch.setattr(triton_elementwise, "transfer_loss", refuse)
    x = torch.ones(4, 4)
    with pytest.raises(AssertionError, match="launched"):
        lora_linear(x, x, x, x, backend="triton")
    with pytest.raises(AssertionError, match="launched"):
        lora_conv(*[x[None, None]] * 3, x[:1, :1], stride=1, padding=0, backend="triton")
    with pytest.raises(AssertionError, match="launched"):
        transfer_loss(x, x, backend="triton")
