"""Batch norms folded into the convolutions before them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ppap.compute.copies import sharing_copy
from ppap.compute.modules import hooks_of_all

__all__ = ["FoldedNetwork"]


class FoldedNetwork:
    """A network without those batch norms that follow a convolution or linear layer directly.

    In evaluation mode such a norm is a scale and a shift, which the layer's weight and bias can
    take on. A network that cannot be traced symbolically is left as it is, and so is one with
    hooks, which tracing would call.

    Args:
        network: in evaluation mode; not changed, though its tensors are shared.

    Attributes:
        network: what runs with :meth:`weights`.
        folded: names of (layer, norm).
    """

    def __init__(self, network: nn.Module) -> None:
        self.network: nn.Module = network
        self.folded: list[tuple[str, str]] = []
        self._norms: dict[str, nn.BatchNorm2d] = {}
        if not any(type(layer) is nn.BatchNorm2d for layer in network.modules()):
            return
        if hooks_of_all() or any(
            layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules()
        ):
            return
        try:
            tracer = _Tracer()
            graph = tracer.trace(sharing_copy(network).eval(), _left_out(network))
            traced = fx.GraphModule(tracer.root, graph)
        except Exception:  # noqa: BLE001 control flow that depends on values, and much else
            return
        layers = dict(traced.named_modules())
        called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        for node in list(traced.graph.nodes):
            if node.op != "call_module" or type(layers[node.target]) is not nn.BatchNorm2d:
                continue
            before = node.args[0]
            if (
                not isinstance(before, fx.Node)
                or before.op != "call_module"
                or type(layers[str(before.target)]) is not nn.Conv2d
                or len(before.users) > 1
                or called.count(before.target) > 1
                or called.count(node.target) > 1
                or not layers[node.target].track_running_stats
            ):
                continue
            layer, norm = str(before.target), str(node.target)
            self.folded.append((layer, norm))
            self._norms[norm] = layers[norm]
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
        for layer, norm in self.folded:
            convolution = layers[layer]
            if convolution.bias is None:
                convolution.bias = nn.Parameter(torch.zeros_like(convolution.weight[:, 0, 0, 0]))
            traced.delete_submodule(norm)
        traced.recompile()
        self.network = traced

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters and buffers of the folded network, from those of the original by name."""
        found = dict(state)
        if not self.folded:
            return found
        for layer, norm in self.folded:
            about = {
                kind: found.pop(f"{norm}.{kind}", None)
                for kind in ("running_mean", "running_var", "weight", "bias")
            }
            found.pop(f"{norm}.num_batches_tracked", None)
            mean, variance = about["running_mean"], about["running_var"]
            assert mean is not None
            assert variance is not None
            weight, bias = fuse_conv_bn_weights(
                found[f"{layer}.weight"],
                found.get(f"{layer}.bias"),
                mean,
                variance,
                self._norms[norm].eps,
                about["weight"],
                about["bias"],
            )
            found[f"{layer}.weight"], found[f"{layer}.bias"] = weight.detach(), bias.detach()
        # Tracing leaves out the layers that no prediction uses.
        known = {name for name, _ in self.network.named_parameters()}
        known |= {name for name, _ in self.network.named_buffers()}
        return {name: value for name, value in found.items() if name in known}


class _Tracer(fx.Tracer):
    """Follows buffers as it does parameters: what is computed of one is no constant."""

    proxy_buffer_attributes = True


def _left_out(network: nn.Module) -> dict[str, Any]:
    """Options by which a network may branch, as they are where nobody gives them.

    The tracer would put a value of its own in their place, and follow the branches of that one.
    """
    options = inspect.signature(network.forward).parameters.values()
    return {
        option.name: option.default
        for option in options
        if option.default is None or isinstance(option.default, bool)
    }
