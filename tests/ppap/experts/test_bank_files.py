"""Saved banks: what they remember, of which format, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Head
from ppap.experts.bank import ExpertBank
from ppap.experts.routing import NoiseRanges
from ppap.files.checkpoints import CheckpointError, load_state
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask
from tests.ppap.networks import images, scrambled, tiny_predictor

TIMESTEPS = torch.tensor([999, 0, 200, 199, 400, 799, 800])


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
