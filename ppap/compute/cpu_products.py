"""Which library does the products of a traced graph on a CPU, and how matrices come to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ppap.compute.cpu import this_cpu
from ppap.compute.cpu_operators import VECTOR, VECTORISED
from ppap.compute.custom_operators import cpu_operator

__all__ = ["choose_products", "write_out_permuted"]

TALL = 512
"""Rows from which a product is worth choosing a library for."""
WORTH_A_CALL = 2**16
"""Values from which a copy is worth an operator of its own, and what is no longer fused by it."""

_aten = torch.ops.aten


@cpu_operator("product(Tensor x, Tensor y) -> Tensor")
def _product(x: Tensor, y: Tensor) -> Tensor:
    return torch.mm(x, y)


def _as_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty(len(x), len(weight))


@cpu_operator("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", fake=_as_linear)
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias of (M, K), (N, K) and (N,) by oneDNN, whatever the weight's strides."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@cpu_operator("written_out(Tensor x) -> Tensor")
def _written_out(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def choose_products(graph: fx.GraphModule) -> None:
    """Have each product of a tall matrix done by the library that is quicker at it here.

    For 4160 rows and widths of 48 to 192, in float32, MKL took 49 to 203 us on an Intel CPU and
    oneDNN 65 to 268; on an AMD CPU oneDNN took half of MKL's time. Inductor has MKL do all but
    those with constants. In bfloat16 all products are oneDNN's. Neither way is a copy of the bias
    written first: oneDNN adds it as it writes, and what follows MKL adds it as it reads.
    """
    mkl = this_cpu().mkl_leads and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    transposes = (_aten.t.default, _aten.transpose.int, _aten.permute.default)
    for node in list(graph.graph.nodes):
        if node.target not in (_aten.mm.default, _aten.addmm.default) or node.kwargs:
            continue
        *bias, left, right = node.args
        about = [part.meta["val"] for part in (*bias, left, right)]
        rows, outputs = about[-2].shape[0], about[-1].shape[1]
        flat = not bias or about[0].shape == (outputs,)
        kinds = {part.dtype for part in about}
        if rows < TALL or not flat or len(kinds) > 1 or not kinds <= VECTORISED:
            continue
        if mkl and kinds == {torch.float32}:
            if bias:
                _add_bias_later(graph, node, left, right, bias[0])
            continue
        if not onednn:
            continue
        if right.target in transposes:
            weight = right.args[0]
        else:
            with graph.graph.inserting_before(node):
                weight = graph.graph.call_function(_aten.permute.default, (right, [1, 0]))
        product = torch.ops.ppap.onednn_linear.default
        _put_in_place(graph, node, product, (left, weight, bias[0] if bias else None))


def _add_bias_later(
    graph: fx.GraphModule, node: fx.Node, left: fx.Node, right: fx.Node, bias: fx.Node
) -> None:
    """By an operator of our own, for inductor would make one product with a bias of the two."""
    with graph.graph.inserting_before(node):
        found = graph.graph.call_function(torch.ops.ppap.product.default, (left, right))
    found.meta = dict(node.meta)
    _put_in_place(graph, node, _aten.add.Tensor, (found, bias))


def write_out_permuted(graph: fx.GraphModule) -> None:
    """Have heads put together by a copy of their own where they become columns of a matrix.

    Where a head does not fill vectors, as 16 channels in bfloat16 do not, inductor reads it through
    the copy from wherever columns are used, and finds each element by divisions: of a ViT's
    gradient in queries, keys and values, for 64 images, the copy took 1700 us instead of 350, and
    a bias's sum over it as much again.
    """
    views = (_aten.view.default, _aten._unsafe_view.default)
    for node in list(graph.graph.nodes):
        if node.target != _aten.clone.default:
            continue
        before, after = node.args[0].meta["val"], node.meta["val"]
        merged = any(
            user.target in views and user.meta["val"].shape[-1] != after.shape[-1]
            for user in node.users
        )
        fills = after.ndim < 3 or after.shape[-1] * after.itemsize % VECTOR == 0
        small = after.numel() < WORTH_A_CALL
        if fills or small or not merged or before.is_contiguous() or not after.is_contiguous():
            continue
        _put_in_place(graph, node, torch.ops.ppap.written_out.default, node.args[:1])


def _put_in_place(
    graph: fx.GraphModule, node: fx.Node, operator: Any, arguments: tuple[Any, ...]
) -> None:
    """Have an operator compute what a node of the graph did."""
    with graph.graph.inserting_before(node):
        other = graph.graph.call_function(operator, arguments)
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    graph.graph.erase_node(node)
