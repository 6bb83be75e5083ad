"""Public predictors by name: what they are, that experts of each train and guide."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.layers import (
    DEEPLAB_LORA_LAYERS,
)
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.files.checkpoints import CheckpointError
from ppap.guidance.guides import naive_guide
from ppap.predictors.predictor import Predictor
from ppap.predictors.public import load_predictor
from ppap.predictors.wrappers import MixedPrecision
from ppap.tasks.classes import ClassTask
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask
from tests.ppap.networks import tiny_denoiser
from tests.ppap.predictors.saved_models import (
    MODELS,
    SIDE,
    Hostile,
    in_range,
    pixels,
    saved,
    torchvision_file,
)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("hostile", "damaged or holds more than weights"),
        ("cut", "damaged or holds more than weights"),
        ("absent", "no checkpoint"),
        ("other", r"does not fit ResNet: missing .*unexpected"),
    ],
)
def test_wrong_files_are_refused_in_one_line(damage: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3)}, path)
    if damage == "hostile":
        path.write_bytes(pickle.dumps(Hostile(tmp_path / "run"), protocol=2))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "absent":
        path.unlink()
    for library in ("timm", "torchvision"):
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_predictor(f"{library}/resnet18", path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("resnet18", "timm/NAME .*torchvision/NAME.*transformers/HUB_ID"),
        ("hub/resnet18", "timm/NAME .*torchvision/NAME.*transformers/HUB_ID"),
        ("transformers/", "timm/NAME .*torchvision/NAME.*transformers/HUB_ID"),
        ("timm/resnet51", r"resnet50, .*timm\.list_models"),
        ("timm/resnet18.nosuchtag", r"Invalid pretrained tag.*timm\.list_pretrained"),
        ("torchvision/resnet51", r"resnet50, .*torchvision\.models\.list_models"),
        ("torchvision/maskrcnn_resnet50_fpn", "no classifier or segmenter .*fcn_resnet50"),
        ("torchvision/resnet50:V3", "choose from IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"),
        ("torchvision/vgg16:IMAGENET1K_FEATURES", "choose from IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_unknown_names_say_what_can_be_typed(name: str, listed: str) -> None:
    with pytest.raises(ValueError, match=listed) as caught:
        load_predictor(name)
    assert "\n" not in str(caught.value)


def test_options_are_not_for_transformers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out num_classes"):
        load_predictor(f"transformers/{tmp_path}", num_classes=3)


def banked(model: str, folder: Path, **options: Any) -> ExpertBank:
    saved(model, folder)
    predictor = load_predictor(f"transformers/{folder}", **options)
    lora = Lora(2, 2.0, layers=MODELS[model][2])
    return ExpertBank(predictor, 2, Adapter((Biases(), Norms(), lora)))


def torchvision_bank(folder: Path) -> ExpertBank:
    name, path = "deeplabv3_resnet50", folder / "deeplab.pth"
    torchvision_file(name, path, weights_backbone=None, num_classes=4, aux_loss=True)
    predictor = load_predictor(f"torchvision/{name}", path, size=(SIDE, SIDE), num_classes=4)
    lora = Lora(2, 2.0, layers=DEEPLAB_LORA_LAYERS)
    return ExpertBank(predictor, 2, Adapter((Biases(), Norms(), lora)))


@pytest.mark.parametrize("model", [*MODELS, "torchvision"])
def test_experts_of_every_kind_train_and_guide(model: str, tmp_path: Path) -> None:
    if model == "torchvision":
        bank, task = torchvision_bank(tmp_path), SegmentationTask()
    else:
        bank, task = banked(model, tmp_path), MODELS[model][1]
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    training = Training(steps=2, batch=2, learning_rate=1e-3)
    assert bank.task == task  # which its loader knew
    losses = transfer(bank, linear_schedule(), pixels(SIDE, 4), training=training)
    assert all(loss > 0 for loss in losses)
    moved = [
        key
        for key, value in bank.state_dict().items()
        if key.endswith("lora_B") and not torch.equal(value, before[key])
    ]
    assert len(moved) == sum(key.endswith("lora_B") for key in before)  # not one is unused
    x = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        targets = task.target(bank.predictor(in_range(pixels(SIDE, 3))))
    guide = bank.guide(targets, 1.0, task)
    timesteps = torch.tensor([3, 990, 10])
    gradient = guide(State(x, timesteps))
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    one_by_one = [
        guide.rows(slice(i, i + 1))(State(x[i : i + 1], timesteps[i : i + 1])) for i in range(3)
    ]
    torch.testing.assert_close(gradient, torch.cat(one_by_one), rtol=1e-3, atol=1e-4)
    bank.save(tmp_path / "bank")
    again = ExpertBank.load(tmp_path / "bank", bank.predictor)
    torch.testing.assert_close(again.guide(targets, 1.0, task)(State(x, timesteps)), gradient)


@pytest.mark.parametrize("model", ["vit", "segformer", "clip"])
def test_the_fast_path_draws_the_same_images(model: str, tmp_path: Path) -> None:
    bank, task = banked(model, tmp_path), MODELS[model][1]
    with torch.no_grad():
        targets = task.target(bank.predictor(in_range(pixels(SIDE))))
    guide = bank.guide(targets, 1.0, task)
    denoiser = tiny_denoiser()
    fast = FastPath(denoiser, 2, compile=False)
    traced = sample(denoiser, [1, 2], guide, DDIM(3), fast=fast)
    plain = sample(denoiser, [1, 2], guide, DDIM(3), fast=False)
    torch.testing.assert_close(traced, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_takes_experts_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    single = banked("clip", tmp_path)
    half = banked("clip", tmp_path, dtype=dtype)
    assert isinstance(half.predictor.network, MixedPrecision)
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    x = in_range(pixels(SIDE))
    with torch.no_grad():
        targets = single.predictor(in_range(pixels(SIDE)).flip(0))
        found, expected = half.predictor(x), single.predictor(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    timesteps = torch.tensor([3, 990])
    training = Training(steps=2, batch=2, learning_rate=1e-3)
    for bank in (single, half):
        objective = Distillation(SimilarityTask())
        transfer(bank, linear_schedule(), pixels(SIDE, 4), objective, training)
    gradients = [
        bank.guide(targets, 1.0, SimilarityTask())(State(x, timesteps)) for bank in (single, half)
    ]
    assert nn.functional.cosine_similarity(*(part.flatten(1) for part in gradients)).min() > 0.99


def brightness(images: Tensor) -> Tensor:
    """(B, 2) logits of dark and bright."""
    light = images.mean(dim=(1, 2, 3))
    return torch.stack([-light, light], dim=1)


@pytest.mark.parametrize("fast", [False, True])
def test_any_function_guides(fast: bool) -> None:
    predictor = Predictor(brightness)
    assert predictor.name == "brightness"
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(predictor(x), brightness(x))
    guide = naive_guide(predictor, ClassTask(), torch.tensor([0, 1]), 4000.0)
    light = x.mean(dim=(1, 2, 3))
    slope = 2 * torch.sigmoid(2 * torch.stack([light[0], -light[1]])) * torch.tensor([-1, 1]) / 192
    expected = 4000 * slope[:, None, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(guide(State(x, torch.tensor([1, 2]))), expected)
    denoiser = tiny_denoiser()
    path = FastPath(denoiser, 2, compile=False) if fast else False
    dark, bright = sample(denoiser, [1, 2], guide, DDIM(5), fast=path).mean(dim=(1, 2, 3))
    assert dark < -0.2 < 0.2 < bright


def test_a_function_has_nothing_for_experts_to_adapt() -> None:
    with pytest.raises(ValueError, match="brightness has no weights") as caught:
        ExpertBank(Predictor(brightness), 2)
    assert "\n" not in str(caught.value)
