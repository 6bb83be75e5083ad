"""A predictor keeps its own preprocessing, and timm's models load from published formats."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

from ppap.adapters import DEEPLAB_LORA_LAYERS, Adapter, Lora
from ppap.checkpoints import CheckpointError, save_weights
from ppap.experts import ExpertBank
from ppap.predictors import Predictor, Taken, load_predictor
from ppap.tasks import SegmentationTask


def test_images_are_normalised_per_channel() -> None:
    predictor = Predictor(nn.Identity(), (0.5, 0.25), (0.5, 0.125))
    white = predictor(torch.ones(1, 2, 4, 4))
    assert white[0, :, 0, 0].tolist() == [1.0, 6.0]
    assert predictor(-torch.ones(1, 2, 4, 4))[0, :, 0, 0].tolist() == [-1.0, -2.0]


def test_resizing_is_differentiable_and_anti_aliased() -> None:
    predictor = Predictor(nn.Identity(), (0.5,), (0.5,), size=(4, 4))
    checkerboard = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    x = checkerboard.expand(1, 1, 16, 16).clone().requires_grad_()
    resized = predictor(x)
    assert resized.shape == (1, 1, 4, 4)
    assert resized.abs().max() < 0.1  # aliasing would keep the board's full contrast
    (gradient,) = torch.autograd.grad(resized.sum(), x)
    assert (gradient > 0).all()


def test_a_timm_checkpoint_loads_strictly_with_its_own_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet18", num_classes=7).eval()
    save_weights(source.state_dict(), tmp_path / "resnet18.safetensors")
    predictor = load_predictor("timm/resnet18", tmp_path / "resnet18.safetensors", num_classes=7)
    assert predictor.size == (224, 224)
    assert predictor.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        normalised = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        torch.testing.assert_close(predictor(2 * x - 1), source(normalised), rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_predictor("timm/resnet18", tmp_path / "resnet18.safetensors", num_classes=8)


@pytest.mark.parametrize("name", ["resnet18", "timm/nosuchnet", "hub/resnet18"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown predictor"):
        load_predictor(name)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="std"):
        Predictor(nn.Identity(), (0.5,), (0.0,))
    with pytest.raises(ValueError, match="takes"):
        Predictor(nn.Identity(), (0.5,), (0.5,))(torch.zeros(1, 3, 4, 4))


def test_one_of_several_outputs_is_taken() -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(predicted_depth=x.mean(1), loss=None)

    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(Taken(Both(), "predicted_depth")(x), x.mean(1))


def test_deeplab_is_a_predictor_whose_encoder_and_decoder_learn() -> None:
    torch.manual_seed(0)
    network = Taken(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5), "out")
    predictor = Predictor(network.eval(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    bank = ExpertBank(predictor, 2, Adapter((Lora(2, 1.0, DEEPLAB_LORA_LAYERS),)))
    adapted = list(bank.expert(0).tensors())
    assert "network.backbone.layer4.2.conv2.lora_A" in adapted
    assert "network.classifier.0.convs.1.0.lora_A" in adapted
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    guide = bank.guide(labels, 1.0, SegmentationTask())
    gradient = guide(torch.randn(1, 3, 40, 40), torch.tensor([10]))
    assert gradient.shape == (1, 3, 40, 40)
    assert gradient.abs().sum() > 0
