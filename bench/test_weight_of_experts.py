"""What N experts weigh: tensors that a bank holds, against N copies of the network."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import timm
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor

from .reference import ReferenceExperts

EXPERTS = 10
MODELS = {"resnet50": 8, "deit_small_patch16_224": 16}
"""Architecture and LoRA rank, as published."""


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct storages."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["reference", "bank", "bank, statistics absorbed"])
def test_ten_experts(benchmark: BenchmarkFixture, way: str, name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    one = held([*network.parameters(), *network.buffers()])
    predictor = Predictor(network, (0.5,) * 3, (0.5,) * 3)
    bank = ExpertBank(predictor, EXPERTS, ppap_adapter(MODELS[name])).eval()
    if way == "bank, statistics absorbed":
        bank.absorb_statistics()
    if way != "reference":
        total = held([*bank.parameters(), *bank.buffers()])
    else:
        copies = ReferenceExperts(bank)
        total = held(
            tensor
            for network, own, kept in zip(
                copies.networks, copies.own, copies.statistics, strict=True
            )
            for tensor in (*network.parameters(), *network.buffers(), *own.values(), *kept.values())
        )
    benchmark.group = f"memory of {EXPERTS} experts, {name}, rank {MODELS[name]}"
    benchmark.extra_info["way"] = way
    benchmark.extra_info["times_one_model"] = round(total / one, 4)
    benchmark.extra_info["mib"] = round(total / 2**20, 1)
    benchmark.pedantic(lambda: None, rounds=1)  # nothing is timed here
