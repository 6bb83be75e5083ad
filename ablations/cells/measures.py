"""Measurements as cells: accuracy and gradients on noise, throughput, memory."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ablations.cells.stages import (
    DENOISE_SECONDS,
    PER_MILLE,
    Experts,
    Guided,
    Model,
    Setup,
    device,
    train_seconds,
)
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ppap.compute.allocator import return_freed_memory
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.experts.adapters import ppap_adapter
from ppap.experts.bank import ExpertBank
from ppap.experts.transfer import transfer
from ppap.fast.sampling import synthesize
from ppap.files.images import from_uint8
from ppap.predictors.predictor import Predictor

__all__ = [
    "NOISE_LEVELS",
    "Footprint",
    "GradientQuality",
    "GuidanceSpeed",
    "NoiseAccuracy",
    "SynthesisSpeed",
    "TransferSpeed",
]

NOISE_LEVELS = tuple(range(20, 1000, 40))
GRADIENT_LEVELS = tuple(range(50, 1000, 100))
REPEATS = 3
TIMED_STEPS = 8


def noisy_test_images(
    setup: Setup, count: int, timesteps: tuple[int, ...]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """For each timestep (its number, x_t, (N,) timesteps, (N,) labels); one noise for all."""
    setting = setup.load()
    images, labels = (part[:count] for part in setting.labelled("test"))
    schedule = setting.denoiser().schedule
    x_0 = from_uint8(images)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    for timestep in timesteps:
        t = torch.full((len(x_0),), timestep * len(schedule) // PER_MILLE)
        yield timestep, schedule.add_noise(x_0, t, noise).to(device()), t, labels


@dataclass(frozen=True)
class NoiseAccuracy(Cell):
    """A model's own accuracy on noisy images of the test set, by timestep."""

    setup: Setup
    model: Model
    count: int
    timesteps: tuple[int, ...] = NOISE_LEVELS

    def label(self) -> str:
        return f"accuracy on noise {self.model.name}"

    def inputs(self) -> Iterator[Cell]:
        yield from self.model.inputs()

    def seconds(self) -> float:
        return 0.3 + len(self.timesteps) * self.count * self.model.image_seconds() / 2

    def compute(self, load: Load) -> Artifact:
        predict = self.model.predict(self.setup, load)
        accuracy = []
        for _, x_t, t, labels in noisy_test_images(self.setup, self.count, self.timesteps):
            with torch.no_grad():
                parts = zip(x_t.split(500), t.split(500), strict=True)
                logits = torch.cat([predict(x, at) for x, at in parts])
            accuracy.append(float((logits.argmax(1).cpu() == labels).float().mean()))
        return Artifact({"accuracy": accuracy})


@dataclass(frozen=True)
class GradientQuality(Cell):
    """Cosine between the guidance gradients of a model and of a long-trained one.

    Taken per noisy test image towards its own label, averaged over images and timesteps.
    """

    setup: Setup
    model: Model
    reference: Model
    count: int
    timesteps: tuple[int, ...] = GRADIENT_LEVELS

    def label(self) -> str:
        return f"gradients {self.model.name}"

    def inputs(self) -> Iterator[Cell]:
        yield from self.model.inputs()
        yield from self.reference.inputs()

    def seconds(self) -> float:
        return 0.3 + 2 * len(self.timesteps) * self.count * self.model.image_seconds()

    def compute(self, load: Load) -> Artifact:
        models = (self.model, self.reference)
        labels = self.setup.load().labelled("test")[1][: self.count]
        guides = [model.guide(self.setup, load, labels, 1.0) for model in models]
        cosines = []
        for _, x_t, t, _ in noisy_test_images(self.setup, self.count, self.timesteps):
            ours, theirs = (guide(State(x_t, t)).flatten(1) for guide in guides)
            cosines.append(torch.cosine_similarity(ours, theirs).cpu().numpy())
        per_image = np.stack(cosines).mean(0)
        return Artifact({"cosine": float(per_image.mean())}, {"cosines": per_image})


@dataclass(frozen=True)
class GuidanceSpeed(Guided):
    """Throughput and memory of guided sampling of one batch, with the machine to itself."""

    count: int

    ALONE: ClassVar[bool] = True

    def label(self) -> str:
        return f"speed of guidance {self.model.name if self.model else 'unguided'}"

    def seconds(self) -> float:
        return 2.0 + REPEATS * self.count * self.image_seconds() / 1.5

    def compute(self, load: Load) -> Artifact:
        self.draw(load, range(4))  # warm-up: weights, threads, allocator
        with _Stopwatch() as watch:
            for repeat in range(REPEATS):
                self.draw(load, range(repeat * self.count, (repeat + 1) * self.count), self.count)
                watch.lap(self.count)
        return Artifact({"metrics": watch.metrics("images_per_second"), "batch": self.count})


@dataclass(frozen=True)
class SynthesisSpeed(Cell):
    """Throughput of drawing without guidance, with the machine to itself."""

    setup: Setup
    sampler: DDIM
    count: int

    ALONE: ClassVar[bool] = True

    def seconds(self) -> float:
        return 2.0 + REPEATS * self.count * self.sampler.steps * DENOISE_SECONDS / 1.5

    def compute(self, load: Load) -> Artifact:
        denoiser = self.setup.load().denoiser().to(device())
        synthesize(denoiser, 4, self.sampler)
        with _Stopwatch() as watch:
            for repeat in range(REPEATS):
                synthesize(denoiser, self.count, self.sampler, repeat * self.count)
                watch.lap(self.count)
        return Artifact({"metrics": watch.metrics("synthesis_per_second"), "batch": self.count})


