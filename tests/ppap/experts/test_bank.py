"""Routing, merging, saving: the invariants of an expert bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppap.diffusion.guide import State
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Full, Head
from ppap.experts.bank import ExpertBank
from ppap.experts.routing import NoiseRanges
from ppap.files.checkpoints import CheckpointError, load_state
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask
from tests.ppap.networks import images, tiny_predictor

ADAPTERS = [ppap_adapter(2, 2.0), Adapter((Full(),))]
TIMESTEPS = torch.tensor([999, 0, 200, 199, 400, 799, 800])


def scrambled(bank: ExpertBank) -> ExpertBank:
    """The bank with every trainable tensor moved by its own random amount."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return bank.eval()


@pytest.mark.parametrize(
    ("count", "boundaries"),
    [
        (1, (0, 1000)),
        (3, (0, 333, 666, 1000)),
        (5, (0, 200, 400, 600, 800, 1000)),
        (8, (0, 125, 250, 375, 500, 625, 750, 875, 1000)),
    ],
)
def test_equal_ranges_are_the_papers(count: int, boundaries: tuple[int, ...]) -> None:
    assert NoiseRanges.equal(count).boundaries == boundaries


def test_boundary_timesteps_go_to_the_upper_range() -> None:
    ranges = NoiseRanges.equal(5)
    t = torch.tensor([0, 199, 200, 399, 400, 600, 800, 999])
    assert ranges.expert_of(t).tolist() == [0, 0, 1, 1, 2, 3, 4, 4]


def test_every_timestep_has_the_expert_whose_range_holds_it() -> None:
    ranges = NoiseRanges((0, 7, 50, 333, 1000))
    experts = ranges.expert_of(torch.arange(1000))
    for number in range(4):
        low, high = ranges.bounds(number)
        assert (experts[low:high] == number).all()


@pytest.mark.parametrize("outside", [-1, 1000])
def test_timesteps_outside_are_refused(outside: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        NoiseRanges.equal(5).expert_of(torch.tensor([0, outside]))


@pytest.mark.parametrize("boundaries", [(0,), (1, 5), (0, 5, 5), (0, 5, 3)])
def test_ranges_that_are_none_are_refused(boundaries: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="increase from 0"):
        NoiseRanges(boundaries)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_untrained_bank_is_the_predictor(adapter: Adapter) -> None:
    bank = ExpertBank(tiny_predictor(), 5, adapter).eval()
    torch.testing.assert_close(bank(images(7), TIMESTEPS), tiny_predictor()(images(7)))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_mixed_timesteps_are_the_same_samples_one_by_one(adapter: Adapter) -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 5, adapter))
    x = images(7)
    together = bank(x, TIMESTEPS)
    alone = torch.cat([bank(x[i : i + 1], TIMESTEPS[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, alone)
    assert (together[1] - bank(x[1:2], torch.tensor([999]))[0]).abs().max() > 1e-3


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_gradient_of_a_mixed_batch_is_that_of_its_rows(adapter: Adapter) -> None:
    guide = scrambled(ExpertBank(tiny_predictor(), 5, adapter)).guide(torch.arange(7) % 5, 2.0)
    x = images(7)
    together = guide(State(x, TIMESTEPS))
    for i in range(7):
        row = slice(i, i + 1)
        torch.testing.assert_close(together[row], guide.rows(row)(State(x[row], TIMESTEPS[row])))


def test_one_expert_is_the_single_model() -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 1, Adapter((Full(),))))
    single = tiny_predictor()
    state = bank.expert(0).tensors() | bank.expert(0).statistics()
    single.network.load_state_dict(state)
    assert torch.equal(bank(images(7), TIMESTEPS), single(images(7)))


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


def test_only_experts_receive_gradients() -> None:
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2)).train()
    bank(images(4), torch.tensor([1, 600, 2, 700])).square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in bank.predictor.parameters())
    assert all(p.grad is not None for p in bank.experts.parameters())


def test_training_an_expert_leaves_the_frozen_statistics_alone() -> None:
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2)).train()
    base = {key: value.clone() for key, value in bank.predictor.network.named_buffers()}
    own = {key: value.clone() for key, value in bank.expert(0).statistics().items()}
    bank.predict(images(8) * 3, 0)
    frozen = dict(bank.predictor.network.named_buffers())
    assert all(torch.equal(value, frozen[key]) for key, value in base.items())
    moved = bank.expert(0).statistics()
    assert not torch.equal(own["bn1.running_var"], moved["bn1.running_var"])
    untouched = bank.expert(1).statistics()
    assert torch.equal(own["bn1.running_var"], untouched["bn1.running_var"])


def test_evaluation_sees_what_training_changed() -> None:
    bank = ExpertBank(tiny_predictor(), 1, ppap_adapter(2)).eval()
    t = torch.zeros(3, dtype=torch.int64)
    first: Tensor = bank(images(3), t)
    bank.train()
    with torch.no_grad():
        bank.expert(0).tensors()["bn1.bias"] += 1
    bank.eval()
    assert not torch.allclose(first, bank(images(3), t))


def test_experts_share_the_base_in_memory_and_in_the_state_dict() -> None:
    one = ExpertBank(tiny_predictor(), 1, ppap_adapter(1))
    ten = ExpertBank(tiny_predictor(), 10, ppap_adapter(1))
    size = [sum(p.numel() for p in bank.parameters()) for bank in (one, ten)]
    adapter = sum(p.numel() for p in one.experts.parameters())
    assert size[1] - size[0] == 9 * adapter
    assert len([key for key in ten.state_dict() if key.startswith("experts.9.")]) > 0


