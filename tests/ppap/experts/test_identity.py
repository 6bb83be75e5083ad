"""A bank knows its predictor by all that predictions depend on, and in any precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ppap.diffusion.guide import State
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.bank import ExpertBank
from ppap.experts.released import load_released, save_released
from ppap.files.checkpoints import CheckpointError
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import MixedPrecision
from tests.ppap.networks import SHAPE, images, scrambled, tiny_predictor

ADAPTER = Adapter((Lora(2, 1.0, r"conv1$"), Biases()))
TIMESTEPS = torch.tensor([5, 900, 6, 950])


class Scaled(nn.Module):
    """A network whose buffers, one of them in no file, decide what it predicts."""

    def __init__(self, scale: float = 2.0, shift: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("shift", torch.tensor([shift]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(x).mean((2, 3)) * self.scale + self.shift


def resized(predictor: Predictor) -> None:
    predictor.size = (16, 16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: p.mean.add_(0.01), r"has mean \(0\.51, 0\.41, 0\.31\) for \(0\.5, 0\.4, 0\.3\)"),
        (lambda p: p.std.mul_(1.001), r"has std .* for "),
        (resized, r"has size \(16, 16\) for None"),
        (lambda p: p.network.bn1.running_mean.add_(3), "has other buffers"),
        (lambda p: p.network.layer1["bn1"].running_var.mul_(1.01), "has other buffers"),
        (lambda p: p.network.fc.weight.data.mul_(1.0001), "has other parameters"),
    ],
    ids=["mean", "std", "size", "statistics", "variance", "weights"],
)
def test_what_changes_predictions_is_another_predictor(
    change: Callable[[Predictor], object], named: str, tmp_path: Path
) -> None:
    ExpertBank(tiny_predictor(), 2, ADAPTER).save(tmp_path)
    other = tiny_predictor()
    change(other)
    with pytest.raises(CheckpointError, match=named):
        ExpertBank.load(tmp_path, other)


def test_buffers_of_all_kinds_are_looked_at(tmp_path: Path) -> None:
    ExpertBank(Predictor(Scaled()), 1, ADAPTER).save(tmp_path)
    ExpertBank.load(tmp_path, Predictor(Scaled()))
    for other in (Scaled(scale=2.5), Scaled(shift=0.5)):
        with pytest.raises(CheckpointError, match="other buffers"):
            ExpertBank.load(tmp_path, Predictor(other))


def test_a_size_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    predictor = tiny_predictor()
    predictor.size = [8, 8]  # type: ignore[assignment]
    ExpertBank(predictor, 1, ADAPTER).save(tmp_path)
    other = tiny_predictor()
    other.size = (8, 8)
    ExpertBank.load(tmp_path, other)
    ExpertBank.load(tmp_path, predictor)


def test_how_many_batches_a_norm_has_seen_does_not_matter(tmp_path: Path) -> None:
    ExpertBank(tiny_predictor(), 1, ADAPTER).save(tmp_path)
    other = tiny_predictor()
    other.network.bn1.num_batches_tracked.fill_(0)
    ExpertBank.load(tmp_path, other)


def test_an_expert_that_is_merged_in_is_no_other_predictor(tmp_path: Path) -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 2, ADAPTER))
    expected = bank(images(4), TIMESTEPS)
    bank.merge(1)
    bank.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, tiny_predictor())
    assert torch.equal(loaded(images(4), TIMESTEPS), expected)


def test_banks_are_loaded_around_a_predictor_into_which_another_is_merged(tmp_path: Path) -> None:
    adapter = Adapter((Lora(2, 8.0), Biases(), Norms()))
    bank = scrambled(ExpertBank(tiny_predictor(), 2, adapter))
    bank.save(tmp_path / "own")
    save_released(bank, tmp_path / "released")
    predictor = tiny_predictor()
    merged = scrambled(ExpertBank(predictor, 1, ADAPTER)).merge(0)(images(4))
    own = ExpertBank.load(tmp_path / "own", predictor)
    released = load_released(
        tmp_path / "released", predictor, rank=2, as_trained=False, normalised=True
    )
    assert torch.equal(predictor(images(4)), merged)
    for loaded in (own, released):
        assert torch.equal(loaded(images(4), TIMESTEPS), bank(images(4), TIMESTEPS))


def mixed(predictor: Predictor, dtype: torch.dtype) -> Predictor:
    predictor.network = MixedPrecision(predictor.network, dtype)
    return predictor


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("used", [torch.float32, torch.bfloat16])
def test_a_bank_fits_the_predictor_in_mixed_precision_and_the_other_way(
    saved: torch.dtype, used: torch.dtype, tmp_path: Path
) -> None:
    def predictor(dtype: torch.dtype) -> Predictor:
        return tiny_predictor() if dtype == torch.float32 else mixed(tiny_predictor(), dtype)

    bank = scrambled(ExpertBank(predictor(saved), 2, ADAPTER))
    bank.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, predictor(used))
    expected, found = bank(images(4), TIMESTEPS), loaded(images(4), TIMESTEPS)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()
    for ours, theirs in zip(bank.experts.parameters(), loaded.experts.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    wrong = mixed(tiny_predictor(seed=1), torch.bfloat16)
    with pytest.raises(CheckpointError, match="other parameters, other buffers"):
        ExpertBank.load(tmp_path, wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounded_weights_are_those_they_were_rounded_from(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    whole, rounded = tiny_predictor(), tiny_predictor().to(dtype)
    ExpertBank(whole, 1, ADAPTER).save(tmp_path / "whole")
    identity = ExpertBank(rounded, 1, ADAPTER).identity()
    ExpertBank(tiny_predictor().to(dtype), 1, ADAPTER).save(tmp_path / "rounded")
    own = ExpertBank(tiny_predictor(), 1, ADAPTER).identity()
    assert own.differences(identity) == identity.differences(own) == []
    stranger = ExpertBank(tiny_predictor(seed=1).to(dtype), 1, ADAPTER).identity()
    assert "other parameters" in own.differences(stranger)


def test_two_kinds_of_half_precision_cannot_be_told_to_be_the_same() -> None:
    kinds = torch.bfloat16, torch.float16
    ours, theirs = (ExpertBank(tiny_predictor().to(d), 1, ADAPTER).identity() for d in kinds)
    assert ours.differences(theirs)[:2] == ["other parameters", "other buffers"]


def test_bfloat16_weights_are_saved_and_come_back(tmp_path: Path) -> None:
    predictor = tiny_predictor().to(torch.bfloat16)
    bank = ExpertBank(predictor, 2, Adapter((Biases(),)))
    bank.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, tiny_predictor().to(torch.bfloat16))
    x = torch.randn(2, *SHAPE, dtype=torch.bfloat16)
    assert torch.equal(loaded(x, TIMESTEPS[:2]), bank.eval()(x, TIMESTEPS[:2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_experts_guide_by_a_network_of_another_type(dtype: torch.dtype, tmp_path: Path) -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 2, ADAPTER))
    bank.save(tmp_path)
    other = tiny_predictor()
    other.network.to(dtype)
    state = State(torch.randn(4, *SHAPE), torch.tensor([0, 400, 500, 999]))
    exact = bank.guide(1)(state)
    found = ExpertBank.load(tmp_path, other).guide(1)(state)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 0.1 * exact.norm()
    assert torch.isfinite(other(state.x_t)).all()
