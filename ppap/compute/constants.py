"""What a graph computes from no input: once, and where it is read, not in every call."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

__all__ = ["settle_constants"]

CPU = torch.device("cpu")


@torch.no_grad()
def settle_constants(graph: fx.GraphModule) -> None:
    """Compute what a graph makes on the CPU from no input now, and hold it where it is read.

    A network may keep a table on the CPU, or make one there in each call, and copy it to where its
    input is. That costs a transfer per call, and no CUDA graph can hold one from pageable memory.

    Args:
        graph: of tensor operations, as make_fx gives it; changed in place. Random numbers are
            drawn in every call, and a graph that writes into such a constant is left as it is.
    """
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, str(node.target))
            if value.device == CPU:
                known[node] = value
        elif node.op == "call_function" and all(s in known for s in node.all_input_nodes):
            if _writes(node):
                return
            if _is_constant(node):
                arguments, options = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*arguments, **options)
        elif _writes(node) and any(s in known for s in node.all_input_nodes):
            return
    for number, (node, value) in enumerate(known.items()):
        for user in [user for user in node.users if user not in known]:
            home = _device(user, value.device)
            name = f"_settled_{number}_{home.type}"
            graph.register_buffer(name, value.to(home))
            with graph.graph.inserting_before(node):
                held = graph.graph.get_attr(name)
            held.meta["val"] = value.to(home)
            user.replace_input_with(node, held)
    graph.graph.eliminate_dead_code()
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in {str(node.target) for node in known if node.op == "get_attr"} - read:
        delattr(graph, name)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _is_constant(node: fx.Node) -> bool:
    """Whether a call of constants, or of nothing on the CPU, gives the same each time."""
    if node.target is operator.getitem:
        return True
    assert isinstance(node.target, OpOverload)
    drawn = torch.Tag.nondeterministic_seeded in node.target.tags
    return not drawn and (bool(node.all_input_nodes) or _device(node, CPU) == CPU)


def _device(node: fx.Node, otherwise: torch.device) -> torch.device:
    """Where a call's result is."""
    tensors = [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
    return tensors[0].device if tensors else otherwise
