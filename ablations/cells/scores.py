"""How good samples are, by the setting's independent evaluators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ablations.cells.samples import Samples
from ablations.cells.synthesis import in_batches_that_fit
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import GuidedTask
from ppap.diffusion.denoiser import module_device
from ppap.evaluation.features import Features, extract
from ppap.evaluation.metrics import image_quality
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.images import from_uint8

__all__ = ["DIVERSITY", "FEATURES", "Score", "diversity", "judge"]

FEATURES, DIVERSITY = "features", "diversity"
"""Names of arrays beside the figures of every image."""
JUDGED_AT_ONCE = 250


@dataclass(frozen=True)
class Score(Cell):
    """Figures of samples: of every image in arrays, of all together and means in the facts."""

    samples: Samples

    def seconds(self) -> float:
        return 0.6 + 0.006 * self.samples.count

    def compute(self, load: Load) -> Artifact:
        setting = self.samples.setup.load()
        drawn = load(self.samples)
        images = from_uint8(torch.from_numpy(drawn.arrays["images"].copy()))
        seen = extract(setting.extractor(), images)
        arrays = {}
        for name, task in setting.tasks.items():
            predicted, targets = judge(task, images, seen), self.samples.targets_of(name, drawn)
            for metric in task.metrics:
                arrays[metric] = task.figures(metric, predicted, targets)
        if setting.order.paired:
            arrays[DIVERSITY] = diversity(seen.features, setting.reference())
        facts = {
            "scales": drawn.meta["scales"],
            "count": len(images),
            "extractor": seen.extractor,
            **{name: float(values.mean()) for name, values in arrays.items()},
            **vars(image_quality(seen, setting.reference())),
        }
        return Artifact(facts, arrays | {FEATURES: seen.features.numpy()})


def judge(task: GuidedTask, images: Tensor, seen: Features | None = None) -> Tensor:
    """What a task's independent network predicts from (N, C, H, W) images in [-1, 1].

    Args:
        task: of the setting.
        images: that are judged.
        seen: what the feature extractor sees in them, whose logits are the prediction where a
            task has no judge of its own.
    """
    if task.judge is None:
        if seen is None:
            raise ValueError("a task without a judge of its own needs the extractor's features")
        return seen.logits
    network = task.judge()

    def predict(batch: int) -> Tensor:
        parts = [network(part.to(module_device(network))) for part in images.split(batch)]
        return torch.cat([torch.as_tensor(part).cpu() for part in parts])

    with torch.no_grad():
        return in_batches_that_fit(predict, JUDGED_AT_ONCE)


def diversity(features: Tensor, reference: ReferenceStatistics) -> npt.NDArray[np.float32]:
    """(N // 2,) distance between the two samples of each target.

    Relative to the mean distance between features of two test images; 0 for equal samples, about
    1 where chance decides everything.
    """
    first, second = features[: len(features) // 2 * 2].unflatten(0, (-1, 2)).unbind(1)
    real = reference.matrix()
    typical = float((real[1:] - real[:-1]).norm(dim=1).mean())
    spread: npt.NDArray[np.float32] = ((first - second).norm(dim=1) / typical).numpy()
    return spread
