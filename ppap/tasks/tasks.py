"""Tasks: what a prediction means, for transfer, for guidance and for measuring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from ppap_kernels import transfer_loss
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F

__all__ = [
    "IGNORED",
    "ClassTask",
    "DepthTask",
    "SegmentationTask",
    "SimilarityTask",
    "Task",
    "align_depth",
]

IGNORED = -1
"""The label of pixels that a segmentation target says nothing of."""


class Task(Protocol):
    """How a predictor's output is learned from, followed and judged."""

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        """Scalar: how far the student's prediction is from the teacher's."""
        ...

    def supervised_loss(self, student: Any, targets: Tensor) -> Tensor:
        """Scalar: how far the student's prediction is from the labels."""
        ...

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) log p(target | prediction)."""
        ...

    def score(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) float32: the task's per-image score, higher is better."""
        ...

    def errors(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) float32: how far off a prediction is, 0 for none."""
        ...

    def target(self, prediction: Any) -> Tensor:
        """(B, ...) the target that a prediction for other images makes."""
        ...


@dataclass(frozen=True)
class ClassTask:
    """Classification.

    Attributes:
        temperature: the teacher's logits are divided by it before the softmax; 0.25, the
            released code's value, sharpens them. The student's are used as they are.
    """

    temperature: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")

    def transfer_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student), batch mean in nats; both (B, K) logits."""
        if student.is_cuda:  # loss and gradient in one pass over the logits
            return transfer_loss(student, teacher, self.temperature)
        target = F.log_softmax(teacher.detach() / self.temperature, dim=1)
        return F.kl_div(
            F.log_softmax(student, dim=1), target, reduction="batchmean", log_target=True
        )

    def supervised_loss(self, student: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, batch mean in nats; (B, K) logits against (B,) class indices."""
        return F.cross_entropy(student, targets)

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) log-probability in nats of (B,) class indices under (B, K) logits."""
        return F.log_softmax(prediction, dim=1).gather(1, targets[:, None])[:, 0]

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) 1.0 where the most likely class is the target."""
        return (prediction.argmax(dim=1) == targets).to(torch.float32)

    def errors(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) 1.0 where the most likely class is not the target."""
        return 1 - self.score(prediction, targets)

    def target(self, prediction: Tensor) -> Tensor:
        """(B,) most likely classes under (B, K) logits."""
        return prediction.argmax(dim=1)


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
    """

    aligned: bool = True
    ratio: float = 1.25

    def __post_init__(self) -> None:
        if not self.ratio > 1:
            raise ValueError(f"the ratio of depths must be above 1, got {self.ratio}")

    def transfer_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference of two maps, as they are: the student keeps the scale."""
        return F.mse_loss(_map(student), _map(teacher).detach())

    def supervised_loss(self, student: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error, over known pixels and then over images."""
        return -self.log_likelihood(student, targets).mean()

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) minus the mean squared error over known pixels, of normalised maps if aligned."""
        found, wanted, known = _compared(prediction, targets)
        if self.aligned:
            found, wanted = _standardised(found, known), _standardised(wanted, known)
        return -_known_mean((found - wanted).square(), known)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) delta_1: share of known pixels that are right, after alignment if aligned.

        A pixel that alignment leaves without a positive depth is wrong.
        """
        found, wanted, known = _compared(self._fitted(prediction, targets), targets)
        right = (found < self.ratio * wanted) & (wanted < self.ratio * found)
        return _known_mean(right.to(torch.float32), known)

    def errors(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) root mean squared error in the target's unit, after alignment if aligned."""
        found, wanted, known = _compared(self._fitted(prediction, targets), targets)
        return _known_mean((found - wanted).square(), known).sqrt()

    def target(self, prediction: Tensor) -> Tensor:
        """(B, H, W) the map itself."""
        return _map(prediction)

    def _fitted(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return align_depth(prediction, targets) if self.aligned else _map(prediction)


@dataclass(frozen=True)
class SegmentationTask:
    """Segmentation: (B, K, H, W) logits against (B, H, W) labels, -1 where any label will do.

    Attributes:
        temperature: the teacher's logits are divided by it, as in :class:`ClassTask`.
    """

    temperature: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")

    def transfer_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student) in nats, mean over pixels and images."""
        target = F.log_softmax(teacher.detach() / self.temperature, dim=1)
        ours = F.log_softmax(student, dim=1)
        return F.kl_div(ours, target, reduction="none", log_target=True).sum(dim=1).mean()

    def supervised_loss(self, student: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, mean over labelled pixels and then over images."""
        return -self.log_likelihood(student, targets).mean()

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) log-probability of the labels in nats per labelled pixel."""
        labels, known = _labels(prediction, targets)
        picked = F.log_softmax(prediction, dim=1).gather(1, labels[:, None])[:, 0]
        return _known_mean(picked, known)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) mean intersection over union, of the labels that either map holds."""
        labels, known = _labels(prediction, targets)
        one_hot = F.one_hot(torch.stack([prediction.argmax(1), labels]), prediction.shape[1])
        ours, theirs = (one_hot * known[None, :, :, :, None]).bool()
        both = (ours & theirs).sum(dim=(1, 2))
        either = (ours | theirs).sum(dim=(1, 2))
        held = either > 0
        found: Tensor = (both / either.clamp(min=1)).sum(1) / held.sum(1).clamp(min=1)
        return found

    def errors(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) share of labelled pixels whose most likely label is another."""
        labels, known = _labels(prediction, targets)
        return _known_mean((prediction.argmax(1) != labels).to(torch.float32), known)

    def target(self, prediction: Tensor) -> Tensor:
        """(B, H, W) most likely labels."""
        return prediction.argmax(dim=1)


@dataclass(frozen=True)
class SimilarityTask:
    """Similarity to an embedding, of a caption or of an image: (B, D) against (B, D).

    Lengths do not count. What is followed is scale (cos - 1) for the cosine of the two: the logit
    that CLIP is trained with (Radford et al., arXiv 2103.00020), and up to a constant the
    log-density of a von Mises-Fisher distribution about the target. Near the target it is minus
    half the squared angle, times scale, which CLIP guidance is often given instead; that has no
    derivative at the target's opposite, where this one is smooth.

    Attributes:
        scale: the concentration; 100 is the inverse temperature at which CLIP was trained.
    """

    scale: float = 100.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"the scale of similarities must be positive, got {self.scale}")

    def transfer_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """scale (1 - cos), batch mean.

        But for a factor it is the divergence of two von Mises-Fisher distributions about the
        student's and the teacher's embeddings.
        """
        return self.supervised_loss(student, teacher.detach())

    def supervised_loss(self, student: Tensor, targets: Tensor) -> Tensor:
        """scale (1 - cos), batch mean."""
        return -self.log_likelihood(student, targets).mean()

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) scale (cos - 1): 0 at the target, -2 scale at its opposite."""
        return -self.scale / 2 * _chords(prediction, targets).square().sum(dim=1)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) cosines."""
        away: Tensor = _chords(prediction, targets).square().sum(dim=1)
        return 1 - away / 2

    def errors(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) angles in radians, from 0 to pi."""
        chords: Tensor = torch.linalg.vector_norm(_chords(prediction, targets), dim=1)
        return 2 * (chords / 2).clamp(max=1).asin()

    def target(self, prediction: Tensor) -> Tensor:
        """(B, D) embeddings of unit length."""
        return F.normalize(prediction, dim=1)


