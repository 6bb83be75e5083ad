"""Small seeded networks that the tests of the library share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import linear_schedule
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor

CLASSES = 5
SHAPE = (3, 8, 8)


class TinyResNet(nn.Module):
    """Named as a ResNet is: stem and block convolutions, batch norms, a shortcut, fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.layer1 = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
                "bn1": nn.BatchNorm2d(8),
                "downsample": nn.Sequential(nn.Conv2d(6, 8, 1, 2), nn.BatchNorm2d(8)),
            }
        )
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        block = self.layer1
        x = (block["bn1"](block["conv1"](x)) + block["downsample"](x)).relu()
        return self.fc(x.mean(dim=(2, 3)))


def tiny_predictor(seed: int = 0) -> Predictor:
    """Seeded, with batch statistics that are not the initial ones."""
    torch.manual_seed(seed)
    network = TinyResNet()
    network.train()
    for _ in range(3):
        network(torch.randn(16, *SHAPE))
    return Predictor(network.eval(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), name="tiny")


class TinyDense(nn.Module):
    """An encoder-decoder: half the resolution and back, with a skip."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(9, 8, 3, padding=1)
        self.head = nn.Conv2d(8, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        coarse = nn.functional.interpolate(self.bn1(self.conv1(x)).relu(), scale_factor=2)
        return self.head(self.conv2(torch.cat([coarse, x], dim=1)).relu())


def tiny_dense(outputs: int, seed: int = 0) -> Predictor:
    """A seeded predictor of maps (B, outputs, 8, 8)."""
    torch.manual_seed(seed)
    network = TinyDense(outputs).eval()
    return Predictor(network, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), name="tiny-dense")


def tiny_denoiser(steps: int = 1000) -> Denoiser:
    """A closed-form network: no weights, smooth, different at every timestep."""

    def network(x_t: Tensor, timesteps: Tensor) -> Tensor:
        return torch.tanh(0.9 * x_t + timesteps[:, None, None, None] / steps)

    return Denoiser(network, linear_schedule(steps), SHAPE)


def normal_denoiser(mean: float, std: float) -> Denoiser:
    """The exact denoiser of data distributed as N(mean, std^2) in every pixel."""
    schedule = linear_schedule()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        level = torch.from_numpy(schedule.alphas_cumprod)[t][:, None, None, None].float()
        variance = level * std**2 + 1 - level
        return (1 - level).sqrt() * (x_t - level.sqrt() * mean) / variance

    return Denoiser(network, schedule, SHAPE)


def images(count: int, seed: int = 0) -> Tensor:
    """(count, 3, 8, 8) normal images."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def scrambled(bank: ExpertBank) -> ExpertBank:
    """The bank with every trainable tensor moved by its own random amount."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return bank.eval()
