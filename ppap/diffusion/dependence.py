"""What makes a sample depend on more than its seed, and can be seen from outside: said once.

Evaluation mode stops dropout and the statistics of a batch where layers heed it. A functional
dropout that is always on does not, nor does a batch norm that keeps no statistics.
"""

from __future__ import annotations

import logging
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppap.compute.modules import Networks

__all__ = ["Dependence"]

logger = logging.getLogger(__name__)

BATCH = (
    "a batch norm in it keeps no statistics, so that an image depends on its batch; "
    "give it track_running_stats=True"
)
DRAWS = (
    "it, or what it guides, draws random numbers of its own, so that an image depends on more "
    "than its seed; look for a dropout that is always on"
)


class Dependence:
    """Looks at the networks of a trajectory, and logs one line for what it finds in each.

    Args:
        networks: of the denoiser and the guide.
        device: where they compute.
    """

    def __init__(self, networks: Networks, device: torch.device) -> None:
        self.networks = networks
        self.device = device
        self._before: Tensor | None = None
        for module in networks.modules:
            if any(_uses_its_batch(layer) for layer in module.modules()):
                _tell(module, _BATCHES, BATCH)

    def begin_step(self, number: int) -> None:
        """Note the state of PyTorch's generator; not at step 0, where graphs may be traced."""
        self._before = self._state() if number else None

    def end_step(self) -> None:
        """See whether random numbers were drawn that no seed of a sample decides."""
        if self._before is None or torch.equal(self._before, self._state()):
            return
        for module in self.networks.modules[-1:]:  # the guide's, if there is one
            _tell(module, _DRAWS, DRAWS)

    def _state(self) -> Tensor:
        if self.device.type == "cuda":
            return torch.cuda.get_rng_state(self.device)
        return torch.get_rng_state()


_BATCHES: WeakSet[nn.Module] = WeakSet()
_DRAWS: WeakSet[nn.Module] = WeakSet()
"""Of which networks it was said."""


def _tell(module: nn.Module, told: WeakSet[nn.Module], what: str) -> None:
    if module not in told:
        told.add(module)
        logger.warning("%s: %s", type(module).__name__, what)


def _uses_its_batch(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is None
