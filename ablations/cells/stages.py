"""The stages of the experiment as cells: synthesis, experts, samples, scores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.public import Mirrored
from ablations.settings.setting import Setting, device, load_setting
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.streams import derived_generator
from ppap.evaluation.features import Features, extract
from ppap.evaluation.metrics import correct, image_quality
from ppap.experts.adapters import Adapter
from ppap.experts.bank import ExpertBank, NoiseRanges
from ppap.experts.transfer import Distillation, Supervision, Training, transfer
from ppap.fast.sampling import sample, synthesize
from ppap.files.images import Images, from_uint8, to_uint8
from ppap.guidance.guides import Guide, LikelihoodGuide, naive_guide
from ppap.predictors.predictor import Predictor
from ppap.tasks.tasks import ClassTask

__all__ = [
    "BalancedRanges",
    "Experts",
    "Guided",
    "Model",
    "Pretrained",
    "Samples",
    "Score",
    "Selection",
    "Setup",
    "Synthesis",
    "TrainingData",
]

# Measured on one core of the reference machine: seconds per image and step, per training step
# of 64 images. They steer the estimate of the time left and nothing else.
DENOISE_SECONDS = 0.0019
GUIDE_SECONDS = {"resnet": 0.0007, "vit": 0.0015, "depth": 0.0010, "segmentation": 0.0010}
TRAIN_SECONDS = {"resnet": 0.035, "vit": 0.075, "depth": 0.060, "segmentation": 0.060}
OTHER_GUIDE_SECONDS, OTHER_TRAIN_SECONDS = 0.1, 3.0
"""Of public predictors."""
REFERENCE_WIDTH = 16
SELECTION_MARGIN = 0.02
MOST_AT_ONCE, SHARD = 1000, 500
"""Samples that one cell draws, and those of a shard where there are more."""
MOST_IN_MEMORY = 4 * 2**30
PER_MILLE = 1000
"""Timesteps at which something is measured count as if the schedule had so many."""


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
class Pretrained(Cell):
    """An off-the-shelf predictor of another width, trained here on clean labelled images."""

    setup: Setup
    width: int
    steps: int
    batch: int = 128
    learning_rate: float = 3e-3
    seed: int = 0

    def label(self) -> str:
        return f"clean predictor of width {self.width}"

    def seconds(self) -> float:
        return self.steps * self.batch / 64 * train_seconds(self)

    def blank(self) -> Predictor:
        torch.manual_seed(self.seed)
        return self.setup.load().untrained(self.width)

    def predictor(self, artifact: Artifact) -> Predictor:
        """The trained predictor."""
        made = self.blank()
        state = {key: torch.from_numpy(value.copy()) for key, value in artifact.arrays.items()}
        made.network.load_state_dict(state)
        return made.eval()

    def compute(self, load: Load) -> Artifact:
        images, labels = self.setup.load().labelled("train")
        predictor = self.blank().train()
        optimiser = torch.optim.AdamW(predictor.parameters(), self.learning_rate, weight_decay=0.05)
        anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        for step in range(self.steps):
            generator = derived_generator(self.seed, step)
            chosen = torch.randint(len(images), (self.batch,), generator=generator)
            loss = F.cross_entropy(predictor(from_uint8(images[chosen])), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            anneal.step()
        state = {key: value.numpy() for key, value in predictor.network.state_dict().items()}
        return Artifact({}, state)


def load_predictor(setup: Setup, source: str | Pretrained, load: Load) -> Predictor:
    """One of the setting's predictors by name, or one that was trained here."""
    if isinstance(source, Pretrained):
        return source.predictor(load(source))
    return setup.load().predictor(source)


def predictor_name(source: str | Pretrained) -> str:
    """As in the tables."""
    return f"resnet-{source.width}" if isinstance(source, Pretrained) else source


def relative_cost(source: str | Pretrained) -> float:
    """Cost of a predictor relative to the setting's of the same kind."""
    return (source.width / REFERENCE_WIDTH) ** 1.7 if isinstance(source, Pretrained) else 1.0


def kind_of(source: str | Pretrained) -> str:
    return "resnet" if isinstance(source, Pretrained) else source


def train_seconds(source: str | Pretrained) -> float:
    """Expected time of a training step of 64 images."""
    return TRAIN_SECONDS.get(kind_of(source), OTHER_TRAIN_SECONDS) * relative_cost(source)


