"""Pictures as cells: samples by class, samples beside their targets, and a sample on its way."""

from __future__ import annotations

from collections.abc import Callable
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ablations.cells.results import Result
from ablations.cells.samples import Samples, record_scale, sampler_name
from ablations.cells.scores import judge
from ablations.machine.cell import Load
from ablations.machine.store import Artifact
from ablations.settings.setting import Setting, device
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import trajectory
from ppap.files.images import from_uint8, to_uint8

__all__ = ["Grid", "Panel", "Trajectory"]

Bytes = npt.NDArray[np.uint8]
GRID_COLUMNS = 8
GRID_ROWS = 10


@dataclass(frozen=True)
class Grid(Result):
    """Samples to look at: a row per class, the same seeds for every method."""

    samples: Samples

    def compute(self, load: Load) -> Artifact:
        classes = self.setup.load().classes
        drawn = load(self.samples)
        asked = self.samples.targets("class").numpy()
        present = np.unique(asked)
        held = len(present)
        rows = present[np.linspace(0, held - 1, min(GRID_ROWS, held)).round().astype(int)]
        of_class = [np.flatnonzero(asked == row) for row in rows]
        columns = min(GRID_COLUMNS, *map(len, of_class))
        places = np.stack([found[:columns] for found in of_class])
        grid = np.moveaxis(drawn.arrays["images"][places], 2, -1)
        about, sampler = self.about, sampler_name(self.samples.sampler)
        record = self.head("grid") | {
            **told(drawn),
            "sampler": sampler,
            "array": f"{about.sweep}/{about.method}/{about.predictor}/{sampler}",
            "labels": [classes[row] for row in rows],
        }
        squeezed = grid[..., 0] if grid.shape[-1] == 1 else grid
        return Artifact({"record": record}, {"grid": squeezed})


@dataclass(frozen=True)
class Panel(Result):
    """Target scenes and their maps, samples, and the maps that the judges see in the samples.

    Attributes:
        samples: one of each target is shown.
        columns: number of targets shown.
    """

    samples: Samples
    columns: int = 8

    def compute(self, load: Load) -> Artifact:
        setting, about = self.setup.load(), self.about
        assert setting.target_images is not None
        drawn = load(self.samples)
        apart = setting.order.samples_per_target
        images = torch.from_numpy(drawn.arrays["images"][::apart][: self.columns].copy())
        numbers = self.samples.target_numbers(self.samples.seeds)[::apart][: self.columns]
        targets = {name: setting.tasks[name].targets(numbers) for name in MAPS}
        seen = judged_maps(setting, from_uint8(images))
        rows = [
            as_pixels(setting.target_images(numbers)),
            *(paint(targets[name]) for name, (_, paint) in MAPS.items()),
            as_pixels(images),
            *(paint(seen[name]) for name, (_, paint) in MAPS.items()),
        ]
        titles = [title for title, _ in MAPS.values()]
        sampler = sampler_name(self.samples.sampler)
        record = self.head("grid") | {
            **told(drawn),
            "sampler": sampler,
            "array": f"{about.sweep}/{about.method}/{about.predictor}/{sampler}",
            "labels": [
                "target",
                *(f"its {title}" for title in titles),
                "sample",
                *(f"{title} seen" for title in titles),
            ],
        }
        return Artifact({"record": record}, {"grid": np.stack(rows)})


