"""Any Hugging Face peft method as a part of an adapter; its mathematics is peft's own.

In training the network runs with peft's layers in place, as peft runs it. For guidance the
effective weights are computed once per expert by peft's own merging, so that a guidance
gradient costs what the bare predictor's does.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from ppap.compute.agreement import FirstUse, computes_in_half, disturbed, joined
from ppap.compute.copies import sharing_copy, without_hooks
from ppap.compute.options import check_choice, check_number, check_whole
from ppap.compute.stateless import copied, run_with
from ppap.experts.adapters.layers import (
    AUTO,
    PPAP_LORA_LAYERS,
    AdaptableWeight,
    check_pattern,
    matching_weights,
)
from ppap.experts.adapters.parts import Part, Tensors
from ppap.experts.adapters.student import Student, in_order, set_mode
from ppap.files.checkpoints import one_line

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["Peft"]

Method = Literal["lora", "rslora", "dora", "ia3", "loha", "lokr", "oft", "boft"]
NAME = "default"
ADDITIVE = ("lora", "rslora", "loha", "lokr")
"""Methods whose merged weight is the weight and an addend."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peft:
    """An adapter of Hugging Face peft on the layers that a regular expression finds.

    Its convolutional LoRA is k x k down and 1 x 1 up, not the paper's (see
    :class:`ppap.experts.adapters.lora.Lora` for that). Its OFT is for linear layers alone: on
    convolutions peft merges other weights than its forward pass uses, and fails on maps smaller
    than the kernel. OFT and BOFT leave out layers whose inputs (in channels times kernel area, of a
    convolution) the block size does not divide, such as a stem of one channel.

    Attributes:
        method: LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353), IA3
            (2205.05638), LoHa (2108.06098), LoKr (2309.14859), OFT (2306.07280) or BOFT
            (2311.06243).
        rank: of LoRA, rsLoRA, DoRA, LoHa and LoKr; for OFT and BOFT the block size; IA3 has
            none.
        alpha: numerator of the scaling, where the method has one.
        layers: regular expression for the names of the adapted layers.
    """

    method: Method = "lora"
    rank: int = 16
    alpha: float = 8.0
    layers: str = PPAP_LORA_LAYERS

    def __post_init__(self) -> None:
        check_pattern(self.layers)
        check_choice("method", self.method, get_args(Method))
        check_whole("rank", self.rank)
        check_number("alpha", self.alpha, 0, above=True)

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        injected = self.inject(network, generator)
        return {
            name: parameter.detach().clone()
            for name, parameter in _added_parameters(network, injected).items()
        }

    def buffers(self, network: nn.Module) -> Tensors:
        return {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        raise TypeError("peft's layers have a forward of their own; use Adapter.student()")

    def student(self, network: nn.Module, parts: tuple[Part, ...]) -> Student:
        """The network with peft's layers in place."""
        return PeftStudent(network, parts, self)

    def inject(self, network: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
        """A copy of the network that shares its tensors, with peft's layers in place.

        Args:
            network: the frozen predictor's.
            generator: of the initial values.

        Raises:
            ValueError: for layers that peft's method does not take.
        """
        # Imported here: it brings in all of transformers.
        from peft import inject_adapter_in_model

        config = self.config(network)
        twin = sharing_copy(network)
        frozen = {parameter: parameter.requires_grad for parameter in network.parameters()}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            seed = torch.randint(2**31, (1,), generator=generator) if generator else 0
            # Not torch.manual_seed, which would seed GPUs as well and leave them so.
            torch.default_generator.manual_seed(int(seed))
            # BOFT warns that it does without its CUDA extension.
            warnings.simplefilter("ignore", UserWarning)
            try:
                injected = inject_adapter_in_model(config, twin, NAME)
            except Exception as error:
                raise ValueError(
                    f"peft's {self.method} does not fit all of these layers: {one_line(error)}"
                ) from error
        for parameter, wanted in frozen.items():
            parameter.requires_grad_(wanted)
        return injected

    def weights(self, network: nn.Module) -> list[AdaptableWeight]:
        """Those that are adapted; of AUTO's those whose layer is called, for peft wraps layers."""
        found = matching_weights(network, self.layers)
        return [about for about in found if about.called] if self.layers == AUTO else found

    def _layers(self, network: nn.Module) -> list[AdaptableWeight]:
        found = self.weights(network)
        if self.method == "oft":
            found = [about for about in found if isinstance(about.layer, nn.Linear)]
            if not found:
                raise ValueError("peft's OFT needs linear layers; choose boft for convolutions")
        if self.method in ("oft", "boft"):
            # A rotation of blocks of the input needs blocks that divide it.
            found = [about for about in found if _inputs(about) % self.rank == 0]
            if not found:
                raise ValueError(
                    f"no layer's inputs divide into blocks of {self.rank}; choose another rank"
                )
        return found

    def config(self, network: nn.Module) -> PeftConfig:
        """peft's settings for the layers of a network."""
        import peft

        pattern = "|".join(re.escape(about.name) for about in self._layers(network))
        rank, alpha = self.rank, cast(int, self.alpha)  # peft's annotation is too narrow
        match self.method:
            case "lora" | "rslora" | "dora":
                return peft.LoraConfig(
                    r=rank,
                    lora_alpha=alpha,
                    target_modules=pattern,
                    use_rslora=self.method == "rslora",
                    use_dora=self.method == "dora",
                )
            case "ia3":
                return peft.IA3Config(target_modules=pattern, feedforward_modules=[])
            case "loha":
                return peft.LoHaConfig(r=rank, alpha=alpha, target_modules=pattern)
            case "lokr":
                return peft.LoKrConfig(r=rank, alpha=alpha, target_modules=pattern)
            case "oft":
                return peft.OFTConfig(r=0, oft_block_size=rank, target_modules=pattern)
            case "boft":
                return peft.BOFTConfig(boft_block_size=rank, target_modules=pattern)


class PeftStudent(Student):
    """A network with peft's layers: peft's forward in training, peft's merging otherwise.

    The two are compared at the first step of training, for they are not always the same: peft's
    convolutions know neither dilation nor circular padding, and a layer whose weight is read
    instead of called is not adapted. Where they differ, methods that add to the weight are trained
    by their merged weights, which is what guides in the end.

    Raises:
        ValueError: for layers that peft cannot merge; at the first step of training, for a method
            that does not add to the weight where the two differ.
    """

    def __init__(self, network: nn.Module, parts: tuple[Part, ...], part: Peft) -> None:
        super().__init__(network, parts)
        self.part = part
        self.injected = part.inject(network)
        self.names = _wrapped_names(network, self.injected)
        self.added = frozenset(_added_parameters(network, self.injected))
        self.layers = _wrapping_layers(self.injected)
        what = f"the network with peft's layers, of {type(network).__name__},"
        self.check = FirstUse(what, logger, computes_in_half(network))
        known = dict(network.named_parameters())
        for name, layer in self.layers.items():
            if f"{name}.weight" not in known:
                raise ValueError(
                    f"peft cannot adapt {name}: its weight is shared with another layer or computed"
                )
            if getattr(layer.get_base_layer(), "groups", 1) > 1:
                _check_merging(name, layer, part.method)

    def effective(self, base: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
        weights = self._without_peft(base, own)
        for name, layer in self.layers.items():
            # To where the base is now: the bank may have moved since this copy was made.
            merged = without_hooks(layer).to(weights[f"{name}.weight"])
            with torch.no_grad():
                for key, parameter in merged.named_parameters():
                    inner = key.removeprefix("base_layer.")
                    full = f"{name}.{inner}"
                    parameter.copy_(weights[full] if inner != key else own[f"{name}.{key}"])
                merged.merge(safe_merge=True, adapter_names=[NAME])
            for key, parameter in merged.get_base_layer().named_parameters():
                weights[f"{name}.{key}"] = parameter.detach()
        return weights

    def run(
        self,
        base: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
    ) -> Any:
        self.prepare(base, own, buffers, inputs)
        if self.check.dropped:
            state = self._merged_with_graph(base, own) | dict(buffers)
            return run_with(self.network, state, inputs)
        return self._run_injected(base, own, buffers, inputs)

    def prepare(
        self,
        base: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
    ) -> None:
        mode = self.network.training
        if self.check.compared(mode) or is_functorch_wrapped_tensor(inputs):
            return
        moved = disturbed(own)

        def as_trained(x: Tensor) -> Any:
            return joined(self._run_injected(base, moved, copied(buffers), x), len(x))

        def as_merged(x: Tensor) -> Any:
            state = self.effective(base, moved) | copied(buffers)
            return joined(run_with(self.network, state, x), len(x))

        if not self.check.allows(as_trained, as_merged, inputs, mode) and (
            self.part.method not in ADDITIVE
        ):
            raise ValueError(
                f"peft's {self.part.method} trains another function than it merges on these layers "
                f"of {type(self.network).__name__}; choose {', '.join(ADDITIVE)}, the library's "
                "own Lora, or other layers"
            )

    def _run_injected(
        self,
        base: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
    ) -> Any:
        weights = dict(self.network.named_buffers()) | self._without_peft(base, own) | dict(buffers)
        state = {self.names[key]: value for key, value in weights.items()}
        state |= {key: own[key] for key in self.added}
        set_mode(self.injected.to(inputs.device), self.network.training, buffers)
        return run_with(self.injected, state, inputs)

    def _merged_with_graph(self, base: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
        """As :meth:`effective`, differentiable in ``own``."""
        weights = self._without_peft(base, own)
        for name, layer in self.layers.items():
            added = {
                f"layer.{key}": own[f"{name}.{key}"]
                for key, _ in layer.named_parameters()
                if f"{name}.{key}" in own
            }
            weight = weights[f"{name}.weight"]
            delta = run_with(_Delta(layer), added)
            weights[f"{name}.weight"] = (weight + delta.view_as(weight)).to(weight.dtype)
        return weights

    def _without_peft(self, base: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
        weights = dict(base)
        for part in in_order(self.parts):
            if part is not self.part:
                part.apply(weights, own)
        return weights


class _Delta(nn.Module):
    """What a layer of peft's adds to its weight."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Any:
        return self.layer.get_delta_weight(NAME)


def _check_merging(name: str, layer: Any, method: str) -> None:
    try:
        without_hooks(layer).merge(safe_merge=True, adapter_names=[NAME])
    except Exception as error:
        raise ValueError(
            f"peft's {method} cannot merge {name}: {one_line(error)}; choose another method, "
            "the library's own Lora, or other layers"
        ) from error


def _wrapped_names(network: nn.Module, injected: nn.Module) -> dict[str, str]:
    """Names of the network's parameters and buffers -> those in the network with peft's layers."""
    wrapped = _wrapping_layers(injected)
    names = {}
    for name, _ in [*network.named_parameters(), *network.named_buffers()]:
        layer, _, leaf = name.rpartition(".")
        names[name] = f"{layer}.base_layer.{leaf}" if layer in wrapped else name
    return names


def _wrapping_layers(injected: nn.Module) -> dict[str, Any]:
    """peft's layers, by the name of the layer that each wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = injected.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, BaseTunerLayer)}


def _added_parameters(network: nn.Module, injected: nn.Module) -> Tensors:
    """What peft trains, by name."""
    known = set(_wrapped_names(network, injected).values())
    return {name: value for name, value in injected.named_parameters() if name not in known}


def _inputs(about: AdaptableWeight) -> int:
    """Of a linear layer, or of a convolution's kernel over all of its channels."""
    return about.weight[0].numel() * about.groups
