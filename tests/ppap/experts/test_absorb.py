"""Absorbed statistics change the size of a bank and no prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
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