@dataclass(frozen=True)
class Trajectory(Result):
    """A guided sample from noise to image, and the maps that the judges see in it on the way.

    Attributes:
        samples: by experts; the first of them is drawn again, step by step.
        every: steps from one column to the next.
    """

    samples: Samples
    every: int = 3

    def seconds(self) -> float:
        return 5.0

    def compute(self, load: Load) -> Artifact:
        setting, seeds = self.setup.load(), self.samples.seeds[:1]
        assert setting.target_images is not None
        denoiser, guide = setting.denoiser().to(device()), self.samples.guide(load, seeds)
        steps = list(trajectory(denoiser, seeds, guide, self.samples.sampler))
        left, states = [step.timestep for step in steps], [step.x for step in steps]
        x_t, timesteps = torch.cat(states[: -1 : self.every]), torch.tensor(left[1 :: self.every])
        target = setting.target_images(self.samples.target_numbers(seeds))
        ends = torch.cat([states[-1].cpu(), from_uint8(target)])
        noisy = torch.cat([x_t.cpu(), ends]).clamp(-1, 1)
        predicted = torch.cat([predicted_image(denoiser, x_t, timesteps).cpu(), ends]).clamp(-1, 1)
        seen = judged_maps(setting, predicted)
        rows = [
            as_pixels(to_uint8(noisy)),
            as_pixels(to_uint8(predicted)),
            *(paint(seen[name]) for name, (_, paint) in MAPS.items()),
        ]
        experts = self.samples.guidance[0].model.experts
        assert experts is not None
        sampler = sampler_name(self.samples.sampler)
        record = self.head("strip") | {
            "sampler": sampler,
            "array": f"{self.about.sweep}/trajectory/{self.about.predictor}/{sampler}",
            "labels": [
                "noisy image",
                "predicted image",
                *(f"its {title}" for title, _ in MAPS.values()),
            ],
            "columns": [*(f"t = {t}" for t in timesteps.tolist()), "sample", "target"],
            "experts": [*experts.blank(load).ranges.expert_of(timesteps).tolist(), None, None],
        }
        return Artifact({"record": record}, {"grid": np.stack(rows)})


def told(drawn: Artifact) -> dict[str, float | None]:
    """The scale of samples, and the score there if they were chosen by it."""
    scale = {"scale": record_scale(drawn.meta["scales"])}
    return scale | ({"score": drawn.meta["score"]} if "score" in drawn.meta else {})


def judged_maps(setting: Setting, images: Tensor) -> dict[str, Tensor]:
    """The maps (N, H, W) that the independent judges see in (N, C, H, W) images in [-1, 1]."""
    tasks = {name: setting.tasks[name] for name in MAPS}
    return {name: task.task.target(judge(task, images)) for name, task in tasks.items()}


def predicted_image(denoiser: Denoiser, x_t: Tensor, timesteps: Tensor) -> Tensor:
    """The images (N, C, H, W) that a denoiser predicts from noisy ones at (N,) timesteps."""
    with torch.no_grad():
        epsilon = denoiser(x_t, timesteps.to(x_t.device)).epsilon
    signal = denoiser.schedule.signal(timesteps).to(x_t)[:, None, None, None]
    return (x_t - (1 - signal).sqrt() * epsilon) / signal.sqrt()


def as_pixels(images: Tensor) -> Bytes:
    """(N, H, W, 3) bytes of (N, 3, H, W) bytes."""
    return images.movedim(1, -1).numpy()


def depth_pixels(depth: Tensor) -> Bytes:
    """(N, H, W, 3) greys of (N, H, W) inverse depth, from each map's farthest to its nearest."""
    low, high = depth.amin((1, 2), keepdim=True), depth.amax((1, 2), keepdim=True)
    unit = (depth - low) / (high - low).clamp(min=1e-6)
    return to_uint8(2 * unit - 1)[..., None].expand(*depth.shape, 3).numpy()


def label_pixels(labels: Tensor) -> Bytes:
    """(N, H, W, 3) colours: label 0 dark grey, the others around the circle of hues."""
    hues = [hsv_to_rgb(k / 10, 0.75 if k % 2 else 0.45, 1.0) for k in range(10)]
    palette = np.array([(0.2, 0.2, 0.2), *hues])
    return (255 * palette[labels.numpy()]).astype(np.uint8)


MAPS: dict[str, tuple[str, Callable[[Tensor], Bytes]]] = {
    "depth": ("depth", depth_pixels),
    "segmentation": ("labels", label_pixels),
}
"""Tasks whose targets are maps: what these are called, and how they are painted."""
