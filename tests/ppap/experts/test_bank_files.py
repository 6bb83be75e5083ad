"""Saved banks: what they remember, of which format, and which are refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Head, Tensors
from ppap.experts.bank import ExpertBank
from ppap.experts.routing import NoiseRanges
from ppap.experts.transfer import trained_experts
from ppap.files.checkpoints import CheckpointError, fingerprint, load_state, save_weights
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import MixedPrecision
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


def test_a_bank_of_numpys_numbers_is_saved(tmp_path: Path) -> None:
    ranges = NoiseRanges(tuple(np.linspace(0, 1000, 4).astype(int)))
    adapter = ppap_adapter(np.int64(2), np.float32(2))
    bank = ExpertBank(tiny_predictor(), ranges, adapter, seed=np.int64(5))
    bank.save(tmp_path / "bank")
    loaded = ExpertBank.load(tmp_path / "bank", tiny_predictor())
    assert (loaded.ranges, loaded.adapter) == (bank.ranges, ppap_adapter(2, 2.0))
    assert loaded.seed == 5


def test_a_saved_bank_can_be_trained_anew_from_the_values_that_it_began_with(
    tmp_path: Path,
) -> None:
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2), seed=5)
    bank.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, tiny_predictor())
    assert loaded.seed == 5
    assert trained_experts(loaded) == []
    scrambled(loaded).reset()
    for number in range(2):
        before, after = bank.expert(number).tensors(), loaded.expert(number).tensors()
        assert all(torch.equal(after[name], value) for name, value in before.items())


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
    del description["inclusive"], description["normalised"], description["seed"]
    for part in description["adapter"]:
        part.pop("linear_scaling", None)
    (tmp_path / "bank.json").write_text(json.dumps(description), encoding="utf-8-sig")
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


@pytest.mark.parametrize("mixed", [False, True])
def test_a_bank_saved_in_format_2_loads_by_its_parameters(mixed: bool, tmp_path: Path) -> None:
    def predictor() -> Predictor:
        found = tiny_predictor()
        if mixed:
            found.network = MixedPrecision(found.network, torch.bfloat16)
        return found

    bank = scrambled(ExpertBank(predictor(), 2, ppap_adapter(2)))
    bank.save(tmp_path)
    description = json.loads((tmp_path / "bank.json").read_text())
    del description["identity"], description["experts"]
    parameters = dict(predictor().network.named_parameters())
    (tmp_path / "bank.json").write_text(
        json.dumps(description | {"format": 2, "fingerprint": fingerprint(parameters)})
    )
    for number in range(2):  # by the names that the network has
        state = bank.expert(number).tensors() | bank.expert(number).statistics()
        save_weights(state, tmp_path / f"expert_{number}.safetensors")
    loaded = ExpertBank.load(tmp_path, predictor())
    assert torch.equal(loaded(images(7), TIMESTEPS), bank(images(7), TIMESTEPS))
    with pytest.raises(CheckpointError, match="other parameters"):
        ExpertBank.load(tmp_path, tiny_predictor(seed=1))


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
    assert description["format"] == 3
    (tmp_path / "bank.json").write_text(json.dumps(description | {"format": 4}))
    with pytest.raises(CheckpointError, match="format 4 is newer"):
        ExpertBank.load(tmp_path, tiny_predictor())


def test_a_bank_of_another_predictor_is_refused(tmp_path: Path) -> None:
    ExpertBank(tiny_predictor(), 2, ppap_adapter(2)).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"this tiny, which has other parameters"):
        ExpertBank.load(tmp_path, tiny_predictor(seed=1))


class Shift:
    """A part that no file names: own copies of the head's bias, moved by a constant."""

    def __init__(self, by: float) -> None:
        self.by = by

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        return {"fc.bias": network.get_parameter("fc.bias").detach() + 0}

    def buffers(self, network: nn.Module) -> Tensors:
        return {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        weights["fc.bias"] = own["fc.bias"] + self.by


@dataclass(frozen=True)
class StatedShift(Shift):
    """The same, which says what it is made of."""

    by: float


@pytest.mark.parametrize("kind", [Shift, StatedShift])
def test_parts_of_ones_own_are_saved_and_given_when_loading(
    kind: type[Shift], tmp_path: Path
) -> None:
    adapter = Adapter((Lora(2, 1.0, r"conv1$"), kind(0.5)))
    bank = scrambled(ExpertBank(tiny_predictor(), 2, adapter))
    bank.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, tiny_predictor(), adapter=adapter)
    assert torch.equal(loaded(images(7), TIMESTEPS), bank(images(7), TIMESTEPS))
    with pytest.raises(CheckpointError, match=rf"parts of its own, {kind.__name__}; pass the"):
        ExpertBank.load(tmp_path, tiny_predictor())
    others = [Adapter((Lora(2, 4.0, r"conv1$"), kind(0.5))), Adapter((kind(0.5),))]
    if kind is StatedShift:
        others.append(Adapter((Lora(2, 1.0, r"conv1$"), kind(0.6))))
    for other in others:
        with pytest.raises(CheckpointError, match="was saved with the adapter"):
            ExpertBank.load(tmp_path, tiny_predictor(), adapter=other)


