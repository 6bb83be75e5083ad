"""What every step of a training is given: its draws, its learning rate, its decay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Norms
from ppap.experts.bank import ExpertBank
from ppap.experts.draws import Draws
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.images import to_uint8
from tests.ppap.networks import images, tiny_predictor

DATA = to_uint8(images(24, 5).clamp(-1, 1))


def trained(training: Training, adapter: Adapter | None = None, **options: Any) -> list[float]:
    bank = ExpertBank(tiny_predictor(), 2, adapter or ppap_adapter(2))
    return transfer(bank, linear_schedule(), DATA, training=training, **options)


@pytest.mark.parametrize(
    ("order", "falls"),
    [("ascending", [1, 2 / 3, 1 / 3] * 2), ("together", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])],
)
def test_the_learning_rate_falls_linearly_within_each_experts_share_of_the_steps(
    order: Any, falls: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []

    class Recorded(torch.optim.AdamW):
        def step(self, *arguments: Any, **options: Any) -> Any:
            (group,) = self.param_groups
            seen.append((group["lr"], group["weight_decay"]))
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    trained(Training(6, 4, 1e-2, weight_decay=0.3, start="base", order=order))
    assert [rate for rate, _ in seen] == pytest.approx([1e-2 * share for share in falls])
    assert {decay for _, decay in seen} == {0.3}


def test_an_optimiser_that_is_kept_goes_on_in_all_experts_of_a_shared_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []

    class Recorded(torch.optim.AdamW):
        def step(self, *arguments: Any, **options: Any) -> Any:
            first = self.param_groups[0]["params"][0]
            before.append(self.state[first].get("exp_avg", torch.zeros(())).clone())
            super().step(*arguments, **options)
            after.append(self.state[first]["exp_avg"].clone())

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    kept = Training(6, 4, 1e-2, start="shared", order="together", keep_optimiser=True)
    assert all(map(math.isfinite, trained(kept)))
    assert torch.equal(before[3], after[2].expand_as(before[3]))
    assert len(before[3]) == 2
    assert not torch.equal(after[5][0], after[5][1]), "from there on each has its own"


def test_no_two_experts_are_trained_on_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are numbered through, so that draws are of the whole training's step."""
    seen: list[tuple[int, int, Any]] = []
    plain = Draws.step

    def step(draws: Draws, number: int, shape: torch.Size, bounds: Any) -> Any:
        seen.append((draws.seed, number, bounds))
        return plain(draws, number, shape, bounds)

    monkeypatch.setattr(Draws, "step", step)
    trained(Training(4, 4, seed=9))
    low, high = [(0, 500)], [(500, 1000)]
    assert seen == [(9, 0, low), (9, 1, low), (9, 2, high), (9, 3, high)]


def test_an_experts_loss_is_the_mean_over_the_last_tenth_of_its_steps() -> None:
    told: list[float] = []
    losses = trained(Training(40, 2), progress=lambda done, total, loss: told.append(loss))
    assert losses == pytest.approx([sum(told[18:20]) / 2, sum(told[38:40]) / 2])


def test_statistics_that_experts_do_not_keep_stay_the_predictors() -> None:
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Norms(statistics=False),)))
    transfer(bank, linear_schedule(), DATA, training=Training(4, 4))
    before = tiny_predictor().state_dict()
    assert all(torch.equal(v, before[k]) for k, v in bank.predictor.state_dict().items())
