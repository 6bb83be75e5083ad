"""What replaces an operator on a CPU computes what the operator computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppap.compute.cpu_operators import REPLACEMENTS
from ppap.compute.tracing import Traced

aten = torch.ops.aten
PRODUCTS: set[object] = {aten.mm.default, aten.bmm.default}


def check(function: Callable[[Tensor], Tensor], x: Tensor, used: set[object], gone: object) -> None:
    """Trace value and input gradient; compare with eager's; see what the graph is made of."""

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = function(x)
            weights = torch.linspace(-1, 1, value.numel()).view(value.shape)
            (gradient,) = torch.autograd.grad((value * weights).sum(), x)
        return value.detach(), gradient

    traced = make_fx(run, decomposition_table=REPLACEMENTS)(x)
    targets = {node.target for node in traced.graph.nodes}
    assert gone not in targets
    assert used & targets
    for ours, expected in zip(traced(x), run(x), strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(
            ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def frozen(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("shape", [(4, 12, 5, 7), (3, 12, 9)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(groups: int, shape: tuple[int, ...], affine: bool) -> None:
    norm = frozen(nn.GroupNorm(groups, 12, affine=affine))
    x = 3 * draw(*shape) + 2
    with torch.no_grad():
        traced = make_fx(norm, decomposition_table=REPLACEMENTS)(x)
    assert aten.native_group_norm.default not in {node.target for node in traced.graph.nodes}
    torch.testing.assert_close(traced(x), norm(x), rtol=1e-4, atol=1e-5)


def test_a_group_without_variance_is_finite() -> None:
    norm = frozen(nn.GroupNorm(2, 4))
    x = torch.full((2, 4, 3, 3), 5.0)
    traced = make_fx(norm, decomposition_table=REPLACEMENTS)(x)
    torch.testing.assert_close(traced(x), norm(x), rtol=0, atol=1e-3)


def test_a_group_norm_of_vectors_is_left_alone() -> None:
    norm, x = frozen(nn.GroupNorm(2, 4)), draw(5, 4)
    traced = make_fx(norm, decomposition_table=REPLACEMENTS)(x)
    assert aten.native_group_norm.default in {node.target for node in traced.graph.nodes}


def test_a_large_mean_costs_a_group_norm_no_digits() -> None:
    norm = frozen(nn.GroupNorm(2, 4))
    x = draw(2, 4, 6, 6) + 1000
    traced = make_fx(norm, decomposition_table=REPLACEMENTS)(x)
    expected = copy.deepcopy(norm).double()(x.double()).float()
    torch.testing.assert_close(traced(x), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_sequences_is_a_product(bias: bool) -> None:
    layer = frozen(nn.Conv1d(6, 10, 1, bias=bias))
    x = draw(3, 6, 11)
    traced = make_fx(layer, decomposition_table=REPLACEMENTS)(x)
    assert aten.convolution.default not in {node.target for node in traced.graph.nodes}
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (1, 0), ((3, 2), (2, 1))])
def test_the_gradient_in_few_channels(
    channels: int, kernel: int | tuple[int, int], padding: int | tuple[int, int]
) -> None:
    layer = frozen(nn.Conv2d(channels, 7, kernel, padding=padding))
    x = draw(2, channels, 8, 9)
    check(layer, x, PRODUCTS, aten.convolution_backward.default)


@pytest.mark.parametrize("patch", [2, (2, 4)])
def test_the_gradient_in_an_image_of_patches(patch: int | tuple[int, int]) -> None:
    layer = frozen(nn.Conv2d(3, 16, patch, stride=patch))
    check(layer, draw(2, 3, 8, 8), PRODUCTS, aten.convolution_backward.default)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 4, 3, padding=1),  # many channels
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(3, 4, 3, padding=3),  # more than the kernel covers
        nn.Conv2d(3, 4, 2, stride=2, padding=1),
        nn.ConvTranspose2d(3, 4, 2),
    ],
)
def test_other_convolutions_keep_their_gradient(layer: nn.Module) -> None:
    x = draw(2, layer.in_channels, 9, 9)
    kept = aten.convolution_backward.default
    check(frozen(layer), x, {kept}, aten.bmm.default)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.MaxPool2d((2, 3), (1, 2), (1, 0), ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
    ],
)
def test_pooling(pool: nn.Module, layout: torch.memory_format) -> None:
    x = draw(2, 5, 9, 10).contiguous(memory_format=layout)
    used = torch.ops.ppap.max_pool2d_backward.default
    check(pool, x, {used}, aten.max_pool2d_with_indices_backward.default)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True),
        nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
    ],
)
def test_windows_of_an_average_that_reach_beyond_the_image(pool: nn.Module) -> None:
    used = torch.ops.ppap.avg_pool2d_backward.default
    check(pool, draw(2, 5, 8, 9), {used}, aten.avg_pool2d_backward.default)
    inside = make_fx(torch.func.grad(lambda x: nn.functional.avg_pool2d(x, 2).sum()), REPLACEMENTS)
    targets = {node.target for node in inside(draw(2, 5, 8, 8)).graph.nodes}
    assert aten.avg_pool2d_backward.default in targets