def test_experts_of_another_bank_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "other")):
        bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2), seed=number)
        scrambled(bank).save(tmp_path / name)
    shutil.copy(tmp_path / "one" / "expert_1.safetensors", tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"expert_1\.safetensors is not the expert"):
        ExpertBank.load(tmp_path / "other", tiny_predictor())
    folder = tmp_path / "one"
    shutil.copy(folder / "expert_0.safetensors", folder / "expert_1.safetensors")
    with pytest.raises(CheckpointError, match=r"expert_1\.safetensors is not the expert"):
        ExpertBank.load(folder, tiny_predictor())
    (folder / "expert_1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        ExpertBank.load(folder, tiny_predictor())


class KilledError(Exception):
    """In place of a kill, or of a full disk."""


def filled(value: float, experts: int) -> ExpertBank:
    bank = ExpertBank(tiny_predictor(), experts, Adapter((Head(),)))
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.fill_(value)
    return bank


def held(folder: Path) -> set[float]:
    bank = ExpertBank.load(folder, tiny_predictor())
    return {value for p in bank.experts.parameters() for value in p.detach().unique().tolist()}


@pytest.mark.parametrize(("before", "after"), [(3, 3), (4, 2), (2, 4)])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_save_interrupted_at_any_file_leaves_one_of_the_two_banks(
    before: int, after: int, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    whole = Path.replace

    def replace(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0 and moment == "before":
            raise KilledError
        whole(path, target)
        if left[0] < 0:
            raise KilledError
        return target

    results = []
    for files in range(100):
        folder = tmp_path / str(files)
        filled(1.0, before).save(folder)
        with monkeypatch.context() as patched:
            left[:] = [files]
            patched.setattr(Path, "replace", replace)
            try:
                filled(2.0, after).save(folder)
            except KilledError:
                results.append(held(folder))
            else:
                break
        filled(3.0, before).save(folder)  # whatever was left is no hindrance
        assert held(folder) == {3.0}
    assert len(results) == 2 * after + 2  # every expert and bank.json, written and renamed
    assert all(found in ({1.0}, {2.0}) for found in results)
    assert results[0] == {1.0}
    assert held(folder) == {2.0}
    names = {path.name for path in folder.iterdir()}
    assert names == {"bank.json", *(f"expert_{n}.safetensors" for n in range(after))}


def test_a_disk_that_fills_up_leaves_the_older_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(1.0, 3).save(tmp_path)
    with monkeypatch.context() as patched:

        def full(path: Path, data: bytes) -> int:
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            filled(2.0, 3).save(tmp_path)
    assert held(tmp_path) == {1.0}


def test_a_folder_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bank\.json"):
        ExpertBank.load(tmp_path, tiny_predictor())
    ExpertBank(tiny_predictor(), 2, ppap_adapter(2)).save(tmp_path)
    description = json.loads((tmp_path / "bank.json").read_text())
    description["adapter"][0]["part"] = "hypernetwork"
    (tmp_path / "bank.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"bank\.json"):
        ExpertBank.load(tmp_path, tiny_predictor())


@pytest.mark.parametrize(
    "damage",
    [
        {"seed": -1},
        {"seed": "5"},
        {"normalised": "no"},
        {"absorbed": 1},
        {"inclusive": None},
        {"adapter": []},
        {"format": "3"},
    ],
)
def test_words_in_place_of_true_and_false_and_other_damage_are_refused(
    tmp_path: Path, damage: dict[str, object]
) -> None:
    ExpertBank(tiny_predictor(), 2, ppap_adapter(2)).save(tmp_path)
    description = json.loads((tmp_path / "bank.json").read_text())
    (tmp_path / "bank.json").write_text(json.dumps(description | damage))
    with pytest.raises(CheckpointError, match=r"bank\.json"):
        ExpertBank.load(tmp_path, tiny_predictor())