@dataclass(frozen=True)
class TransferSpeed(Cell):
    """Throughput and memory of training experts, with the machine to itself."""

    experts: Experts

    ALONE: ClassVar[bool] = True

    def inputs(self) -> Iterator[Cell]:
        yield from self.experts.inputs()

    def label(self) -> str:
        return f"speed of training {self.experts.label()}"

    def seconds(self) -> float:
        return 2.0 + REPEATS * TIMED_STEPS * train_seconds(self.experts.predictor)

    def compute(self, load: Load) -> Artifact:
        setting = self.experts.setup.load()
        images, labels = self.experts.training_set(load)
        kept = slice(0, 10 * self.experts.training.batch)
        images, labels = images[kept], None if labels is None else labels[kept]
        schedule = setting.denoiser().schedule
        training = replace(self.experts.training, steps=TIMED_STEPS)
        bank = self.experts.blank(load)
        ranges = ExpertBank(
            bank.predictor, 1, self.experts.adapter, normalised=self.experts.normalised
        )
        transfer(
            ranges, schedule, images, self.experts.objective(labels), replace(training, steps=2)
        )
        with _Stopwatch() as watch:
            for _ in range(REPEATS):
                transfer(ranges, schedule, images, self.experts.objective(labels), training)
                watch.lap(TIMED_STEPS * training.batch)
        return Artifact({"metrics": watch.metrics("transfer_per_second"), "batch": training.batch})


Form = Literal["copies", "adapters", "merged"]


@dataclass(frozen=True)
class Footprint(Cell):
    """What N experts of a published architecture weigh; the weights are random.

    Attributes:
        architecture: a timm name.
        form: one full network per expert, as the released code holds them; one frozen network
            and an adapter per expert; or that with one expert merged into the network.
    """

    architecture: str
    form: Form
    experts: int
    rank: int = 16
    alpha: float = 8.0
    size: int = 224

    ALONE: ClassVar[bool] = True

    def label(self) -> str:
        return f"memory of {self.experts} experts of {self.architecture} as {self.form}"

    def seconds(self) -> float:
        return 2.0 + 0.3 * self.experts * (self.form == "copies")

    def predictor(self) -> Predictor:
        """The architecture at its published width."""
        import timm

        options = {"img_size": self.size} if "deit" in self.architecture else {}
        torch.manual_seed(0)
        network = timm.create_model(self.architecture, **options)
        return Predictor(network, (0.5,) * 3, (0.5,) * 3, (self.size, self.size))

    def compute(self, load: Load) -> Artifact:
        predictor = self.predictor().eval()
        bank = ExpertBank(predictor, self.experts, ppap_adapter(self.rank, self.alpha))
        share = bank.trainable_share
        modules: list[nn.Module]
        if self.form == "copies":
            del bank
            modules = [copy.deepcopy(predictor) for _ in range(self.experts)]
            run = modules[0]
        else:
            modules = [bank]
            if self.form == "merged":
                bank.merge(0)
            number = torch.zeros(2, dtype=torch.int64)
            run = _Bound(bank.eval(), number) if self.form == "adapters" else bank.predictor
        gc.collect()
        _forget_peak()
        images = torch.zeros(2, 3, self.size, self.size, requires_grad=True)
        torch.autograd.grad(run(images).sum(), images)
        peak = _peak_mib()
        held = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        if self.form == "adapters":
            held += bank.effective(0).values()
        elif self.form == "merged":
            held += bank.overwritten.values()
        metrics = {
            "parameters": sum(p.numel() for module in modules for p in module.parameters()),
            "memory_mib": _bytes_alive(held) / 2**20,
            "disk_mib": sum(_bytes_on_disk(module) for module in modules) / 2**20,
            "peak_memory_mib": peak,
            "trainable_share": 1.0 if self.form == "copies" else share,
        }
        return Artifact({"metrics": metrics})


class _Bound(nn.Module):
    """A bank at fixed timesteps."""

    def __init__(self, bank: ExpertBank, timesteps: Tensor) -> None:
        super().__init__()
        self.bank = bank
        self.timesteps = timesteps

    def forward(self, images: Tensor) -> Any:
        return self.bank(images, self.timesteps)


class _Stopwatch:
    """Rates of repeated work, and the peak memory meanwhile."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def __enter__(self) -> Self:
        gc.collect()
        _forget_peak()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.peak = _peak_mib()

    def lap(self, count: int) -> None:
        """``count`` images were finished since the last lap."""
        now = time.perf_counter()
        self.rates.append(count / (now - self.began))
        self.began = now

    def metrics(self, rate: str) -> dict[str, float]:
        """Median rate under a name, and the peak memory."""
        return {rate: float(np.median(self.rates)), "peak_memory_mib": self.peak}


def _bytes_alive(tensors: Iterable[Tensor]) -> int:
    """Of the tensors' storages, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _bytes_on_disk(module: nn.Module) -> int:
    """Of a module's state as a safetensors file."""
    return len(save({k: v.contiguous() for k, v in module.state_dict().items()}))


def _forget_peak() -> None:
    """Start the kernel's record of this process's peak resident memory afresh (Linux)."""
    return_freed_memory()
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
