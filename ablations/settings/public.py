"""Public models at published size: ``cifar10``, ``imagenet256``, ``glide`` and ``deepfloyd``.

Weights and reference statistics are read from ``$PPAP_MODELS`` (``.ppap/models``) under their
public names, labelled images from ``$PPAP_DATA``. Predictors that are not in that folder are
fetched from their hub. A rehearsal is the same code on a folder of seeded weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ablations.errors import UserError
from ppap.denoisers.public import CLASSIFIERS, DENOISERS, load_denoiser, load_noisy_classifier
from ppap.diffusion.cascade import NoisedImages, Stage, upsample
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.evaluation.features import FeatureExtractor, Features, extract
from ppap.evaluation.inception import INCEPTION_FILE, InceptionExtractor, load_openai_reference
from ppap.evaluation.reference import ReferenceStatistics
from ppap.experts.adapters import ATTENTION_LORA_LAYERS, PPAP_LORA_LAYERS
from ppap.files.images import Images, from_uint8
from ppap.predictors.predictor import Predictor
from ppap.predictors.public import load_predictor

__all__ = ["PUBLIC", "ImageFolder", "Mirrored", "Models", "Public", "Reduced", "digest_of"]

ROOT = Path(__file__).resolve().parents[2]
Split = Literal["train", "test"]
REFERENCE_URL = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz"
)
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Reduced:
    """How a rehearsal departs from what was published; empty for the real thing.

    Attributes:
        denoiser: flags in place of published ones, like the next two.
        upsampler: of a cascade.
        classifier: of noise-aware classifiers.
        predictors: options of ``load_predictor``, by public name.
        classes: how many there are.
    """

    denoiser: Mapping[str, Any] = field(default_factory=dict)
    upsampler: Mapping[str, Any] = field(default_factory=dict)
    classifier: Mapping[str, Any] = field(default_factory=dict)
    predictors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classes: int | None = None


@dataclass(frozen=True)
class Models:
    """A folder of public files.

    Attributes:
        folder: where weights and statistics lie.
        data: where labelled images lie.
        reduced: what is smaller than published.
    """

    folder: Path
    data: Path
    reduced: Reduced = Reduced()

    @classmethod
    def found(cls) -> Models:
        """The folders that the environment names."""
        folder = Path(os.environ.get("PPAP_MODELS") or ROOT / ".ppap" / "models")
        return cls(folder, Path(os.environ.get("PPAP_DATA") or ROOT / ".ppap" / "data"))

    def path(self, name: str, url: str) -> Path:
        """A file or folder by its public name.

        Raises:
            UserError: if it is not there.
        """
        path = self.folder / name
        if not path.exists():
            raise UserError(f"{self.folder} holds no {name}", f"fetch {url}, or set PPAP_MODELS")
        return path

    def local(self, name: str) -> Path | None:
        """A predictor's weights, if they were put here: ``timm/resnet50.tv2_in1k.safetensors``."""
        for ending in (".safetensors", ".pth", ".bin", ""):
            path = self.folder / f"{name.replace(':', '.')}{ending}"
            if path.exists():
                return path
        return None

    def network(self, name: str) -> Path | None:
        """The file of a diffusion model or noisy classifier; None where its hub has it.

        Raises:
            UserError: if it is not here, and no hub has it.
        """
        known = {**DENOISERS, **CLASSIFIERS}
        if name not in known:
            return self.local(name)
        return self.path(Path(known[name].file).name, known[name].url)

    def predictor(self, name: str) -> Predictor:
        """A public predictor, from here or its hub."""
        return load_predictor(name, self.local(name), **self.reduced.predictors.get(name, {}))


