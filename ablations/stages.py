"""The stages of the experiment as cells: synthesis, experts, samples, scores, measurements."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ablations.cells import Cell, Load
from ablations.settings import Setting, load_setting
from ablations.store import Artifact
from ppap.adapters import Adapter
from ppap.experts import ExpertBank
from ppap.features import extract
from ppap.guidance import Guide, LikelihoodGuide, naive_guide
from ppap.images import from_uint8, to_uint8
from ppap.metrics import correct, image_quality
from ppap.samplers import DDIM, DDPM, sample
from ppap.synthesis import synthesize
from ppap.tasks import ClassTask
from ppap.transfer import Distillation, Supervision, Training, transfer

__all__ = [
    "Experts",
    "Model",
    "NoiseAccuracy",
    "Samples",
    "Score",
    "Selection",
    "Setup",
    "Speed",
    "Synthesis",
]

# Measured on one core of the reference machine: seconds per image and step, per training step
# of 64 images. They steer the estimate of the time left and nothing else.
DENOISE_SECONDS = 0.0019
GUIDE_SECONDS = {"resnet": 0.0007, "vit": 0.0015}
TRAIN_SECONDS = {"resnet": 0.06, "vit": 0.11}
NOISE_LEVELS = (20, 60, 100, 150, 199, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900, 980)
SPEED_REPEATS = 3
SELECTION_MARGIN = 0.02


@dataclass(frozen=True)
class Setup:
    """Which setting, with which weights."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, setting: Setting) -> Setup:
        return cls(setting.name, setting.fingerprint)

    def load(self) -> Setting:
        return load_setting(self.name)


@dataclass(frozen=True)
class Synthesis(Cell):
    """A shard of images drawn without guidance: the data of data-free transfer."""

    setup: Setup
    sampler: DDIM
    first_seed: int
    count: int

    def seconds(self) -> float:
        return self.count * self.sampler.steps * DENOISE_SECONDS

    def compute(self, load: Load) -> Artifact:
        denoiser = self.setup.load().denoiser()
        images = synthesize(denoiser, self.count, self.sampler, self.first_seed)
        return Artifact({}, {"images": images.numpy()})


@dataclass(frozen=True)
class Experts(Cell):
    """A trained expert bank.

    Attributes:
        ranges: number of experts.
        images: the shards it is trained on without labels, or ``"labelled"`` for the
            setting's training split with its labels.
    """

    setup: Setup
    predictor: str
    ranges: int
    adapter: Adapter
    training: Training
    images: tuple[Synthesis, ...] | Literal["labelled"]

    def label(self) -> str:
        kind = "labelled" if self.images == "labelled" else "data-free"
        return f"{self.ranges} {kind} {self.predictor} expert{'s' * (self.ranges > 1)}"

    def seconds(self) -> float:
        return self.training.steps * self.training.batch / 64 * TRAIN_SECONDS[self.predictor]

    def blank(self) -> ExpertBank:
        """The bank before training."""
        predictor = self.setup.load().predictor(self.predictor)
        return ExpertBank(predictor, self.ranges, self.adapter, seed=self.training.seed)

    def bank(self, artifact: Artifact) -> ExpertBank:
        """The trained bank."""
        bank = self.blank()
        state = {key: torch.from_numpy(value.copy()) for key, value in artifact.arrays.items()}
        bank.experts.load_state_dict(state)
        return bank.eval()

    def compute(self, load: Load) -> Artifact:
        setting = self.setup.load()
        bank = self.blank()
        if self.images == "labelled":
            images, labels = setting.labelled("train")
            objective: Supervision | Distillation = Supervision(ClassTask(), labels)
        else:
            shards = [load(shard).arrays["images"] for shard in self.images]
            images = torch.from_numpy(np.concatenate(shards))
            objective = Distillation(ClassTask())
        schedule = setting.denoiser().schedule
        losses = transfer(bank, images, schedule, objective, self.training)
        state = {key: value.numpy() for key, value in bank.experts.state_dict().items()}
        return Artifact({"losses": losses, "trainable_share": bank.trainable_share}, state)


@dataclass(frozen=True)
class Model:
    """What guides: an off-the-shelf predictor as it is, or with experts."""

    predictor: str
    experts: Experts | None = None

    def guide(self, setting: Setting, load: Load, targets: Tensor, scale: float) -> LikelihoodGuide:
        if self.experts is None:
            return naive_guide(setting.predictor(self.predictor), ClassTask(), targets, scale)
        return self.experts.bank(load(self.experts)).guide(targets, scale)

    def predict(self, setting: Setting, load: Load) -> Any:
        """(x_t, timesteps) -> logits."""
        return self.guide(setting, load, torch.empty(0), 1.0).model


