"""Public models at published size: ``cifar10``, ``imagenet256``, ``glide`` and ``deepfloyd``.

A rehearsal is the same code on a folder of seeded weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ablations.errors import UserError
from ablations.settings.budget import Budget
from ablations.settings.fashion import SELECTION
from ablations.settings.images import ImageFolder, load_cifar
from ablations.settings.models import Models, digest_of
from ablations.settings.setting import GuidedTask, Setting, Split, device
from ppap.denoisers.catalogue import DENOISERS
from ppap.denoisers.public import load_denoiser, load_noisy_classifier
from ppap.diffusion.cascade import NoisedImages, Stage, upsample
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.evaluation.features import FeatureExtractor, Features, extract
from ppap.evaluation.inception import INCEPTION_FILE, InceptionExtractor, load_openai_reference
from ppap.evaluation.metrics import correct
from ppap.evaluation.reference import ReferenceStatistics
from ppap.experts.adapters.layers import ATTENTION_LORA_LAYERS, PPAP_LORA_LAYERS
from ppap.experts.adapters.lora import Lora
from ppap.files.images import Images, from_uint8
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask

__all__ = ["BUDGETS", "PUBLIC", "Public", "load"]

BUDGETS = {
    "paper": Budget(
        seeds=1,
        samples=10_000,
        synthetic=500_000,
        steps=300_000,
        batch=256,
        scales=(7.5,),
        selection_samples=500,
        ancestral_samples=10_000,
        resamples=20,
    ),
    "rehearsal": Budget(
        seeds=1,
        samples=10,
        synthetic=12,
        steps=6,
        batch=4,
        scales=(7.5,),
        selection_samples=4,
        ancestral_samples=5,
        ancestral_steps=10,
        noisy_images=4,
        timed_images=4,
        resamples=3,
        expert_counts=(1, 5),
        units=1,
        curve_samples=10,
        curve_scales=(7.5,),
        doublings=1,
    ),
}
REFERENCE_URL = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz"
)
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


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
            return load_cifar(models.data, split)
        images = models.data / "imagenet" / {"test": "val"}.get(split, split)
        folder = ImageFolder.of(images, size, len(self.classes(models)))
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


def load(name: str, models: Models | None = None) -> Setting:
    """A public setting.

    Args:
        name: of :data:`PUBLIC`.
        models: where its files are; ``$PPAP_MODELS`` by default.

    Raises:
        UserError: if a file is missing that no hub has.
    """
    public, models = PUBLIC[name], models or Models.found()
    denoiser = lru_cache(lambda: public.load_denoiser(models))
    extractor = lru_cache(lambda: public.load_extractor(models, device()))
    classes = public.classes(models)

    def untrained(width: int) -> Predictor:
        raise UserError(f"{name} has no predictors of other widths", "choose --setting fashion")

    guided = GuidedTask(
        task=ClassTask(),
        transferred=ClassTask,
        predictor=next(iter(public.predictors)),
        labelled=lru_cache(lambda split: public.labelled(models, denoiser().shape[1], split)),
        targets=lambda numbers: torch.tensor(numbers) % len(classes),
        metrics={"accuracy": correct},
        selection=SELECTION,
        judge=lru_cache(lambda: models.predictor(public.judge).to(device())),
    )
    return Setting(
        name=name,
        classes=classes,
        predictors=tuple(public.predictors),
        denoiser=denoiser,
        predictor=lambda short: models.predictor(public.predictors[short]),
        untrained=untrained,
        extractor=extractor,
        reference=lru_cache(lambda: public.load_reference(models, extractor())),
        fingerprint=digest_of(public.files(models)),
        tasks={"class": guided},
        noisy={method: partial(public.load_noisy, models, method) for method in public.noisy},
        upsample=public.load_upsampler(models),
        published=(Lora(16, 8.0, public.lora_layers), 1e-4),
        mirrored=True,
        batch=public.batch,
        budget="paper",
    )


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


def _denoiser(models: Models, name: str, flags: Mapping[str, Any]) -> Denoiser:
    denoiser = load_denoiser(name, models.network(name), dtype(), **flags)
    if "DeepFloyd" not in name:
        return denoiser
    from ppap.denoisers.diffusers_models import encode_if_captions

    first = PUBLIC["deepfloyd"].denoiser
    return denoiser.with_conditions(
        prompt_embeds=encode_if_captions(models.network(first) or first)
    )