@dataclass(frozen=True)
class Synthesis(Cell):
    """A shard of images drawn without guidance: the data of data-free transfer."""

    setup: Setup
    sampler: DDIM
    first_seed: int
    count: int

    def label(self) -> str:
        return f"{self.count} synthetic images"

    def seconds(self) -> float:
        return self.count * self.sampler.steps * DENOISE_SECONDS

    def compute(self, load: Load) -> Artifact:
        setting = self.setup.load()
        denoiser = setting.denoiser().to(device())
        images = in_memory(
            lambda batch: synthesize(denoiser, self.count, self.sampler, self.first_seed, batch),
            setting.batch,
        )
        return Artifact({}, {"images": images.cpu().numpy()})


@dataclass(frozen=True)
class TrainingData:
    """What experts are trained on.

    Attributes:
        shards: of synthetic images; none means the setting's labelled training split.
        limit: only the first so many synthetic images; None for all.
    """

    shards: tuple[Synthesis, ...] = ()
    limit: int | None = None

    def load(self, setting: Setting, load: Load) -> tuple[Images, Tensor | None]:
        """(N, C, H, W) uint8 images and, if labelled, (N,) labels."""
        images: Images
        labels: Tensor | None = None
        if self.shards:
            drawn = joined(load(shard).arrays["images"] for shard in self.shards)
            images = torch.from_numpy(drawn[: self.limit])
        else:
            images, labels = setting.labelled("train")
        if setting.mirrored:
            images, labels = Mirrored(images), None if labels is None else labels.repeat(2)
        return images, labels