@dataclass(frozen=True)
class Public:
    """What a public setting is made of.

    Attributes:
        denoiser: public name of the unconditional model, or of a cascade's first stage.
        predictors: public names of the off-the-shelf predictors, by their short ones.
        judge: public name of the independent classifier that tells accuracy.
        data: of the labelled images.
        reference: public name of the reference batch; None takes statistics of the data.
        upsampler: public name of a cascade's second stage.
        noisy: public names of noise-aware classifiers, by the method they stand for.
        batch: images per network call.
        lora_layers: regular expression for the layers of the predictors that LoRA adapts.
    """

    denoiser: str
    predictors: Mapping[str, str]
    judge: str
    data: Literal["cifar10", "imagenet"]
    reference: str | None = None
    upsampler: str | None = None
    noisy: Mapping[str, str] = field(default_factory=dict)
    batch: int = 128
    lora_layers: str = PPAP_LORA_LAYERS

    def classes(self, models: Models) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        if self.data == "cifar10":
            return CIFAR_CLASSES[: models.reduced.classes]
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])[: models.reduced.classes]

    def files(self, models: Models) -> list[Path]:
        """What a result depends on and the folder holds.

        Raises:
            UserError: if one is missing that no hub gives.
        """
        names = [self.denoiser, *filter(None, [self.upsampler]), *self.noisy.values()]
        found = [models.network(name) for name in names]
        if self.reference:
            found.append(models.path(self.reference, REFERENCE_URL))
        others = [*self.predictors.values(), self.judge, INCEPTION_FILE]
        return [path for path in (*found, *map(models.local, others)) if path]

    def load_denoiser(self, models: Models) -> Denoiser:
        """The model that is guided."""
        return _denoiser(models, self.denoiser, models.reduced.denoiser)

    def load_upsampler(self, models: Models) -> Callable[[Tensor, Sequence[int]], Tensor] | None:
        """(images of the first stage (N, 3, h, w), a seed each) -> images of the second."""
        if self.upsampler is None:
            return None
        stage = lru_cache(partial(self._second_stage, models))
        return lambda images, seeds: upsample(stage(), images, seeds)

    def _second_stage(self, models: Models) -> Stage:
        assert self.upsampler is not None
        denoiser = _denoiser(models, self.upsampler, models.reduced.upsampler)
        if self.upsampler in DENOISERS:  # GLIDE's, with the timesteps it was published with
            return Stage(denoiser, DDIM("fast27"), batch=self.batch)
        from ppap.denoisers.diffusers_models import load_schedule

        source = models.network(self.upsampler) or self.upsampler
        size = denoiser.shape[1], denoiser.shape[2]
        noised = NoisedImages(size, load_schedule(source, "image_noising_scheduler"))
        return Stage(denoiser, DDIM(25), condition=noised, batch=self.batch)

    def load_noisy(self, models: Models, method: str) -> nn.Module:
        """A noise-aware classifier (x_t, t) -> logits."""
        name = self.noisy[method]
        path = models.network(name)
        return load_noisy_classifier(name, path, dtype(), **models.reduced.classifier)

    def load_extractor(self, models: Models, device: torch.device) -> InceptionExtractor:
        """Inception of 2015, for FID and its kin."""
        return InceptionExtractor(models.local(INCEPTION_FILE), device)

    def load_reference(self, models: Models, extractor: InceptionExtractor) -> ReferenceStatistics:
        """Statistics of real images, computed once per extractor and kept beside them."""
        kept = models.folder / f"{self.reference or self.data}.{extractor.name}.safetensors"
        if not kept.is_file():
            if self.reference:
                path = models.path(self.reference, REFERENCE_URL)
                found = load_openai_reference(path, extractor)
            else:
                images, _ = self.labelled(models, None, "train")
                found = statistics_of(extractor, images)
            scratch = kept.with_suffix(f".{os.getpid()}.part")
            found.save(scratch)
            scratch.replace(kept)
        return ReferenceStatistics.load(kept)

    def labelled(self, models: Models, size: int | None, split: Split) -> tuple[Images, Tensor]:
        """Images (N, 3, size, size) uint8, read as they are wanted, and labels (N,).

        Raises:
            UserError: if they are not there.
        """
        if self.data == "cifar10":
            return _cifar(models.data, split)
        folder = ImageFolder.of(models.data / "imagenet" / {"test": "val"}.get(split, split), size)
        return folder, folder.labels


PUBLIC: Mapping[str, Public] = {
    "cifar10": Public(
        denoiser="google/ddpm-cifar10-32",
        predictors={"vit": "transformers/nateraw/vit-base-patch16-224-cifar10"},
        judge="transformers/aaraki/vit-base-patch16-224-in21k-finetuned-cifar10",
        data="cifar10",
        lora_layers=ATTENTION_LORA_LAYERS,
    ),
    "imagenet256": Public(
        denoiser="adm-imagenet256",
        predictors={
            "resnet50": "timm/resnet50.tv2_in1k",
            "deit": "timm/deit_small_patch16_224.fb_in1k",
        },
        judge="timm/convnext_small.fb_in1k",
        data="imagenet",
        reference="VIRTUAL_imagenet256_labeled.npz",
        noisy={"ADM-G": "adm-classifier256"},
        batch=16,
    ),
    "glide": Public(
        denoiser="glide-base",
        predictors={"resnet50": "timm/resnet50.tv2_in1k"},
        judge="timm/convnext_small.fb_in1k",
        data="imagenet",
        reference="VIRTUAL_imagenet256_labeled.npz",
        upsampler="glide-upsampler",
        batch=16,
    ),
    "deepfloyd": Public(
        denoiser="DeepFloyd/IF-I-XL-v1.0",
        predictors={"resnet50": "timm/resnet50.tv2_in1k"},
        judge="timm/convnext_small.fb_in1k",
        data="imagenet",
        reference="VIRTUAL_imagenet256_labeled.npz",
        upsampler="DeepFloyd/IF-II-L-v1.0",
        batch=8,
    ),
}
"""By the names of their settings."""


