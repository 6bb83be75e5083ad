"""Adapters: the trainable part that is added to a frozen predictor.

An adapter is a tuple of parts. A part says which tensors it owns and how they change the
frozen network's parameters; nothing is ever written into the network itself. The paper's
adapter is three parts: :class:`ppap.experts.adapters.lora.Lora` on convolutions (loralib's form)
and linear layers, :class:`ppap.experts.adapters.parts.Biases` and
:class:`ppap.experts.adapters.parts.Norms`. :class:`ppap.experts.adapters.parts.Full` is full
fine-tuning in the same terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppap.experts.adapters.layers import PPAP_LORA_LAYERS
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Norms, Part, Tensors
from ppap.experts.adapters.student import Student, Wrapping

__all__ = ["Adapter", "full_adapter", "ppap_adapter"]


@dataclass(frozen=True)
class Adapter:
    """The parts of an adapter, applied in order, low-rank updates last.

    Attributes:
        parts: e.g. ``(Biases(), Norms(), Lora(rank=4))``. Several :class:`Lora` parts, of another
            rank or scaling each, are for different layers.

    Raises:
        TypeError: for a part that is none.
        ValueError: for more than one part with a forward of its own.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        given: Any = self.parts
        parts = tuple(given) if isinstance(given, list | tuple) else ()
        if not parts or any(
            isinstance(part, type) or not hasattr(part, "create") for part in parts
        ):
            raise TypeError(f"the parts of an adapter are such as (ppap.Biases(),), got {given!r}")
        object.__setattr__(self, "parts", parts)
        wrapping = [part for part in self.parts if isinstance(part, Wrapping)]
        if len(wrapping) > 1:
            raise ValueError(
                f"an adapter holds one peft method, got {len(wrapping)}; "
                "name all its layers in one part"
            )

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        """Fresh trainable tensors of all parts, by name.

        Raises:
            ValueError: if no layer of the network matches, or two low-rank updates want the same.
        """
        own: Tensors = {}
        for part in self.parts:
            own.update(part.create(network, generator))
        self._check_layers(own)
        if not own:
            raise ValueError(f"{self} finds nothing to train in {type(network).__name__}")
        return own

    def lora_of(self, layer: str) -> Lora | None:
        """The part whose low-rank update a layer gets, by the layer's name."""
        found = (part for part in self.parts if isinstance(part, Lora) and part.adapts(layer))
        return next(found, None)

    def buffers(self, network: nn.Module) -> Tensors:
        """Fresh copies of the buffers that the adapter keeps for itself."""
        return {key: value for part in self.parts for key, value in part.buffers(network).items()}

    def effective(self, base: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
        """The network's parameters under the adapter, differentiable in ``own``.

        Args:
            base: the frozen network's parameters, by name.
            own: the adapter's tensors.

        Returns:
            All parameters, by name; those that the adapter leaves alone are shared.
        """
        return Student(nn.Identity(), self.parts).effective(base, own)

    def student(self, network: nn.Module) -> Student:
        """How the network makes predictions under this adapter."""
        for part in self.parts:
            if isinstance(part, Wrapping):
                return part.student(network, self.parts)
        return Student(network, self.parts)

    def _check_layers(self, own: Tensors) -> None:
        """Own copies of a parameter may be named by two parts; low-rank updates may not."""
        for layer in (key.removesuffix(".lora_A") for key in own if key.endswith(".lora_A")):
            if sum(isinstance(part, Lora) and part.adapts(layer) for part in self.parts) > 1:
                raise ValueError(
                    f"two Lora parts adapt {layer}; give them `layers` that find different ones"
                )


def ppap_adapter(rank: int = 16, alpha: float = 8.0, layers: str = PPAP_LORA_LAYERS) -> Adapter:
    """The paper's adapter: LoRA, biases and batch norms, on the layers of the released code.

    Args:
        rank: of LoRA.
        alpha: likewise.
        layers: of LoRA, as for :class:`ppap.experts.adapters.lora.Lora`; those of the released code
            are a ResNet's or a vision transformer's of timm.
    """
    return Adapter((Biases(), Norms(), Lora(rank, alpha, layers)))


def full_adapter() -> Adapter:
    """Full fine-tuning."""
    return Adapter((Full(),))
