"""Depth: maps against maps, up to a scale and a shift or in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap.compute.precision import widened
from ppap.tasks.checks import check_alike, checked_values, without_nan
from ppap.tasks.maps import known_mean, standardised

__all__ = ["DepthTask", "align_depth"]


@dataclass(frozen=True)
class DepthTask:
    """Depth, or inverse depth: whatever the maps hold, predictions and targets hold the same.

    Maps are (B, H, W) or, from a network, (B, 1, H, W); NaN in a target marks pixels of which
    nothing is known.

    Attributes:
        aligned: whether maps are compared up to a scale and a shift per image, as MiDaS is
            trained and judged (Ranftl et al., arXiv 1907.01341, section 5); False compares
            metric maps as they are. Scores align by least squares, equation 4. What is followed
            compares maps of zero mean and unit variance, as equation 6 does with median and mean
            deviation: that is 2 - 2 r for a correlation r, where the least-squares residual,
            1 - r^2, would be as content with a map turned inside out.
        ratio: a pixel is right whose depth is off by a smaller factor; 1.25 gives delta_1.

    Raises:
        ValueError: for a ratio that is not above 1 and finite; in use, for a prediction or targets
            of another shape, targets that are infinite or no floating-point numbers, or a
            prediction with NaN that is measured or to be a target.
    """

    aligned: bool = True
    ratio: float = 1.25

    def __post_init__(self) -> None:
        if not 1 < self.ratio < math.inf:
            raise ValueError(f"the ratio of depths must be above 1, got {self.ratio}")

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        """Mean squared difference of two maps, as they are: the student keeps the scale."""
        ours, theirs = _map(student), _map(teacher).detach()
        check_alike(ours, theirs)
        return F.mse_loss(ours, theirs)

    def supervised_loss(self, student: Any, targets: Tensor) -> Tensor:
        """Mean squared error, over known pixels and then over images."""
        return -self.log_likelihood(student, targets).mean()

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) minus the mean squared error over known pixels, of normalised maps if aligned."""
        found, wanted, known = _compared(prediction, targets)
        if self.aligned:
            found, wanted = standardised(found, known), standardised(wanted, known)
        return -known_mean((found - wanted).square(), known)

    def score(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) delta_1: share of known pixels that are right, after alignment if aligned.

        A pixel that alignment leaves without a positive depth is wrong.
        """
        found, wanted, known = _compared(self._fitted(prediction, targets), targets)
        right = (found < self.ratio * wanted) & (wanted < self.ratio * found)
        return known_mean(right.to(torch.float32), known)

    def errors(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) root mean squared error in the target's unit, after alignment if aligned."""
        found, wanted, known = _compared(self._fitted(prediction, targets), targets)
        return known_mean((found - wanted).square(), known).sqrt()

    def target(self, prediction: Any) -> Tensor:
        """(B, H, W) the map itself."""
        return without_nan(_map(prediction), "depth")

    def _fitted(self, prediction: Any, targets: Tensor) -> Tensor:
        found = without_nan(_map(prediction), "depth")
        return align_depth(found, targets) if self.aligned else found


def align_depth(prediction: Any, targets: Tensor) -> Tensor:
    """Maps times the scale and plus the shift that fit them best to their targets.

    Args:
        prediction: (B, H, W) or (B, 1, H, W).
        targets: (B, H, W); pixels that are NaN do not count.

    Returns:
        (B, H, W), differentiable in the prediction. A constant map becomes the target's mean.
    """
    found, wanted, known = _compared(prediction, targets)
    mean, goal = known_mean(found, known), known_mean(wanted, known)
    away = found - mean[:, None, None]
    spread = known_mean(away.square(), known)
    common = known_mean(away * (wanted - goal[:, None, None]), known)
    scale = common / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return scale[:, None, None] * away + goal[:, None, None]


def _map(prediction: Any) -> Tensor:
    """(B, H, W) of (B, H, W) or (B, 1, H, W), in float32 if in half precision."""
    if isinstance(prediction, Tensor) and prediction.ndim == 4 and prediction.shape[1] == 1:
        return widened(prediction[:, 0])
    if not isinstance(prediction, Tensor) or prediction.ndim != 3:
        found = tuple(prediction.shape) if isinstance(prediction, Tensor) else type(prediction)
        raise ValueError(f"a depth map has the shape (B, H, W) or (B, 1, H, W), got {found}")
    return widened(prediction)


def _compared(prediction: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted map, target without NaN, and where it is known: all (B, H, W)."""
    found = _map(prediction)
    wanted = checked_values(targets, found.shape, "depth targets", unknown=True)
    return found, wanted.nan_to_num(nan=0.0), ~wanted.isnan()
