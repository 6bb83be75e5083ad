"""Experts written into the predictor, and the predictor restored."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import linear_schedule
from ppap.experts import merging
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor
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


def lora_bank() -> ExpertBank:
    return scrambled(ExpertBank(tiny_predictor(), 2, Adapter((Lora(2, 4.0, "conv1"),))))


def loaded(bank: ExpertBank) -> None:
    bank.load_state_dict({name: 1.5 * value for name, value in bank.state_dict().items()})


def assigned(bank: ExpertBank) -> None:
    state = {name: 1.5 * value for name, value in bank.state_dict().items()}
    bank.load_state_dict(state, assign=True)


def loaded_expert(bank: ExpertBank) -> None:
    bank.expert(0).load({name: 2 * value for name, value in bank.expert(0).tensors().items()})


def written(bank: ExpertBank) -> None:
    with torch.no_grad():
        bank.expert(0).tensors()["conv1.lora_B"].add_(0.3)


def written_through_data(bank: ExpertBank) -> None:
    bank.expert(0).tensors()["conv1.lora_B"].data.mul_(-1)


def base_written(bank: ExpertBank) -> None:
    with torch.no_grad():
        bank.predictor.network.fc.weight.mul_(1.5)


def base_written_through_data(bank: ExpertBank) -> None:
    bank.predictor.network.fc.weight.data.mul_(1.5)


def base_replaced(bank: ExpertBank) -> None:
    layer = bank.predictor.network.fc
    layer.weight = torch.nn.Parameter(1.5 * layer.weight.detach())


def base_loaded(bank: ExpertBank) -> None:
    network = bank.predictor.network
    network.load_state_dict({name: 1.5 * value for name, value in network.state_dict().items()})


CHANGES = (
    loaded,
    assigned,
    loaded_expert,
    written,
    written_through_data,
    base_written,
    base_written_through_data,
    base_replaced,
    base_loaded,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_merged_weights_follow_every_change(change: Callable[[ExpertBank], None]) -> None:
    bank = lora_bank()
    before = bank.predict(images(4), 0)
    change(bank)
    after = bank.predict(images(4), 0)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, bank.train().predict(images(4), 0))


def test_merged_weights_follow_a_change_of_type() -> None:
    bank = lora_bank()
    bank.predict(images(4), 0)
    bank.double()
    found = bank.predict(images(4).double(), 0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, bank.train().predict(images(4).double(), 0))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("alone", [False, True], ids=["the bank", "the network alone"])
def test_a_bank_works_in_another_type_merged_or_not(
    adapter: Adapter, merged: bool, alone: bool
) -> None:
    bank, x = scrambled(ExpertBank(tiny_predictor(), 5, adapter)), images(7)
    expected = bank(x, TIMESTEPS), *2 * [bank.predict(x, 1)], tiny_predictor()(x)
    if merged:
        bank.merge(1)
    (bank.predictor if alone else bank).double()
    found = bank(x, TIMESTEPS), bank.predict(x, 1), bank.merge(1)(x)
    bank.unmerge()
    for result, wanted in zip((*found, bank.predictor(x)), expected, strict=True):
        assert result.dtype == torch.float64
        torch.testing.assert_close(result.float(), wanted)


def test_merged_weights_are_kept_while_nothing_changes() -> None:
    bank = lora_bank()
    assert bank.effective(0) is bank.effective(0)
    assert bank.effective(1) is not bank.effective(0)


def test_what_is_merged_within_an_autocast_is_not_kept_beyond_it() -> None:
    bank, x = lora_bank(), images(4)
    expected = bank.predict(x, 1)
    merged = lora_bank().merge(1)(x)
    bank = lora_bank()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = bank.predict(x, 1)
        bank.merge(1)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(bank.predictor(x), merged)
    bank.unmerge()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank.predict(x, 1), rounded)
    assert torch.equal(bank.predict(x, 1), expected)


def test_a_merged_predictor_shows_raw_images_to_experts_that_were_trained_on_such() -> None:
    predictor = tiny_predictor()
    bank = scrambled(ExpertBank(predictor, 2, normalised=False))
    expected, before = bank.predict(images(4), 1), predictor(images(4))
    merged = bank.merge(1)
    torch.testing.assert_close(merged(images(4)), expected)
    assert merged.network is predictor.network
    bank.unmerge()
    torch.testing.assert_close(predictor(images(4)), before, atol=0, rtol=0)


class Keeping(nn.Linear):
    """Keeps a table made of its weight as long as it is in one mode, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__(3, 5)
        self.kept: list[Tensor] = []

    def train(self, mode: bool = True) -> Keeping:
        self.kept = []
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        self.kept = self.kept or [2 * self.weight]
        return nn.functional.linear(input.mean((2, 3)), self.kept[0], self.bias)


def test_what_layers_keep_of_their_weights_is_of_the_expert_that_is_merged() -> None:
    torch.manual_seed(0)
    predictor, x = Predictor(Keeping()), images(4)
    bank = scrambled(ExpertBank(predictor, 2, Adapter((Full(),))))
    before, expected = predictor(x), [bank.predict(x, number) for number in (0, 1)]
    for number in (0, 1):
        torch.testing.assert_close(bank.merge(number)(x), expected[number])
    bank.unmerge()
    torch.testing.assert_close(predictor(x), before, atol=0, rtol=0)


def test_a_merge_overwrites_and_remembers_nothing_but_what_an_expert_changes() -> None:
    bank = lora_bank()
    seen = {name: tensor._version for name, tensor in bank.predictor.network.named_parameters()}
    bank.merge(1)
    adapted = {"conv1.weight", "layer1.conv1.weight"}
    assert set(bank.overwritten) == adapted
    for name, tensor in bank.predictor.network.named_parameters():
        assert (tensor._version > seen[name]) == (name in adapted)