class Mirrored:
    """Images, and after them their mirror images."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return 2 * len(self.images)

    @property
    def shape(self) -> torch.Size:
        """(2 N, C, H, W)."""
        return torch.Size((len(self), *self.images.shape[1:]))

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """(B, C, H, W) uint8."""
        places = places_of(chosen, len(self))
        found = self.images[places % len(self.images)]
        mirrored = (places >= len(self.images))[:, None, None, None]
        return torch.where(mirrored, found.flip(-1), found)


class ImageFolder:
    """Labelled images in a folder per class, decoded and cropped when they are indexed.

    Centre-cropped to squares and resized as openai/guided-diffusion's ``center_crop_arr``
    does: halved by box filters while that leaves more than twice the size, then bicubic.

    Args:
        files: of all images.
        labels: (N,) int64.
        size: of the square images, in pixels.
    """

    def __init__(self, files: Sequence[Path], labels: Tensor, size: int) -> None:
        self.files = files
        self.labels = labels
        self.size = size

    @classmethod
    def of(cls, folder: Path, size: int | None) -> ImageFolder:
        """The folder's classes in alphabetical order, which for ImageNet is that of the labels.

        Raises:
            UserError: if there is no such folder, or nothing in it.
        """
        classes = sorted(path for path in folder.glob("*") if path.is_dir())
        files = [
            (path, label) for label, one in enumerate(classes) for path in sorted(one.iterdir())
        ]
        if not files:
            raise UserError(
                f"no labelled images at {folder}",
                "put ImageNet's folders of classes there, or set PPAP_DATA to what holds imagenet/",
            )
        assert size is not None
        return cls([path for path, _ in files], torch.tensor([label for _, label in files]), size)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """(B, 3, size, size) uint8."""
        places = places_of(chosen, len(self)).tolist()
        if not places:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        return torch.stack([self._read(self.files[place]) for place in places])

    def _read(self, path: Path) -> Tensor:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        while min(image.size) >= 2 * self.size:
            half = (image.width // 2, image.height // 2)
            image = image.resize(half, Image.Resampling.BOX)
        scale = self.size / min(image.size)
        wide, high = (round(side * scale) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        cropped = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(cropped)).movedim(-1, 0)


def places_of(chosen: slice | Tensor, count: int) -> Tensor:
    """(B,) int64 of a slice of ``count`` places, or of places as they are."""
    return torch.arange(*chosen.indices(count)) if isinstance(chosen, slice) else chosen


def statistics_of(
    extractor: FeatureExtractor, images: Images, batch: int = 250
) -> ReferenceStatistics:
    """Statistics of uint8 images, a batch at a time."""
    parts = [
        extract(extractor, from_uint8(images[start : start + batch]), batch)
        for start in range(0, len(images), batch)
    ]
    return ReferenceStatistics.from_features(Features.cat(parts))


def dtype() -> torch.dtype:
    """Half precision where it is faster."""
    return torch.float16 if torch.cuda.is_available() else torch.float32


def digest_of(paths: Sequence[Path]) -> str:
    """Of files and of all files in folders; remembered by size and time of change."""
    known = _remembered()
    whole = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                about = file.stat()
                key = f"{file}:{about.st_size}:{about.st_mtime_ns}"
                if key not in known:
                    with file.open("rb") as opened:
                        known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
                whole.update(f"{file.name}:{known[key]}".encode())
    _remember(known)
    return whole.hexdigest()[:16]


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppap/digests.json"


def _remembered() -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(_memory().read_text())
    except (OSError, ValueError):
        return {}
    return found


def _remember(known: Mapping[str, str]) -> None:
    path = _memory()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.part")
    scratch.write_text(json.dumps(known))
    scratch.replace(path)


def _denoiser(models: Models, name: str, flags: Mapping[str, Any]) -> Denoiser:
    denoiser = load_denoiser(name, models.network(name), dtype(), **flags)
    if "DeepFloyd" not in name:
        return denoiser
    from ppap.denoisers.diffusers_models import encode_if_captions

    first = PUBLIC["deepfloyd"].denoiser
    return denoiser.with_conditions(
        prompt_embeds=encode_if_captions(models.network(first) or first)
    )


def _cifar(folder: Path, split: Split) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as published for Python: images (N, 3, 32, 32) uint8 and labels (N,)."""
    base = folder / "cifar-10-batches-py"
    names = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    images, labels = [], []
    for name in names:
        try:
            with (base / name).open("rb") as file:
                held = _Plain(file, encoding="bytes").load()
            images.append(torch.from_numpy(held[b"data"].reshape(-1, 3, 32, 32)))
            labels += held[b"labels"]
        except (OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(
                f"no CIFAR-10 at {base} ({error})", f"unpack {CIFAR_URL} there, or set PPAP_DATA"
            ) from error
    return torch.cat(images), torch.tensor(labels)


class _Plain(pickle.Unpickler):
    """Reads pickled NumPy arrays and nothing that could run."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)
