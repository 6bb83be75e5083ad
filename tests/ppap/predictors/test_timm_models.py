"""Checkpoints of timm load strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from ppap.files.checkpoints import CheckpointError, save_weights
from ppap.predictors.public import load_predictor


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
