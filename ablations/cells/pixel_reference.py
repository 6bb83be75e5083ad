"""What the pixels of the setting's test images look like, as one cell that all curves share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ppap.evaluation.features import Features, extract
from ppap.evaluation.pixels import PixelComponents
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.images import from_uint8

__all__ = ["PixelReference"]

Read = tuple[PixelComponents, ReferenceStatistics]
_READ: dict[str, Read] = {}
"""By key, in this process: the radii of ten thousand images take seconds."""


@dataclass(frozen=True)
class PixelReference(Cell):
    """Principal components of the pixels of test images, and these images seen by them.

    Attributes:
        components: how many; fewer where there are not so many images or values.
        images: how many, spread evenly over the split; all if there are fewer.
    """

    setup: Setup
    components: int = 64
    images: int = 10_000

    def label(self) -> str:
        return "principal components of pixels"

    def seconds(self) -> float:
        return 15.0

    def size(self) -> int:
        return super().size() + 4 * self.images * self.components + 2**21

    @property
    def extractor(self) -> str:
        """Name of the features."""
        return f"{self.setup.name}-pixels-{self.components}"

    def compute(self, load: Load) -> Artifact:
        every, _ = self.setup.load().labelled("test")
        count = min(self.images, len(every))
        chosen = every[torch.linspace(0, len(every) - 1, count).round().long()]
        most = min(self.components, count - 1, chosen[0].numel())
        fitted = PixelComponents.fit(chosen, most, self.extractor)
        parts = [extract(fitted, from_uint8(part)) for part in torch.split(chosen, 1000)]
        arrays = {
            "mean": fitted.mean.numpy(),
            "components": fitted.components.numpy(),
            "features": Features.cat(parts).features.float().numpy(),
        }
        return Artifact({"shape": fitted.shape, "count": count}, arrays)

    def read(self, load: Load) -> Read:
        """The extractor, and the statistics of the reference images."""
        if self.key not in _READ:
            found = load(self)
            made = {name: torch.from_numpy(value.copy()) for name, value in found.arrays.items()}
            channels, height, width = found.meta["shape"]
            seen = made["features"]
            _READ[self.key] = (
                PixelComponents(
                    self.extractor, made["mean"], made["components"], (channels, height, width)
                ),
                ReferenceStatistics.from_features(
                    Features(seen, seen.new_zeros(len(seen), 1), self.extractor)
                ),
            )
        return _READ[self.key]
