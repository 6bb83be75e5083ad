"""A predictor keeps its own preprocessing, whatever its network gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

from ppap.diffusion.guide import State
from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.layers import DEEPLAB_LORA_LAYERS
from ppap.experts.adapters.lora import Lora
from ppap.experts.bank import ExpertBank
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.images import from_uint8
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import SelectOutput
from ppap.tasks.segmentation import SegmentationTask


def test_images_are_normalised_per_channel() -> None:
    predictor = Predictor(nn.Identity(), (0.5, 0.25), (0.5, 0.125))
    white = predictor(torch.ones(1, 2, 4, 4))
    assert white[0, :, 0, 0].tolist() == [1.0, 6.0]
    assert predictor(-torch.ones(1, 2, 4, 4))[0, :, 0, 0].tolist() == [-1.0, -2.0]


def test_by_default_images_stay_as_they_are() -> None:
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    torch.testing.assert_close(Predictor(nn.Identity())(images), images)


def test_resizing_is_differentiable_and_anti_aliased() -> None:
    predictor = Predictor(nn.Identity(), (0.5,), (0.5,), size=(4, 4))
    checkerboard = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    x = checkerboard.expand(1, 1, 16, 16).clone().requires_grad_()
    resized = predictor(x)
    assert resized.shape == (1, 1, 4, 4)
    assert resized.abs().max() < 0.1  # aliasing would keep the board's full contrast
    (gradient,) = torch.autograd.grad(resized.sum(), x)
    assert (gradient > 0).all()


def test_a_size_of_settings_is_that_of_images() -> None:
    """A list equals no shape, so that images of the right size were resized once more."""
    predictor = Predictor(nn.Identity(), size=[4, 6])  # type: ignore[arg-type]
    assert predictor.size == (4, 6)
    assert predictor.size == torch.zeros(1, 3, 4, 6).shape[2:]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="std"):
        Predictor(nn.Identity(), (0.5,), (0.0,))
    with pytest.raises(ValueError, match="takes"):
        Predictor(nn.Identity(), (0.5,), (0.5,))(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="a size is"):
        Predictor(nn.Identity(), size=224)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [None, (2, 2)])
def test_bytes_are_no_images(size: tuple[int, int] | None) -> None:
    """Resized and normalised as they are, they would be taken for images from 0 to 255."""
    pixels = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    predictor = Predictor(nn.Identity(), size=size)
    for whole in (pixels, pixels.long()):
        with pytest.raises(ValueError, match=r"floating-point images in \[-1, 1\].*from_uint8"):
            predictor(whole)
    torch.testing.assert_close(predictor(from_uint8(pixels)).unique(), torch.ones(1))


def test_one_of_several_outputs_is_taken() -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(predicted_depth=x.mean(1), loss=None)

    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(SelectOutput(Both(), "predicted_depth")(x), x.mean(1))


class Auxiliary(nn.Module):
    """A network that has a second output in training mode, as GoogLeNet and Inception do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc, self.aux = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> Any:
        features = self.bn1(self.conv1(x)).tanh().mean((2, 3))
        return (self.fc(features), self.aux(features)) if self.training else self.fc(features)


def test_outputs_of_training_mode_alone_are_left_out() -> None:
    photos = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8)
    training = Training(steps=2, batch=4)
    bank = ExpertBank(Predictor(Auxiliary()), 1)
    with pytest.raises(TypeError, match=r"got tuple; choose .* SelectOutput\(network, 0\)"):
        transfer(bank, linear_schedule(1000), photos, training=training)
    bank = ExpertBank(Predictor(SelectOutput(Auxiliary(), 0)), 1)
    (loss,) = transfer(bank, linear_schedule(1000), photos, training=training)
    assert 0 < loss < 10
    assert bank.predict(torch.zeros(2, 3, 8, 8), 0).shape == (2, 5)


def test_deeplab_is_a_predictor_whose_encoder_and_decoder_learn() -> None:
    torch.manual_seed(0)
    network = SelectOutput(
        deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5), "out"
    )
    predictor = Predictor(network.eval(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    bank = ExpertBank(predictor, 2, Adapter((Lora(2, 1.0, DEEPLAB_LORA_LAYERS),)))
    adapted = list(bank.expert(0).tensors())
    assert "network.backbone.layer4.2.conv2.lora_A" in adapted
    assert "network.classifier.0.convs.1.0.lora_A" in adapted
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    guide = bank.guide(labels, 1.0, SegmentationTask())
    gradient = guide(State(torch.randn(1, 3, 40, 40), torch.tensor([10])))
    assert gradient.shape == (1, 3, 40, 40)
    assert gradient.abs().sum() > 0


def test_a_mean_and_std_are_per_channel_and_of_images_from_0_to_1() -> None:
    with pytest.raises(TypeError, match=r"mean is a number per channel, such as \(0.5,\), got 0.5"):
        Predictor(nn.Identity(), 0.5, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divide mean and std by 255"):
        Predictor(nn.Identity(), (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    given = torch.tensor([0.4, 0.5, 0.6])
    assert Predictor(nn.Identity(), given, given).mean.flatten().tolist() == given.tolist()  # type: ignore[arg-type]
