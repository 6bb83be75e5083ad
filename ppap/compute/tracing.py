"""A function of tensors as one flat graph of tensor operations, backward pass included.

What a graph reads is its input, weights among it, so that new values compile nothing anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._guards import TracingContext
from torch._guards import tracing as in_context
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot, make_fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ppap.compute.constants import settle_constants
from ppap.compute.cpu_operators import REPLACEMENTS
from ppap.compute.cpu_products import choose_products, write_out_permuted
from ppap.compute.precision import widened

__all__ = ["Traced", "ValuesReadError", "graph_of", "laid_out", "state_of"]

READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
"""What reads a tensor's values past the tracer, which sees operations alone."""
MAKING = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
"""What reads those of tensors in lists."""
SHORT_ATTENTION = 256
"""Keys up to which attention written out beats the fused kernel on a CPU, once compiled."""


class Traced(nn.Module):
    """A function as a graph of tensor operations, backward pass included, at fixed shapes.

    Args:
        function: of lists of tensors and tensors; gives a list of tensors.
        arguments: examples.
        frozen: whether the first argument, a list of weights, becomes the module's own; the
            call then leaves it out.

    Attributes:
        half_precision: whether anything in it is computed in half precision.
        met: tensors that the function read besides its arguments, such as the weights of a network
            that only a closure holds. The graph has their values of now.
    """

    def __init__(
        self, function: Callable[..., list[Tensor]], arguments: tuple[Any, ...], frozen: bool
    ) -> None:
        super().__init__()
        on_cpu = all(leaf.device.type == "cpu" for leaf in tree_leaves(arguments))
        if on_cpu:
            graph = graph_of(_attention_written_out(function), arguments, REPLACEMENTS)
            self.met = _constants(graph)
            choose_products(graph)
            write_out_permuted(graph)
        else:
            graph = graph_of(function, arguments)
            self.met = _constants(graph)
            settle_constants(graph)
        own = list(arguments[0]) if frozen else []
        own += _lift_constants(graph)
        graph.graph.set_codegen(fx.graph.CodeGen())
        graph.graph.eliminate_dead_code()
        graph.recompile()
        self.graph = graph
        self.half_precision = any(_is_half(node.meta.get("val")) for node in graph.graph.nodes)
        self.weights = len(arguments[0]) if frozen else 0
        self.own = len(own)
        for number, tensor in enumerate(own):
            self.register_buffer(f"own_{number}", tensor)

    def forward(self, *arguments: Any) -> list[Tensor]:
        own = [getattr(self, f"own_{number}") for number in range(self.own)]
        inputs = tree_leaves(arguments)
        found: list[Tensor] = self.graph(*own[: self.weights], *inputs, *own[self.weights :])
        return found


