"""Going on with a bank: each expert from itself, or from the base; nothing is written over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter, full_adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Head
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.training import Training
from ppap.experts.transfer import trained_experts, transfer
from ppap.files.images import to_uint8
from tests.ppap.networks import images, scrambled, tiny_predictor

SHORT = Training(steps=6, batch=8, learning_rate=1e-3)
SCHEDULE = linear_schedule()
DATA = to_uint8(images(16, 5).clamp(-1, 1))
ADAPTERS = {
    "ppap": ppap_adapter(2, 2.0),
    "full": full_adapter(),
    "peft": Adapter((Peft("lora", 2), Biases())),
}


def bank_of(adapter: Adapter, experts: int = 3, seed: int = 4) -> ExpertBank:
    return ExpertBank(tiny_predictor(), experts, adapter, seed=seed)


def states(bank: ExpertBank) -> list[dict[str, Tensor]]:
    every = (bank.expert(number) for number in range(len(bank)))
    return [{k: v.detach().clone() for k, v in e.state_dict().items()} for e in every]


def assert_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("start", ["previous", "shared"])
def test_one_expert_is_not_written_over_others_that_are_trained(
    start: str, order: str, adapter: Adapter
) -> None:
    bank = scrambled(bank_of(adapter))
    before = states(bank)
    with pytest.raises(ValueError, match="start='own'"):
        transfer(bank, SCHEDULE, DATA, training=replace(SHORT, start=start, order=order))
    assert_same(states(bank), before)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_each_expert_goes_on_from_itself(adapter: Adapter) -> None:
    bank = scrambled(bank_of(adapter))
    before = [bank.expert(number).tensors() for number in range(3)]
    before = [{key: value.detach().clone() for key, value in own.items()} for own in before]
    transfer(bank, SCHEDULE, DATA, training=replace(SHORT, start="own"))
    for number, own in enumerate(before):
        moved = [(bank.expert(number).tensors()[k] - v).abs().max() for k, v in own.items()]
        # Two steps of AdamW move a tensor by about twice the rate, decay aside.
        assert 0 < max(moved) < 4 * SHORT.learning_rate


@pytest.mark.parametrize(
    ("order", "adapter"),
    [
        ("ascending", ADAPTERS["ppap"]),
        ("descending", ADAPTERS["peft"]),
        ("together", ADAPTERS["full"]),
    ],
)
def test_a_start_from_the_base_forgets_what_was_trained(order: str, adapter: Adapter) -> None:
    training = replace(SHORT, start="base", order=order, batch=9)
    used, fresh = scrambled(bank_of(adapter)), bank_of(adapter)
    for bank in (used, fresh):
        transfer(bank, SCHEDULE, DATA, training=training)
    assert_same(states(used), states(fresh))


def test_a_bank_with_absorbed_statistics_starts_from_the_base_too() -> None:
    fresh = bank_of(ppap_adapter(2, 2.0)).eval()
    fresh.absorb_statistics()
    x = images(4)
    expected = fresh.predict(x, 1)
    bank = scrambled(fresh)
    assert trained_experts(bank) == [0, 1, 2]
    bank.reset()
    assert trained_experts(bank) == []
    assert torch.equal(bank.eval().predict(x, 1), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_untrained_bank_may_be_cast(dtype: torch.dtype) -> None:
    """DoRA's first magnitudes are norms of the weights, which round otherwise in another type."""
    for adapter in (*ADAPTERS.values(), Adapter((Peft("dora", 2),))):
        bank = bank_of(adapter).to(dtype)
        assert trained_experts(bank) == []
        with torch.no_grad():
            next(bank.expert(1).parameters()).mul_(1.1).add_(0.1)
        assert trained_experts(bank) == [1]


def test_a_chain_may_begin_at_a_trained_expert() -> None:
    bank = bank_of(ADAPTERS["ppap"])
    with torch.no_grad():
        for parameter in bank.expert(0).parameters():
            parameter.add_(0.1)
    assert trained_experts(bank) == [0]
    transfer(bank, SCHEDULE, DATA, training=SHORT)
    with pytest.raises(ValueError, match=r"experts \[0, 1\]"):
        transfer(bank, SCHEDULE, DATA, training=replace(SHORT, order="descending"))


def test_a_merged_bank_starts_from_the_base_and_not_from_what_was_merged() -> None:
    merged, plain = (scrambled(bank_of(full_adapter())) for _ in range(2))
    merged.merge(1)
    for bank in (merged, plain):
        transfer(bank, SCHEDULE, DATA, training=replace(SHORT, start="base"))
    assert_same(states(merged), states(plain))
    reference = tiny_predictor().state_dict()
    found = merged.predictor.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in reference.items())


def test_two_low_rank_parts_update_their_own_layers_each_at_its_own_scale() -> None:
    network = tiny_predictor().network
    one, two = Lora(2, 6.0, r"^conv1$"), Lora(3, 1.5, r"^(layer1\.conv1|fc)$")
    bank = scrambled(bank_of(Adapter((one, two)), 2))
    own, weights = bank.expert(1).tensors(), bank.merged(1)
    for layer, scale in (("conv1", 3.0), ("layer1.conv1", 0.5), ("fc", 0.5)):
        base = network.get_submodule(layer).weight
        update = own[f"{layer}.lora_B"] @ own[f"{layer}.lora_A"]
        torch.testing.assert_close(weights[f"{layer}.weight"], base + scale * update.view_as(base))


def test_two_low_rank_parts_agree_on_every_path() -> None:
    adapter = Adapter((Lora(2, 6.0, r"^conv1$"), Lora(3, 1.5, "^fc$"), Head("^layer1.conv1$")))
    bank = scrambled(bank_of(adapter, 2))
    x, t = images(4), torch.tensor([10, 900, 20, 800])
    alone = torch.cat([bank(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(bank(x, t), alone)
    bank.train()
    torch.testing.assert_close(bank(x, t), alone)


def test_an_own_copy_of_a_weight_does_not_undo_its_update() -> None:
    update, copy = Lora(2, 2.0, "^fc$"), Head("^fc$")
    x, t = images(4), torch.tensor([10, 900, 20, 800])
    before, after = (scrambled(bank_of(Adapter(p), 2)) for p in ((copy, update), (update, copy)))
    for number in range(2):
        after.expert(number).load(before.expert(number).tensors())
    after.eval()
    torch.testing.assert_close(after.predict(x, 1), before.predict(x, 1))
    torch.testing.assert_close(after(x, t)[1], after.predict(x, 1)[1])


def test_two_low_rank_updates_of_one_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="two Lora parts adapt conv1"):
        bank_of(Adapter((Lora(2), Lora(3))))