def test_a_saved_bank_comes_back(tmp_path: Path) -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), NoiseRanges((0, 300, 1000)), ppap_adapter(2)))
    bank.save(tmp_path / "bank")
    loaded = ExpertBank.load(tmp_path / "bank", tiny_predictor())
    assert loaded.ranges == bank.ranges
    assert torch.equal(loaded(images(7), TIMESTEPS), bank(images(7), TIMESTEPS))


def test_the_released_codes_quirks_are_saved(tmp_path: Path) -> None:
    ranges = NoiseRanges((0, 400, 1000), inclusive=True)
    adapter = Adapter((Lora(2, 1.0, r"fc$", linear_scaling="published"), Head()))
    bank = scrambled(ExpertBank(tiny_predictor(), ranges, adapter, normalised=False))
    bank.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, tiny_predictor())
    assert (loaded.ranges, loaded.adapter, loaded.normalised) == (ranges, adapter, False)
    assert torch.equal(loaded(images(7), TIMESTEPS), bank(images(7), TIMESTEPS))


def test_a_bank_saved_before_those_quirks_loads_without_them(tmp_path: Path) -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 2, ppap_adapter(2)))
    bank.save(tmp_path)
    description = json.loads((tmp_path / "bank.json").read_text())
    del description["inclusive"], description["normalised"]
    for part in description["adapter"]:
        part.pop("linear_scaling", None)
    (tmp_path / "bank.json").write_text(json.dumps(description))
    loaded = ExpertBank.load(tmp_path, tiny_predictor())
    assert (loaded.ranges, loaded.adapter, loaded.normalised) == (bank.ranges, bank.adapter, True)
    assert torch.equal(loaded(images(7), TIMESTEPS), bank(images(7), TIMESTEPS))


GOLDEN = Path(__file__).with_name("format_1")


def test_a_bank_saved_in_format_1_loads_and_predicts_what_it_did() -> None:
    recorded = load_state(GOLDEN / "expected.safetensors")
    predictor = tiny_predictor()
    predictor.network.load_state_dict(
        {k.removeprefix("network."): v for k, v in recorded.items() if k.startswith("network.")}
    )
    bank = ExpertBank.load(GOLDEN, predictor)
    assert json.loads((GOLDEN / "bank.json").read_text())["format"] == 1
    assert (bank.ranges, bank.adapter) == (NoiseRanges((0, 400, 1000)), ppap_adapter(2, 2.0))
    assert bank.task == predictor.task == ClassTask()
    found = bank(recorded["images"], recorded["timesteps"])
    torch.testing.assert_close(found, recorded["predictions"])


@pytest.mark.parametrize(
    "task", [ClassTask(0.5), DepthTask(aligned=False), SegmentationTask(), SimilarityTask(7.0)]
)
def test_a_bank_remembers_its_task(task: Task, tmp_path: Path) -> None:
    bank = ExpertBank(tiny_predictor(), 1, ppap_adapter(2), task)
    bank.save(tmp_path)
    assert ExpertBank.load(tmp_path, tiny_predictor()).task == task
    assert ExpertBank.load(tmp_path, tiny_predictor(), ClassTask()).task == ClassTask()


def test_a_bank_has_its_predictors_task_unless_it_is_given_another() -> None:
    predictor = Predictor(tiny_predictor().network, task=SegmentationTask(2.0))
    adapter = ppap_adapter(2)
    assert ExpertBank(predictor, 1, adapter).task == SegmentationTask(2.0)
    assert ExpertBank(predictor, 1, adapter, DepthTask()).task == DepthTask()


class Redness(ClassTask):
    """A task that no file names."""


def test_a_task_of_ones_own_is_asked_for_when_loading(tmp_path: Path) -> None:
    ExpertBank(tiny_predictor(), 1, ppap_adapter(2), Redness()).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"a task of its own, Redness; pass it"):
        ExpertBank.load(tmp_path, tiny_predictor())
    assert type(ExpertBank.load(tmp_path, tiny_predictor(), Redness()).task) is Redness


def test_a_bank_of_a_later_format_is_refused(tmp_path: Path) -> None:
    ExpertBank(tiny_predictor(), 1, ppap_adapter(2)).save(tmp_path)
    description = json.loads((tmp_path / "bank.json").read_text())
    assert description["format"] == 2
    (tmp_path / "bank.json").write_text(json.dumps(description | {"format": 3}))
    with pytest.raises(CheckpointError, match="format 3 is newer"):
        ExpertBank.load(tmp_path, tiny_predictor())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_absorbed_statistics_change_the_size_and_no_prediction(
    adapter: Adapter, tmp_path: Path
) -> None:
    bank = scrambled(ExpertBank(tiny_predictor(), 5, adapter))
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
    loaded = ExpertBank.load(tmp_path, tiny_predictor())
    assert torch.equal(loaded(x, TIMESTEPS), bank(x, TIMESTEPS))
    bank.train().predict(x, 3).sum().backward()  # the predictor's statistics stay as they are
    assert torch.equal(bank.eval().predict(x, 3), loaded.predict(x, 3))


def test_a_bank_of_another_predictor_is_refused(tmp_path: Path) -> None:
    ExpertBank(tiny_predictor(), 2, ppap_adapter(2)).save(tmp_path)
    with pytest.raises(CheckpointError, match="other weights of tiny"):
        ExpertBank.load(tmp_path, tiny_predictor(seed=1))


def test_a_folder_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bank\.json"):
        ExpertBank.load(tmp_path, tiny_predictor())
    ExpertBank(tiny_predictor(), 2, ppap_adapter(2)).save(tmp_path)
    description = json.loads((tmp_path / "bank.json").read_text())
    description["adapter"][0]["part"] = "hypernetwork"
    (tmp_path / "bank.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"bank\.json"):
        ExpertBank.load(tmp_path, tiny_predictor())
