"""A predictor keeps its own preprocessing, and timm's models load from published formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ppap.checkpoints import CheckpointError, save_weights
from ppap.predictors import Predictor, load_predictor


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
