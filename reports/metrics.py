"""What can be measured of a row: how it is called, written and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LEGACY", "METRICS", "Metric"]

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A measured figure.

    Attributes:
        header: as in a table's head.
        spec: format of a value.
        better: which way is better; None where it depends on what one wants.
        share: whether it lies between 0 and 1.
        meaning: a line for the legend.
        once: whether it is measured a single time, so that the best may be so by chance.
    """

    header: str
    spec: str
    better: Better | None
    share: bool = False
    meaning: str = ""
    once: bool = False

    @property
    def title(self) -> str:
        """The header with an arrow in the better direction."""
        arrow = {"higher": " ↑", "lower": " ↓"}.get(self.better or "", "")
        return self.header + arrow


METRICS = {
    "accuracy": Metric(
        "accuracy", ".3f", "higher", True,
        "share of samples an independent classifier gives the class they were guided to",
    ),
    "fid": Metric("FID", "#.4g", "lower", False, "Fréchet distance to the test images"),
    "fid_infinity": Metric(
        "FID∞", "#.4g", "lower", False,
        "FID extrapolated to infinitely many samples, all seeds together (Chong & Forsyth)",
    ),
    "sfid": Metric("sFID", "#.4g", "lower", False, "FID of spatial features (Nash et al.)"),
    "kid": Metric("KID", "z.4f", "lower", False, "kernel distance to the test images"),
    "inception_score": Metric("IS", ".2f", "higher", False, "Inception score"),
    "precision": Metric("precision", ".3f", "higher", True, "improved precision"),
    "recall": Metric("recall", ".3f", "higher", True, "improved recall"),
    "noisy_accuracy": Metric(
        "accuracy on noise", ".3f", "higher", True,
        "the model's own accuracy on noisy test images, mean over all noise levels",
    ),
    "gradient_cosine": Metric(
        "gradient cosine", "z.3f", "higher", False,
        "cosine of the guidance gradient with that of a long-trained expert",
    ),
    "learning_rate": Metric("learning rate", ".0e", None, False, "at the start of the training"),
    "validation_loss": Metric(
        "validation loss", ".4g", "lower", False,
        "the training's own loss on noisy images that it has not seen, mean over noise levels",
    ),
    "validation_score": Metric(
        "validation score", "z.3f", "higher", False,
        "agreement with the targets on these images, by the task's own score",
    ),
    "depth_rmse": Metric(
        "depth error", ".3f", "lower", False,
        "root mean squared error of inverse depth, per ten metres, of what an independent "
        "estimator sees in the samples against the target, after alignment in scale and shift",
    ),
    "depth_delta_1": Metric(
        "δ₁", ".3f", "higher", True, "share of pixels whose depth is within 25 % of the target's"
    ),
    "mean_iou": Metric(
        "mIoU", ".3f", "higher", True,
        "mean intersection over union of what an independent segmenter sees and the target",
    ),
    "pixel_error": Metric(
        "pixel error", ".3f", "lower", True, "share of pixels with another label than the target's"
    ),
    "diversity": Metric(
        "diversity", ".3f", "higher", False,
        "feature distance of two samples of one target; 1 is that of two test images",
    ),
    "trainable_share": Metric(
        "trained share", ".2%", None, False,
        "parameters trained per expert, as a share of the predictor's",
    ),
    "train_seconds": Metric(
        "training s", ".1f", "lower", False, "wall time of training all experts on one core",
        once=True,
    ),
    "preparation_seconds": Metric(
        "preparation s", ".0f", "lower", False,
        "wall time before the first image: of drawing what experts are trained on, and of their "
        "training", once=True,
    ),
    "cheaper_after": Metric(
        "reference cheaper after", ",.0f", None, False,
        "images from which on the reference row takes less time in all, its preparation "
        "included; 0 if from the first, n/a if never",
    ),
    "preparation_passes": Metric(
        "preparation passes", ",.0f", "lower", False,
        "images that went through the denoiser, forward, before the first image",
    ),
    "cheaper_after_passes": Metric(
        "reference cheaper after, by passes", ",.0f", None, False,
        "the same, counted in passes of the denoiser, forward and backward, instead of seconds",
    ),
    "cheaper_after_at_scale": Metric(
        "the same at the paper's scale, predicted", ",.0f", None, False,
        "the same, had what needs synthetic images drawn the paper's 500 000, in 25 steps",
    ),
    "belief": Metric(
        "belief", "z.3f", None, False,
        "what the guide itself sees in its samples, by the figure that its scale is chosen by",
    ),
    "gap": Metric(
        "gap", "z.3f", "lower", False,
        "by how much the guide finds its samples better than an independent judge does: what "
        "tells an adversarial image from a likely one",
    ),
    "seconds_per_image": Metric(
        "s/image", ".3g", "lower", False, "guided sampling of one image", once=True
    ),
    "relative_seconds": Metric(
        "times unguided", ".2f", "lower", False,
        "time of a guided image, in times of one that DDIM-25 draws without guidance, the two "
        "timed in turn", once=True,
    ),
    "denoiser_forward": Metric(
        "denoiser →", ".1f", "lower", False, "forward passes of the denoiser for one image"
    ),
    "denoiser_backward": Metric(
        "denoiser ←", ".1f", "lower", False, "backward passes of the denoiser for one image"
    ),
    "predictor_forward": Metric(
        "predictor →", ".1f", "lower", False, "forward passes of predictors for one image"
    ),
    "predictor_backward": Metric(
        "predictor ←", ".1f", "lower", False, "backward passes of predictors for one image"
    ),
    "images_per_second": Metric(
        "images/s", ",.2f", "higher", False, "guided sampling, DDIM-25", once=True
    ),
    "synthesis_per_second": Metric(
        "synthesis/s", ",.2f", "higher", False, "images drawn without guidance per second",
        once=True,
    ),
    "transfer_per_second": Metric(
        "training/s", ",.0f", "higher", False, "images trained on per second", once=True
    ),
    "peak_memory_mib": Metric(
        "peak MiB", ",.0f", "lower", False, "peak resident memory of the process", once=True
    ),
    "memory_mib": Metric("tensors MiB", ",.1f", "lower", False, "weights alive in memory"),
    "disk_mib": Metric("disk MiB", ",.1f", "lower", False, "weights as safetensors"),
    "parameters": Metric("parameters", ",.0f", "lower", False, "of all networks and adapters"),
}  # fmt: skip
LEGACY = (
    "accuracy", "fid", "inception_score", "precision", "recall", "images_per_second",
    "peak_memory_mib",
)  # fmt: skip
"""Columns of a table whose records say nothing of columns."""