def test_a_bank_that_was_merged_in_inference_mode_can_be_trained_afterwards() -> None:
    merged, plain = (scrambled(ExpertBank(tiny_predictor(), 2, ADAPTERS[0])) for _ in range(2))
    with torch.inference_mode():
        merged.merge(1)
    assert not any(value.is_inference() for value in merged.overwritten.values())
    found = []
    for bank in (merged, plain):
        x = images(2).requires_grad_()
        bank.train().predict(x, 0).square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_a_bank_that_was_used_in_inference_mode_has_a_gradient_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    used, fresh = lora_bank(), lora_bank()
    with torch.inference_mode():
        used(images(2), torch.tensor([0, 999]))
        used.predict(images(2), 1)
    found = []
    for bank in (used, fresh):
        x = images(2).requires_grad_()
        bank.predict(x, 1).square().sum().backward()
        bank(x, torch.tensor([0, 999])).square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)
    assert not caplog.text


def test_within_a_trajectory_values_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, looks = lora_bank(), []
    looked = merging.Watch.changed

    def changed(watch: merging.Watch, *arguments: Any) -> bool:
        looks.append(watch)
        return looked(watch, *arguments)

    monkeypatch.setattr(merging.Watch, "changed", changed)
    denoiser = Denoiser(lambda x, t: 0.1 * x, linear_schedule(), (3, 16, 16))
    guide, seeds = bank.guide(0, 10.0), range(2)
    first = sample(denoiser, seeds, guide, DDIM(10))
    assert len(looks) == 2  # one for each expert
    bank.predictor.network.fc.weight.data.mul_(3.0)
    second = sample(denoiser, seeds, guide, DDIM(10))
    assert (second - first).abs().max() > 1e-3
    torch.testing.assert_close(
        second, sample(denoiser, seeds, fresh(bank).guide(0, 10.0), DDIM(10))
    )


def fresh(bank: ExpertBank) -> ExpertBank:
    """The same weights in a bank that has merged nothing."""
    other = lora_bank()
    other.load_state_dict(bank.state_dict())
    return other


def test_a_bank_takes_a_predictor_for_what_it_was_before_another_was_merged(tmp_path: Path) -> None:
    predictor, x = tiny_predictor(), images(4)
    alone = ExpertBank(tiny_predictor(), 2, ppap_adapter(2))
    plain = alone.teacher_prediction(x)
    first = scrambled(ExpertBank(predictor, 1, ppap_adapter(2)))
    merged = first.merge(0)(x)
    second = ExpertBank(predictor, 2, ppap_adapter(2))
    assert torch.equal(predictor(x), merged)  # making it left the merge alone
    assert torch.equal(second.teacher_prediction(x), plain)
    torch.testing.assert_close(second.eval().predict(x, 1), alone.eval().predict(x, 1))
    second.save(tmp_path)
    assert ExpertBank.load(tmp_path, tiny_predictor()).ranges == second.ranges
    scrambled(second).merge(1)  # in place of the first
    torch.testing.assert_close(predictor(x), second.predict(x, 1))
    torch.testing.assert_close(first.predict(x, 0), merged)
    first.unmerge()
    assert torch.equal(predictor(x), tiny_predictor()(x))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda bank: pickle.loads(pickle.dumps(bank))])
def test_a_copy_of_a_merged_bank_is_merged_by_itself(
    again: Callable[[ExpertBank], ExpertBank],
) -> None:
    bank, x = lora_bank(), images(4)
    bank.merge(1)
    twin = again(bank)
    bank.unmerge()
    beside = ExpertBank(twin.predictor, 1, ppap_adapter(2))
    assert torch.equal(twin.predictor(x), twin.predict(x, 1))
    assert torch.equal(beside.teacher_prediction(x), tiny_predictor()(x))
    twin.unmerge()
    assert torch.equal(twin.predictor(x), bank.predictor(x))


def with_tied_weights() -> ExpertBank:
    """Whose head is a projection that is used before."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Linear(5, 5))
    network.append(nn.Linear(5, 5))
    network[4].weight = network[3].weight
    return scrambled(ExpertBank(Predictor(network.eval()), 2, Adapter((Full(),))))


@pytest.mark.parametrize("make", [lora_bank, with_tied_weights])
@pytest.mark.parametrize("copied", [False, True])
def test_the_state_of_a_merged_bank_is_that_of_before(
    make: Callable[[], ExpertBank], copied: bool
) -> None:
    bank, x = make(), images(7)
    expected = bank(x, TIMESTEPS)
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    bank.merge(1)
    bank = copy.deepcopy(bank) if copied else bank
    state = nn.ModuleDict({"bank": bank}).state_dict()
    assert list(state) == [f"bank.{name}" for name in before]
    assert torch.equal(bank.predictor(x), bank.predict(x, 1))
    fresh = make()
    nn.ModuleDict({"bank": fresh}).load_state_dict(state)
    assert torch.equal(fresh(x, TIMESTEPS), expected)
    assert all(torch.equal(value, state[f"bank.{name}"]) for name, value in before.items())


def test_a_state_that_is_loaded_into_a_merged_bank_stays() -> None:
    bank, other, x = lora_bank(), lora_bank(), images(7)
    loaded(other)
    bank.merge(1)
    bank.load_state_dict(other.state_dict())
    assert torch.equal(bank(x, TIMESTEPS), other(x, TIMESTEPS))
    bank.unmerge()
    assert torch.equal(bank.teacher_prediction(x), other.teacher_prediction(x))