def align_depth(prediction: Tensor, targets: Tensor) -> Tensor:
    """Maps times the scale and plus the shift that fit them best to their targets.

    Args:
        prediction: (B, H, W) or (B, 1, H, W).
        targets: (B, H, W); pixels that are NaN do not count.

    Returns:
        (B, H, W), differentiable in the prediction. A constant map becomes the target's mean.
    """
    found, wanted, known = _compared(prediction, targets)
    mean, goal = _known_mean(found, known), _known_mean(wanted, known)
    away = found - mean[:, None, None]
    spread = _known_mean(away.square(), known)
    common = _known_mean(away * (wanted - goal[:, None, None]), known)
    scale = common / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return scale[:, None, None] * away + goal[:, None, None]


def _map(prediction: Tensor) -> Tensor:
    """(B, H, W) of (B, H, W) or (B, 1, H, W)."""
    if prediction.ndim == 4 and prediction.shape[1] == 1:
        return prediction[:, 0]
    if prediction.ndim != 3:
        raise ValueError(
            f"a depth map has the shape (B, H, W) or (B, 1, H, W), got {tuple(prediction.shape)}"
        )
    return prediction


def _compared(prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted map, target without NaN, and where it is known: all (B, H, W)."""
    found = _map(prediction)
    if found.shape != targets.shape:
        raise ValueError(
            f"depth of shape {tuple(found.shape)} cannot be compared with targets of shape "
            f"{tuple(targets.shape)}; resize the targets"
        )
    return found, targets.nan_to_num(nan=0.0), ~targets.isnan()


def _labels(prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Labels that can be looked up, and which of them count: both (B, H, W)."""
    batch, classes, *size = prediction.shape
    if targets.shape != (batch, *size):
        raise ValueError(
            f"logits of shape {tuple(prediction.shape)} cannot be compared with labels of shape "
            f"{tuple(targets.shape)}; resize the targets"
        )
    traced = get_proxy_mode() is not None  # values are not known then
    if not traced and targets.numel() and int(targets.max()) >= classes:
        raise ValueError(f"label {int(targets.max())} is beyond the {classes} classes")
    return targets.clamp(min=0), targets >= 0


def _chords(prediction: Tensor, targets: Tensor) -> Tensor:
    """(B, D) from each target to its prediction, both on the unit sphere."""
    if prediction.ndim != 2 or prediction.shape != targets.shape:
        raise ValueError(
            f"embeddings of shape {tuple(prediction.shape)} cannot be compared with targets of "
            f"shape {tuple(targets.shape)}; take one target (D,) per image from the same model"
        )
    return F.normalize(prediction, dim=1) - F.normalize(targets, dim=1)


def _known_mean(values: Tensor, known: Tensor) -> Tensor:
    """(B,) mean over the pixels that count; 0 where none does."""
    total = torch.where(known, values, 0).sum(dim=(1, 2))
    return total / known.sum(dim=(1, 2)).clamp(min=1)


def _standardised(maps: Tensor, known: Tensor) -> Tensor:
    """Maps of zero mean and unit variance over the pixels that count."""
    away = maps - _known_mean(maps, known)[:, None, None]
    variance = _known_mean(away.square(), known)
    return away * (variance[:, None, None] + torch.finfo(maps.dtype).eps).rsqrt()
