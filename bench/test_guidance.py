"""The guidance gradient of one batch on the setting ``fashion``: what the experts cost.

``bank`` is the library's; ``reference`` does the same mathematics the released code's way,
recomputing every LoRA update at each call; ``predictor`` is the floor, no experts at all.
Compare them within one run.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.func import functional_call

from ablations.settings import load_setting
from ppap.adapters import ppap_adapter
from ppap.experts import ExpertBank
from ppap.guidance import Guide, LikelihoodGuide, naive_guide
from ppap.tasks import ClassTask

BATCH, SCALE = 64, 8.0
TARGETS = torch.arange(BATCH) % 10


def scrambled_bank(predictor: str) -> ExpertBank:
    bank = ExpertBank(load_setting("fashion").predictor(predictor), 5, ppap_adapter(4, 2.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return bank.eval()


def reference_guide(bank: ExpertBank) -> LikelihoodGuide:
    """The expert of the first timestep, its update recomputed at each call."""

    def model(x_t: Tensor, timesteps: Tensor) -> Tensor:
        expert = bank.expert(int(bank.ranges.expert_of(timesteps[:1])))
        base = dict(bank.predictor.network.named_parameters())
        weights = bank.adapter.effective(base, expert.tensors()) | expert.statistics()
        prepared = bank.predictor.prepare(x_t)
        output: Tensor = functional_call(bank.predictor.network, weights, (prepared,))
        return output

    return LikelihoodGuide(model, ClassTask(), TARGETS, SCALE)


GUIDES: dict[str, Callable[[ExpertBank], Guide]] = {
    "bank": lambda bank: bank.guide(TARGETS, SCALE),
    "reference": reference_guide,
    "predictor": lambda bank: naive_guide(bank.predictor, ClassTask(), TARGETS, SCALE),
}


@pytest.mark.parametrize("predictor", ["resnet", "vit"])
@pytest.mark.parametrize("way", GUIDES)
def test_guidance_gradient(benchmark: BenchmarkFixture, way: str, predictor: str) -> None:
    bank = scrambled_bank(predictor)
    guide = GUIDES[way](bank)
    x_t = torch.randn(BATCH, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    timesteps = torch.full((BATCH,), 440)
    if way == "reference":  # no timing while the two disagree
        torch.testing.assert_close(guide(x_t, timesteps), GUIDES["bank"](bank)(x_t, timesteps))
    benchmark.group = f"guidance gradient, {predictor}, batch {BATCH}"
    benchmark(guide, x_t, timesteps)
    benchmark.extra_info["images_per_second"] = BATCH / benchmark.stats.stats.median


@pytest.mark.parametrize("mixed", [False, True], ids=["one range", "five ranges"])
def test_routing(benchmark: BenchmarkFixture, mixed: bool) -> None:
    bank = scrambled_bank("resnet")
    guide = bank.guide(TARGETS, SCALE)
    x_t = torch.randn(BATCH, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    timesteps = torch.arange(BATCH) * 997 % 1000 if mixed else torch.full((BATCH,), 440)
    benchmark.group = f"routing by timestep, resnet, batch {BATCH}"
    benchmark(guide, x_t, timesteps)
    benchmark.extra_info["images_per_second"] = BATCH / benchmark.stats.stats.median