def joined(parts: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Arrays of images as one; beyond :data:`MOST_IN_MEMORY` bytes in a file without a name."""
    held: list[npt.NDArray[np.uint8]] = []
    file: IO[bytes] | None = None
    count, shape = 0, ()
    with ExitStack() as stack:  # what is mapped outlives its file
        for part in parts:
            count, shape = count + len(part), part.shape[1:]
            held.append(part)
            if file is None and sum(one.nbytes for one in held) > MOST_IN_MEMORY:
                file = stack.enter_context(tempfile.TemporaryFile())
            if file is not None:
                for one in held:
                    file.write(np.ascontiguousarray(one).data)
                held = []
        if file is None:
            return np.concatenate(held)
        file.flush()
        return np.memmap(file, np.uint8, "r+", shape=(count, *shape))


@dataclass(frozen=True)
class BalancedRanges(Cell):
    """Noise ranges of equal transfer loss, as measured on a bank of one expert."""

    experts: Experts
    count: int
    images: int = 100
    timesteps: tuple[int, ...] = tuple(range(10, 1000, 20))

    def inputs(self) -> Iterator[Cell]:
        yield from self.experts.bank_inputs()
        yield from self.experts.data.shards

    def label(self) -> str:
        return "ranges of equal transfer loss"

    def seconds(self) -> float:
        return len(self.timesteps) * self.images * 0.0004

    def compute(self, load: Load) -> Artifact:
        bank = self.experts.bank(load)
        setting = self.experts.setup.load()
        schedule = setting.denoiser().schedule
        images, _ = self.experts.data.load(setting, load)
        x_0 = from_uint8(images[: self.images])
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        taught = bank.teacher_prediction(x_0.to(device()))
        losses = []
        for timestep in self.timesteps:
            t = torch.full((len(x_0),), timestep * len(schedule) // PER_MILLE)
            with torch.no_grad():
                prediction = bank(schedule.add_noise(x_0, t, noise).to(device()), t)
                losses.append(float(ClassTask().transfer_loss(prediction, taught)))
        places = np.arange(len(schedule)) * PER_MILLE / len(schedule)
        per_timestep = np.interp(places, self.timesteps, losses)
        ranges = NoiseRanges.balanced(torch.from_numpy(per_timestep), self.count)
        return Artifact({"boundaries": ranges.boundaries, "losses": losses})


@dataclass(frozen=True)
class Experts(Cell):
    """A trained expert bank.

    Attributes:
        predictor: of the setting, by name, or one trained here.
        ranges: the noise range of each expert, or how they are found.
        data: what it is trained on; its kind decides between transfer and supervision.
        temperature: of the teacher, in data-free transfer.
        normalised: whether the experts see normalised images, as the teacher does.
    """

    setup: Setup
    predictor: str | Pretrained
    ranges: NoiseRanges | BalancedRanges
    adapter: Adapter
    training: Training
    data: TrainingData
    temperature: float = 0.25
    normalised: bool = True

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from self.data.shards

    def bank_inputs(self) -> Iterator[Cell]:
        """The cells that :meth:`bank` reads."""
        yield self
        yield from super().inputs()

    def label(self) -> str:
        kind = "data-free" if self.data.shards else "labelled"
        count = self.ranges.count if isinstance(self.ranges, BalancedRanges) else len(self.ranges)
        name = predictor_name(self.predictor)
        return f"{count} {kind} {name} expert{'s' * (count > 1)}, seed {self.training.seed}"

    def seconds(self) -> float:
        step = train_seconds(self.predictor)
        return 1.0 + self.training.steps * self.training.batch / 64 * step

    def blank(self, load: Load) -> ExpertBank:
        """The bank before training."""
        predictor = load_predictor(self.setup, self.predictor, load).to(device())
        ranges = self.ranges
        if isinstance(ranges, BalancedRanges):
            ranges = NoiseRanges(tuple(load(ranges).meta["boundaries"]))
        seed, normalised = self.training.seed, self.normalised
        return ExpertBank(predictor, ranges, self.adapter, seed=seed, normalised=normalised)

    def bank(self, load: Load) -> ExpertBank:
        """The trained bank."""
        bank = self.blank(load)
        arrays = load(self).arrays
        state = {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}
        bank.experts.load_state_dict(state)
        return bank.eval()

    def training_set(self, load: Load) -> tuple[Images, Tensor | None]:
        """(N, C, H, W) uint8 images and, if labelled, (N, ...) targets."""
        return self.data.load(self.setup.load(), load)

    def objective(self, labels: Tensor | None) -> Supervision | Distillation:
        """Labels are followed where there are any, the teacher otherwise."""
        if labels is None:
            return Distillation(ClassTask(self.temperature))
        return Supervision(labels, ClassTask())

    def compute(self, load: Load) -> Artifact:
        on_gpu = device().type == "cuda"
        return self.train(load, Accelerator() if on_gpu else None)

    def train(self, load: Load, accelerator: Accelerator | None) -> Artifact:
        """Train the bank, on several processes and in mixed precision if accelerate says so."""
        bank = self.blank(load)
        images, labels = self.training_set(load)
        schedule = self.setup.load().denoiser().schedule
        losses = transfer(
            bank, schedule, images, self.objective(labels), self.training, accelerator=accelerator
        )
        state = {key: value.cpu().numpy() for key, value in bank.experts.state_dict().items()}
        facts = {
            "losses": losses,
            "trainable_share": bank.trainable_share,
            "boundaries": bank.ranges.boundaries,
        }
        return Artifact(facts, state)


@dataclass(frozen=True)
class Model:
    """What guides: an off-the-shelf predictor as it is, or with experts."""

    predictor: str | Pretrained
    experts: Experts | None = None

    def inputs(self) -> Iterator[Cell]:
        """The cells that it is made of."""
        if isinstance(self.predictor, Pretrained):
            yield self.predictor
        if self.experts is not None:
            yield from self.experts.bank_inputs()

    @property
    def name(self) -> str:
        """Of the predictor, as in the tables."""
        return predictor_name(self.predictor)

    def image_seconds(self) -> float:
        """Expected time of one gradient of one image."""
        seconds = GUIDE_SECONDS.get(kind_of(self.predictor), OTHER_GUIDE_SECONDS)
        return seconds * relative_cost(self.predictor)

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float) -> LikelihoodGuide:
        setting = setup.load()
        if self.predictor in setting.noisy:
            classifier = setting.noisy[str(self.predictor)]().to(device())
            return LikelihoodGuide(classifier, ClassTask(), targets, scale)
        if self.experts is None:
            predictor = load_predictor(setup, self.predictor, load).to(device())
            return naive_guide(predictor, ClassTask(), targets, scale)
        return self.experts.bank(load).guide(targets, scale)

    def predict(self, setup: Setup, load: Load) -> Any:
        """(x_t, timesteps) -> logits."""
        return self.guide(setup, load, torch.empty(0), 1.0).model


@dataclass(frozen=True)
class Guided(Cell):
    """What cells that sample share: image i is drawn from seed first_seed + i."""

    setup: Setup
    sampler: DDIM | DDPM
    model: Model | None
    scale: float | Selection

    def inputs(self) -> Iterator[Cell]:
        if self.model is not None:
            yield from self.model.inputs()
        if isinstance(self.scale, Selection):
            yield self.scale

    @property
    def place(self) -> int:
        """Of the first image, which decides its class."""
        return 0

    def chosen_scale(self, load: Load) -> float:
        """The guidance scale, read from the selection if it was selected."""
        if isinstance(self.scale, Selection):
            return float(load(self.scale).meta["scale"])
        return self.scale

    def image_seconds(self) -> float:
        guide = 0.0 if self.model is None else self.model.image_seconds()
        return self.sampler.steps * (DENOISE_SECONDS + guide)

    def draw(self, load: Load, seeds: range, batch: int | None = None) -> Tensor:
        """Images in [-1, 1], of the classes 0, 1, ..., 9, 0, ... in turn.

        Of a cascade, its first stage's.
        """
        setting = self.setup.load()
        guide: Guide | None = None
        if self.model is not None:
            targets = (self.place + torch.arange(len(seeds))) % len(setting.classes)
            guide = self.model.guide(self.setup, load, targets, self.chosen_scale(load))
        denoiser = setting.denoiser().to(device())
        return in_memory(
            lambda size: sample(denoiser, seeds, guide, self.sampler, batch=size),
            batch or setting.batch,
        )


@dataclass(frozen=True)
class Samples(Guided):
    """Generated images; image i is to show class i mod the number of classes.

    Many are drawn in shards, which may be drawn side by side and are kept if a run ends.
    """

    first_seed: int
    count: int

    def shards(self) -> tuple[SampleShard, ...]:
        """What they are joined from; empty for those that are drawn at once."""
        if self.count <= MOST_AT_ONCE:
            return ()
        about = self.setup, self.sampler, self.model, self.scale
        return tuple(
            SampleShard(*about, self.first_seed + start, min(SHARD, self.count - start), start)
            for start in range(0, self.count, SHARD)
        )

    def inputs(self) -> Iterator[Cell]:
        yield from self.shards() or super().inputs()

    def label(self) -> str:
        return f"samples {self.model.name if self.model else 'unguided'}"

    def seconds(self) -> float:
        return 1.0 if self.shards() else self.count * self.image_seconds()

    def compute(self, load: Load) -> Artifact:
        if shards := self.shards():
            parts = [load(shard) for shard in shards]
            images = np.concatenate([part.arrays["images"] for part in parts])
            return Artifact({"scale": parts[0].meta["scale"]}, {"images": images})
        seeds = range(self.first_seed, self.first_seed + self.count)
        drawn, upsample = self.draw(load, seeds), self.setup.load().upsample
        images = drawn if upsample is None else upsample(drawn, seeds)
        pixels = to_uint8(images).cpu().numpy()
        return Artifact({"scale": self.chosen_scale(load)}, {"images": pixels})


@dataclass(frozen=True)
class SampleShard(Samples):
    """Some of the images of a row, from its one of number ``offset`` on."""

    offset: int

    @property
    def place(self) -> int:
        return self.offset

    def shards(self) -> tuple[SampleShard, ...]:
        return ()


def in_memory(work: Callable[[int], Tensor], batch: int) -> Tensor:
    """The result of work in batches, in ever smaller ones while memory does not suffice."""
    while True:
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        torch.cuda.empty_cache()
        batch = (batch + 1) // 2


@dataclass(frozen=True)
class Score(Cell):
    """What the independent evaluator says of samples."""

    samples: Samples

    def seconds(self) -> float:
        return 0.6 + 0.006 * self.samples.count

    def compute(self, load: Load) -> Artifact:
        setting = self.samples.setup.load()
        drawn = load(self.samples)
        images = torch.from_numpy(drawn.arrays["images"].copy())
        targets = torch.arange(len(images)) % len(setting.classes)
        seen = extract(setting.extractor(), from_uint8(images))
        quality = image_quality(seen, setting.reference())
        hits = correct(judged_logits(setting, seen, images), targets)
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


def judged_logits(setting: Setting, seen: Features, images: Tensor) -> Tensor:
    """What accuracy is taken of: the judge's logits (N, K), or else the extractor's."""
    if setting.judge is None:
        return seen.logits
    judge = setting.judge()
    with torch.no_grad():
        parts = [judge(from_uint8(part).to(device())) for part in images.split(setting.batch)]
    return torch.cat([torch.as_tensor(part).cpu() for part in parts])


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