def graph_of(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    replacements: dict[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """A function's tensor operations, at the shapes of its arguments.

    Args:
        function: of lists of tensors and tensors.
        arguments: examples, with which it is run once.
        replacements: other operations for some, as :func:`make_fx` takes them.

    Raises:
        ValuesReadError: for a function that looks at values in its arguments, as by ``tolist`` or
            ``numpy``: a graph would hold those of the examples.
        RuntimeError: for a function that draws from Python's or NumPy's generator, whose numbers
            every call of the graph would repeat.
        Exception: whatever else cannot be traced.
    """
    # By itself make_fx describes every value in a fake mode of its own, and each mode reads the
    # whole stack as it is made: nearly half the time of tracing. One in the context serves all.
    with (
        _drawing_nothing(),
        in_context(TracingContext(FakeTensorMode(allow_fallback_kernels=True))),
    ):
        graph: fx.GraphModule = make_fx(_values_unread(function), replacements)(*arguments)
    for node in graph.graph.nodes:
        if any(map(_is_of_arguments, _sizing(node))):
            raise ValuesReadError(f"how large a result is depends on values ({node.name})")
    return graph


class ValuesReadError(RuntimeError):
    """A function that no graph stands for: what it computes depends on values that it reads."""


class _ReadsNoValues(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        read: Any = args[:1] if func in READING else ()
        if func in MAKING:
            read = tree_leaves([part for part in args if isinstance(part, list | tuple)])
        if any(isinstance(part, Tensor) and _is_traced(part) for part in read):
            raise ValuesReadError(f"it reads values of its input by {func.__name__}")
        return func(*args, **(kwargs or {}))


def _values_unread(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which fails where it reads values that depend on its arguments."""

    def run(*arguments: Any) -> Any:
        with _ReadsNoValues():
            return function(*arguments)

    return run


def _is_traced(tensor: Tensor) -> bool:
    """Whether a tensor's values are other ones in every call of the graph."""
    mode = get_proxy_mode()
    slot: Any = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return slot is not None and _is_of_arguments(slot.proxy.node)


def _sizing(node: fx.Node) -> list[fx.Node]:
    """Whose values decide how large a result is, as a mask's do by which something is chosen."""
    kind = node.target
    if not isinstance(kind, OpOverload) or torch.Tag.dynamic_output_shape not in kind.tags:
        return []
    if kind is not torch.ops.aten.index.Tensor:
        return node.all_input_nodes
    places = [place for place in node.args[1] if isinstance(place, fx.Node)]  # type: ignore[union-attr]
    return [place for place in places if place.meta["val"].dtype in (torch.bool, torch.uint8)]


def _is_of_arguments(node: fx.Node) -> bool:
    seen, left = {node}, [node]
    while left:
        one = left.pop()
        if one.op == "placeholder":
            return True
        left += [source for source in one.all_input_nodes if source not in seen]
        seen.update(left)
    return False


@contextmanager
def _drawing_nothing() -> Iterator[None]:
    """Refuse what draws from generators that a graph does not know, which stay as they were."""
    python, numpys = random.getstate(), _numpys_state()
    yield
    drawn = {
        "Python's": random.getstate() != python,
        "NumPy's": not all(map(np.array_equal, _numpys_state(), numpys)),
    }
    if any(drawn.values()):
        random.setstate(python)
        np.random.set_state(numpys)  # noqa: NPY002
        whose = " and ".join(name for name, was in drawn.items() if was)
        raise RuntimeError(
            f"it draws random numbers of {whose}, which every call of a graph would repeat; "
            "PyTorch's are drawn anew"
        )


def _numpys_state() -> Any:
    return np.random.get_state()  # noqa: NPY002


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _constants(graph: fx.GraphModule) -> list[Tensor]:
    """The tensors that tracing met on its way."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    return [getattr(graph, name) for name in dict.fromkeys(names)]


def _lift_constants(graph: fx.GraphModule) -> list[Tensor]:
    """Make tensors that tracing met on its way further inputs of the graph; return them."""
    nodes = list(graph.graph.nodes)
    last = [node for node in nodes if node.op == "placeholder"][-1]
    given: dict[str, fx.Node] = {}
    constants = []
    for node in [node for node in nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in given:
            with graph.graph.inserting_after(last):
                given[name] = last = graph.graph.placeholder(name)
            constants.append(getattr(graph, name))
            delattr(graph, name)
        node.replace_all_uses_with(given[name])
        graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if node.target in (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    return constants


class _WriteOutShortAttention(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            keys: Tensor = args[1] if len(args) > 1 else kwargs["key"]
            if keys.shape[-2] <= SHORT_ATTENTION:
                return _written_out(*args, **kwargs)
        return func(*args, **kwargs)


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as products and a softmax, in float32 at least.

    Products this small take as long in bfloat16, and a softmax takes longer. PyTorch's own form
    looks for rows that are masked throughout, where there may be a mask or not.
    """
    kind = query.dtype
    query, key, value, attn_mask = tree_map_only(Tensor, widened, (query, key, value, attn_mask))
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", enabled=False):
        if attn_mask is None and not (dropout_p or is_causal or enable_gqa):
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            found = torch.softmax((query * scale) @ key.transpose(-2, -1), -1) @ value
        else:
            found = F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
    return found.to(kind)


def _attention_written_out(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The same function, its short attentions as products and a softmax."""

    def run(*arguments: Any) -> list[Tensor]:
        with _WriteOutShortAttention():
            return function(*arguments)

    return run


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def laid_out(tensor: Tensor) -> Tensor:
    """Convolution weights channels-last, as convolutions want them."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
