"""An expert: the adapter's tensors for one noise range."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["Expert"]


class Expert(nn.Module):
    """The adapter tensors of one noise range, under the names that the adapter gave them.

    Args:
        tensors: what is trained, by name.
        buffers: what the expert keeps for itself and training updates in place, such as
            batch-norm statistics.
    """

    def __init__(self, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        super().__init__()
        for key, value in tensors.items():
            self.register_parameter(_escape(key), nn.Parameter(value))
        for key, value in buffers.items():
            self.register_buffer(_escape(key), value)

    def tensors(self) -> dict[str, Tensor]:
        """The trainable tensors."""
        return {_unescape(key): value for key, value in self.named_parameters()}

    def statistics(self) -> dict[str, Tensor]:
        """Buffers that the expert keeps for itself; training updates them in place."""
        return {_unescape(key): value for key, value in self.named_buffers()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the expert from tensors and statistics by name, strictly."""
        self.load_state_dict({_escape(key): value for key, value in tensors.items()})


def _escape(key: str) -> str:
    """Module attributes cannot hold dots; names of layers may hold slashes, which are doubled."""
    return key.replace("/", "//").replace(".", "/")


def _unescape(key: str) -> str:
    return "/".join(part.replace("/", ".") for part in key.split("//"))
