"""Whichever library does a product, and however its matrix came there, the values are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppap.compute import cpu_products
from ppap.compute.cpu import Cpu
from ppap.compute.tracing import Traced


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


INTEL = Cpu("An Intel", frozenset(), "AVX512", vendor="GenuineIntel")
AMD = replace(INTEL, vendor="AuthenticAMD")


@pytest.mark.parametrize(
    ("cpu", "rows", "kind", "onednn", "mkl"),
    [
        (AMD, 600, torch.float32, 3, 0),
        (AMD, 100, torch.float32, 0, 0),
        (AMD, 600, torch.bfloat16, 3, 0),
        (INTEL, 600, torch.float32, 0, 1),  # those without a bias are MKL's as they are
        (INTEL, 100, torch.float32, 0, 0),
        (INTEL, 600, torch.bfloat16, 3, 0),
        (replace(INTEL, mkl_limit="AVX2"), 600, torch.float32, 3, 0),
    ],
)
def test_products_of_tall_matrices_go_to_the_quicker_library(
    monkeypatch: pytest.MonkeyPatch, cpu: Cpu, rows: int, kind: torch.dtype, onednn: int, mkl: int
) -> None:
    monkeypatch.setattr(cpu_products, "this_cpu", lambda: cpu)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(kind) for shape in ((rows, 12), (20, 12), (20,))
    )

    def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        hidden = torch.nn.functional.linear(x, weights[0], weights[1])
        return [hidden @ weights[0], torch.mm(x, weights[0].t())]

    traced = Traced(run, ([weight, bias], x), frozen=False)
    used = [node.target for node in traced.graph.graph.nodes]
    assert used.count(torch.ops.ppap.onednn_linear.default) == onednn
    assert used.count(torch.ops.ppap.product.default) == mkl
    for ours, expected in zip(traced([weight, bias], x), run([weight, bias], x), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_product_keeps_the_rules_of_an_operator() -> None:
    arguments = torch.randn(5, 12), torch.randn(20, 12).t()
    torch.library.opcheck(torch.ops.ppap.product.default, arguments)


def test_the_onednn_product_keeps_the_rules_of_an_operator() -> None:
    arguments = torch.randn(5, 12), torch.randn(20, 12).t().contiguous().t(), torch.randn(20)
    torch.library.opcheck(torch.ops.ppap.onednn_linear.default, arguments)
    torch.library.opcheck(torch.ops.ppap.onednn_linear.default, (*arguments[:2], None))


@pytest.mark.parametrize(
    ("width", "kind", "count"),
    [(16, torch.bfloat16, 1), (24, torch.float32, 1), (16, torch.float32, 0)],
)
def test_heads_that_fill_no_vector_are_put_together_by_a_copy(
    monkeypatch: pytest.MonkeyPatch, width: int, kind: torch.dtype, count: int
) -> None:
    monkeypatch.setattr(cpu_products, "WORTH_A_CALL", 2 * 3 * 5 * width)
    heads, weight = draw(2, 3, 5, width).to(kind), draw(8, 3 * width).to(kind)

    def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        columns = x.transpose(1, 2).reshape(10, -1)
        apart = x.transpose(1, 2).contiguous() + 1  # keeps its last axis
        return [columns @ weights[0].t(), columns.sum(0), apart]

    traced = Traced(run, ([weight], heads), frozen=False)
    used = [node.target for node in traced.graph.graph.nodes]
    assert used.count(torch.ops.ppap.written_out.default) == count
    for ours, expected in zip(traced([weight], heads), run([weight], heads), strict=True):
        assert torch.equal(ours, expected)


def test_what_is_small_is_put_together_as_inductor_sees_fit() -> None:
    """As a group norm's scales are, one to a group, for each of its channels."""
    scales = draw(64, 32)

    def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        return [x[..., None].expand(64, 32, 2).reshape(64, 64) + weights[0]]

    traced = Traced(run, ([draw(64)], scales), frozen=False)
    used = [node.target for node in traced.graph.graph.nodes]
    assert torch.ops.ppap.written_out.default not in used


def test_the_copy_keeps_the_rules_of_an_operator() -> None:
    for heads in (draw(2, 3, 5, 4).transpose(1, 2), draw(2, 3)):
        torch.library.opcheck(torch.ops.ppap.written_out.default, (heads,))
