"""Absorbed statistics change the size of a bank and no prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppap.compute.stateless import run_with
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
from ppap.experts.together import JointStep
from ppap.predictors.predictor import Predictor
from tests.ppap.networks import images, scrambled, tiny_predictor

ADAPTERS = [ppap_adapter(2, 2.0), Adapter((Full(),))]


TIMESTEPS = torch.tensor([999, 0, 200, 199, 400, 799, 800])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_absorbed_statistics_change_the_size_and_no_prediction(
    adapter: Adapter, tmp_path: Path
) -> None:
    predictor = tiny_predictor()
    predictor.network.bn1.eps = 0.1  # networks ported from others have their own
    bank = scrambled(ExpertBank(predictor, 5, adapter))
    generator = torch.Generator().manual_seed(4)
    for name, buffer in bank.experts.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.add_(torch.rand(buffer.shape, generator=generator))
    x, size = images(7), sum(tensor.numel() for tensor in bank.state_dict().values())
    mixed, single = bank(x, TIMESTEPS), bank.predict(x, 3)
    bank.absorb_statistics()
    torch.testing.assert_close(bank(x, TIMESTEPS), mixed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bank.predict(x, 3), single, atol=1e-5, rtol=1e-5)
    assert not list(bank.experts.buffers())
    assert sum(tensor.numel() for tensor in bank.state_dict().values()) < size
    bank.save(tmp_path)
    same = tiny_predictor()
    same.network.bn1.eps = 0.1
    loaded = ExpertBank.load(tmp_path, same)
    assert torch.equal(loaded(x, TIMESTEPS), bank(x, TIMESTEPS))
    bank.train().predict(x, 3).sum().backward()  # the predictor's statistics stay as they are
    assert torch.equal(bank.eval().predict(x, 3), loaded.predict(x, 3))


class Normed(nn.Module):
    """One norm's statistics cannot be absorbed, and another's no expert keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.BatchNorm2d(3, affine=False)
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.bn1 = nn.BatchNorm2d(6)
        self.norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.bn1(self.conv1(self.whiten(x))).relu())
        return self.fc(x.square().mean((2, 3)))


def test_norms_whose_statistics_no_expert_keeps_are_trained_as_they_are_used() -> None:
    torch.manual_seed(0)
    network = Normed().train()
    network(3 * images(16) + 1)
    bank = scrambled(ExpertBank(Predictor(network.eval()), 5, ppap_adapter(2, 2.0)))
    bank.absorb_statistics()
    assert {name.split(".")[0] for name in bank.expert(0).statistics()} == {"whiten"}
    x, timesteps = images(8), torch.tensor([0, 999] * 4)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    expected = {}
    for number in (0, 4):
        state = bank.effective(number)
        network.whiten.train()
        expected[number] = run_with(network, state, x[number // 4 :: 2])
        network.eval()
    bank.train()
    for number, found in expected.items():
        torch.testing.assert_close(bank.predict(x[number // 4 :: 2], number), found)
    mixed = bank(x, timesteps)
    assert not bank._mixed.check.dropped
    torch.testing.assert_close(mixed[::2], expected[0])
    torch.testing.assert_close(mixed[1::2], expected[4])
    joint = JointStep(bank, lambda found, wanted: (found * wanted).sum())
    shares = torch.stack([x[number % 2 :: 2] for number in (0, 0, 0, 0, 1)])
    probe = torch.zeros(5, 4, 5).index_fill(0, torch.tensor([0, 4]), 1.0).flatten(0, 1)
    total = sum(float(found.sum()) for found in expected.values())
    assert joint(shares, probe) == pytest.approx(total, rel=1e-4)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
