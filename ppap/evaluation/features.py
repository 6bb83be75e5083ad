"""What a network sees in images: the features and class scores that metrics compare.

``extract`` applies an extractor once, for every metric; ``register_extractor`` lends the same
extractor to ``torch_fidelity.calculate_metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ppap.compute.options import check_whole
from ppap.files.images import check_images, from_uint8

__all__ = ["FeatureExtractor", "Features", "extract", "register_extractor"]


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor sees in N images.

    Attributes:
        features: (N, D) float, the layer FID, KID, precision and recall compare.
        logits: (N, K) float, unnormalised class scores, for the Inception Score.
        extractor: name of the extractor; ``extract`` writes it.
        spatial: (N, S) float, an earlier layer with its places kept, for sFID; or None.

    Raises:
        ValueError: unless these are finite matrices of as many rows.
    """

    features: Tensor
    logits: Tensor
    extractor: str = ""
    spatial: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = f"features {tuple(self.features.shape)} and logits {tuple(self.logits.shape)}"
        if self.features.ndim != 2 or self.logits.ndim != 2 or len(self.features) != len(self):
            raise ValueError(f"expected (N, D) features and (N, K) logits, got {shapes}")
        if self.spatial is not None and (self.spatial.ndim != 2 or len(self.spatial) != len(self)):
            raise ValueError(f"{shapes} do not fit spatial features {tuple(self.spatial.shape)}")
        every = (self.features, self.logits, self.spatial)
        if not all(part is None or part.isfinite().all() for part in every):
            raise ValueError(f"{shapes} hold NaN or infinity; look for such images first")

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: slice | Tensor) -> Features:
        """Select images by a slice, an index or a mask."""
        spatial = None if self.spatial is None else self.spatial[index]
        return Features(self.features[index], self.logits[index], self.extractor, spatial)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Join parts in order; ValueError for none, or for parts of several extractors."""
        names = {part.extractor for part in parts}
        if len(names) != 1:
            raise ValueError(f"can join features of one extractor, got {sorted(names)}")
        features = torch.cat([part.features for part in parts])
        logits = torch.cat([part.logits for part in parts])
        spatial = [part.spatial for part in parts if part.spatial is not None]
        joined = torch.cat(spatial) if len(spatial) == len(parts) else None
        return Features(features, logits, names.pop(), joined)


class FeatureExtractor(Protocol):
    """The seam: any network which turns images into features and class scores."""

    @property
    def name(self) -> str:
        """Unique name, a new one for new weights, e.g. ``"evaluator-64"``."""

    def __call__(self, images: Tensor) -> Features:
        """Features of (N, C, H, W) images in [-1, 1], each image on its own."""


def extract(extractor: FeatureExtractor, images: Tensor, batch: int = 250) -> Features:
    """Extract features in batches, without gradients.

    Args:
        extractor: the network; it sees the images on their own device.
        images: (N, C, H, W) float in [-1, 1].
        batch: images at a time; it sets memory, not the result.

    Returns:
        Features of the N images on the CPU, marked with the extractor's name.

    Raises:
        ValueError: for no images, another shape, another type or another range.
    """
    check_images(images)
    check_whole("batch", batch)
    parts: list[Features] = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            seen = extractor(images[start : start + batch])
            spatial = None if seen.spatial is None else seen.spatial.cpu()
            parts.append(Features(seen.features.cpu(), seen.logits.cpu(), extractor.name, spatial))
    return Features.cat(parts)


def register_extractor(extractor: FeatureExtractor) -> str:
    """Make an extractor known to ``torch_fidelity.calculate_metrics(feature_extractor=name)``.

    There it is fed uint8 images, and gives float64 so that torch-fidelity does not round in
    float32. ``cuda=`` must name the device the extractor lives on.

    Returns:
        The extractor's name.

    Raises:
        ValueError: if the name is taken, or is none torch-fidelity accepts.
    """
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if extractor.name in FEATURE_EXTRACTORS_REGISTRY:
        raise ValueError(f"torch-fidelity already has {extractor.name!r}; take another name")

    class Registered(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: Sequence[str], **_options: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            seen = extractor(from_uint8(images))
            return tuple(getattr(seen, layer).double() for layer in self.features_list)

    torch_fidelity.register_feature_extractor(extractor.name, Registered)
    return extractor.name
