"""Experts written into the predictor, and the predictor restored."""

from __future__ import annotations

import pytest
import torch

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
from tests.ppap.networks import images, scrambled, tiny_predictor

ADAPTERS = [ppap_adapter(2, 2.0), Adapter((Full(),))]


TIMESTEPS = torch.tensor([999, 0, 200, 199, 400, 799, 800])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_merged_is_unmerged_and_restored_bit_for_bit(adapter: Adapter) -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 5, adapter))
    before = {key: value.clone() for key, value in bank.predictor.state_dict().items()}
    routed = bank(images(7), TIMESTEPS)
    taught = bank.teacher_prediction(images(7))
    for number, row in ((1, 2), (0, 1), (4, 0)):
        merged = bank.merge(number)(images(7))
        torch.testing.assert_close(merged[row], routed[row])
        assert torch.equal(bank(images(7), TIMESTEPS), routed)  # the bank goes on working
        assert torch.equal(bank.teacher_prediction(images(7)), taught)
    bank.unmerge()
    after = bank.predictor.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