def test_group_norms_in_half_precision_are_left_alone_and_pooling_is_not() -> None:
    norm = frozen(nn.GroupNorm(2, 4)).to(torch.bfloat16)
    x = draw(2, 4, 6, 6).to(torch.bfloat16)

    def run(x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(norm(x), 2)

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(run(leaf).square().sum(), leaf)
        return found

    for function, pooled in (
        (run, torch.ops.ppap.max_pool2d.default),
        (gradient, torch.ops.ppap.max_pool2d_backward.default),
    ):
        traced = make_fx(function, decomposition_table=REPLACEMENTS)(x)
        targets = {node.target for node in traced.graph.nodes}
        assert {aten.native_group_norm.default, pooled} <= targets
        torch.testing.assert_close(traced(x), function(x))
    half = x.to(torch.float16)
    traced = make_fx(lambda x: nn.functional.max_pool2d(x, 2), REPLACEMENTS)(half)
    assert aten.max_pool2d_with_indices.default in {node.target for node in traced.graph.nodes}


def test_the_operators_keep_the_rules() -> None:
    about = [3, 3], [2, 2], [1, 1], [1, 1], False
    x = draw(2, 5, 9, 10)
    torch.library.opcheck(torch.ops.ppap.max_pool2d.default, (x, *about))
    value, indices = torch.ops.ppap.max_pool2d(x, *about)
    arguments = (torch.ones_like(value), x, *about, indices)
    torch.library.opcheck(torch.ops.ppap.max_pool2d_backward.default, arguments)
    arguments = (torch.ones(2, 5, 5, 6), x, [3, 3], [2, 2], [1, 1], True, True, None)
    torch.library.opcheck(torch.ops.ppap.avg_pool2d_backward.default, arguments)


@pytest.mark.parametrize("columns", [16, 65])
def test_the_softmax_of_rows(columns: int) -> None:
    def weighted(x: Tensor) -> Tensor:
        return (3 * x.transpose(0, 1)).softmax(-1)

    check(weighted, draw(7, 2, columns), {torch.ops.ppap.softmax.default}, aten._softmax.default)


@pytest.mark.parametrize(
    ("shape", "dim", "kind"),
    [
        ((4, 10), -1, torch.float32),  # of logits, which is part of something
        ((2, 4, 10), -1, torch.float32),
        ((2, 20, 20), 1, torch.float32),
        ((2, 4, 20), -1, torch.float64),
    ],
)
def test_other_softmaxes_are_left_alone(
    shape: tuple[int, ...], dim: int, kind: torch.dtype
) -> None:
    traced = make_fx(lambda x: x.softmax(dim), REPLACEMENTS)(draw(*shape).to(kind))
    assert aten._softmax.default in {node.target for node in traced.graph.nodes}


def test_the_softmax_keeps_the_rules_of_an_operator() -> None:
    torch.library.opcheck(torch.ops.ppap.softmax.default, (draw(2, 17, 3).transpose(1, 2),))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    def activated(x: Tensor) -> Tensor:
        return nn.functional.gelu(x.transpose(0, 1) * 3, approximate=approximate)

    check(activated, draw(7, 33), {torch.ops.ppap.gelu.default}, aten.gelu.default)
    check(
        activated, draw(7, 33), {torch.ops.ppap.gelu_backward.default}, aten.gelu_backward.default
    )


def test_gelu_of_other_types_is_left_alone() -> None:
    traced = make_fx(nn.functional.gelu, REPLACEMENTS)(draw(3, 5).double())
    assert aten.gelu.default in {node.target for node in traced.graph.nodes}


def test_gelu_keeps_the_rules_of_an_operator() -> None:
    x, gradient = draw(3, 5).t(), draw(5, 3)
    torch.library.opcheck(torch.ops.ppap.gelu.default, (x, "tanh"))
    torch.library.opcheck(torch.ops.ppap.gelu_backward.default, (gradient, x, "none"))


def test_a_stem_of_one_channel_and_its_gradient_are_channels_last() -> None:
    stem = frozen(nn.Conv2d(1, 6, 3, padding=1))
    weight, x = stem.weight.detach(), draw(4, 1, 8, 10)

    def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            own = weights[0].detach().requires_grad_()
            out = torch.nn.functional.conv2d(x, own, stem.bias, padding=1).relu()
            rows = out.flatten(1)  # of one layout is a view, of the other a copy
            (gradient,) = torch.autograd.grad(rows.square().sum(), own)
        return [rows.detach(), gradient]

    traced = Traced(run, ([weight], x), frozen=False)
    places = {aten.convolution.default: 1, aten.convolution_backward.default: 2}
    strides = [
        node.args[places[node.target]].meta["val"].stride()
        for node in traced.graph.graph.nodes
        if node.target in places
    ]
    assert strides == [(9, 1, 3, 1)] * 2
    for ours, expected in zip(traced([weight], x), run([weight], x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_the_weights_of_a_depthwise_convolution_keep_their_layout() -> None:
    layer = frozen(nn.Conv2d(6, 6, 3, groups=6))
    weight, x = layer.weight.detach(), draw(2, 6, 8, 8)

    def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        return [torch.nn.functional.conv2d(x, weights[0], groups=6)]

    traced = Traced(run, ([weight], x), frozen=False)
    (node,) = [n for n in traced.graph.graph.nodes if n.target == aten.convolution.default]
    assert node.args[1].meta["val"].stride() == (9, 9, 3, 1)
    torch.testing.assert_close(traced([weight], x), run([weight], x))