@dataclass(frozen=True)
class _Guided(Cell):
    """What cells that sample share: image i is drawn from seed first_seed + i."""

    setup: Setup
    sampler: DDIM | DDPM
    model: Model | None
    scale: float | Selection

    def inputs(self) -> Any:
        if self.model is not None and self.model.experts is not None:
            yield self.model.experts
        if isinstance(self.scale, Selection):
            yield self.scale

    def chosen_scale(self, load: Load) -> float:
        """The guidance scale, read from the selection if it was selected."""
        if isinstance(self.scale, Selection):
            return float(load(self.scale).meta["scale"])
        return self.scale

    def image_seconds(self) -> float:
        guide = 0.0 if self.model is None else GUIDE_SECONDS[self.model.predictor]
        return self.sampler.steps * (DENOISE_SECONDS + guide)

    def draw(self, load: Load, seeds: range, batch: int = 128) -> Tensor:
        """Images in [-1, 1], of the classes 0, 1, ..., 9, 0, ... in turn."""
        setting = self.setup.load()
        guide: Guide | None = None
        if self.model is not None:
            targets = torch.arange(len(seeds)) % len(setting.classes)
            guide = self.model.guide(setting, load, targets, self.chosen_scale(load))
        return sample(setting.denoiser(), self.sampler, seeds, guide, batch)


@dataclass(frozen=True)
class Samples(_Guided):
    """Generated images; image i is to show class i mod the number of classes."""

    first_seed: int
    count: int

    def label(self) -> str:
        return f"samples {self.model.predictor if self.model else 'unguided'}"

    def seconds(self) -> float:
        return self.count * self.image_seconds()

    def compute(self, load: Load) -> Artifact:
        seeds = range(self.first_seed, self.first_seed + self.count)
        images = to_uint8(self.draw(load, seeds)).numpy()
        return Artifact({"scale": self.chosen_scale(load)}, {"images": images})


@dataclass(frozen=True)
class Score(Cell):
    """What the independent evaluator says of samples."""

    samples: Samples

    def seconds(self) -> float:
        return 2.0 + 0.002 * self.samples.count

    def compute(self, load: Load) -> Artifact:
        setting = self.samples.setup.load()
        drawn = load(self.samples)
        images = torch.from_numpy(drawn.arrays["images"].copy())
        targets = torch.arange(len(images)) % len(setting.classes)
        seen = extract(setting.extractor(), from_uint8(images))
        quality = image_quality(seen, setting.reference())
        hits = correct(seen.logits, targets)
        return Artifact(
            {
                "scale": drawn.meta["scale"],
                "count": len(images),
                "extractor": seen.extractor,
                "accuracy": float(hits.mean()),
                **vars(quality),
            },
            {"hits": hits.astype(np.uint8), "features": seen.features.numpy()},
        )


@dataclass(frozen=True)
class Selection(Cell):
    """Chooses a row's guidance scale on seeds that no row is measured on.

    The rule: of the scales whose accuracy is within two points of the best, the one of the
    lowest FID.
    """

    candidates: tuple[Score, ...]

    def compute(self, load: Load) -> Artifact:
        scores = [load(score).meta for score in self.candidates]
        best = max(score["accuracy"] for score in scores)
        near = [score for score in scores if score["accuracy"] >= best - SELECTION_MARGIN]
        return Artifact({"scale": min(near, key=lambda score: score["fid"])["scale"]})


@dataclass(frozen=True)
class NoiseAccuracy(Cell):
    """A model's own accuracy on noisy images of the test set, by timestep."""

    setup: Setup
    model: Model
    count: int
    timesteps: tuple[int, ...] = NOISE_LEVELS

    def label(self) -> str:
        return f"accuracy on noise {self.model.predictor}"

    def inputs(self) -> Any:
        if self.model.experts is not None:
            yield self.model.experts

    def seconds(self) -> float:
        return len(self.timesteps) * self.count * GUIDE_SECONDS[self.model.predictor] / 2

    def compute(self, load: Load) -> Artifact:
        setting = self.setup.load()
        images, labels = (part[: self.count] for part in setting.labelled("test"))
        schedule = setting.denoiser().schedule
        predict = self.model.predict(setting, load)
        generator = torch.Generator().manual_seed(0)
        x_0 = from_uint8(images)
        noise = torch.randn(x_0.shape, generator=generator)
        accuracy = []
        for timestep in self.timesteps:
            t = torch.full((len(x_0),), timestep)
            x_t = schedule.add_noise(x_0, t, noise)
            with torch.no_grad():
                parts = zip(x_t.split(500), t.split(500), strict=True)
                logits = torch.cat([predict(x, at) for x, at in parts])
            accuracy.append(float((logits.argmax(1) == labels).float().mean()))
        return Artifact({"accuracy": accuracy})


@dataclass(frozen=True)
class Speed(_Guided):
    """Throughput and memory of guided sampling of one batch, with the machine to itself."""

    count: int

    ALONE: ClassVar[bool] = True

    def label(self) -> str:
        return f"speed {self.model.predictor if self.model else 'unguided'}"

    def seconds(self) -> float:
        return 8.0 + SPEED_REPEATS * self.count * self.image_seconds() / 1.5

    def compute(self, load: Load) -> Artifact:
        self.draw(load, range(8))  # warm-up: weights, threads, allocator
        _forget_peak()
        rates = []
        for repeat in range(SPEED_REPEATS):
            began = time.perf_counter()
            self.draw(load, range(repeat * self.count, (repeat + 1) * self.count), self.count)
            rates.append(self.count / (time.perf_counter() - began))
        return Artifact(
            {
                "images_per_second": float(np.median(rates)),
                "peak_memory_mib": _peak_mib(),
                "batch": self.count,
                "threads": torch.get_num_threads(),
            }
        )


def _forget_peak() -> None:
    """Start the kernel's record of this process's peak resident memory afresh (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    """Peak resident memory of this process in MiB, libraries and weights included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
