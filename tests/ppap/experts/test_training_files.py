"""An interrupted training goes on where it was, to the same experts, bit for bit."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor, nn

from ppap.diffusion.schedule import cosine_schedule, linear_schedule
from ppap.experts import compiled_step, in_turn
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Supervision
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.checkpoints import CheckpointError, load_state, save_weights
from ppap.files.images import to_uint8
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.accelerated import forget_accelerators
from tests.ppap.networks import SHAPE, images, tiny_predictor

DATA = to_uint8(images(20, 5).clamp(-1, 1))
TRAINING = Training(steps=8, batch=6, learning_rate=1e-2)
ARMS = {
    "previous": (TRAINING, None),
    "base, statistics": (replace(TRAINING, start="base"), Adapter((Full(),))),
    "shared": (replace(TRAINING, start="shared"), None),
    "descending, one optimiser": (
        replace(TRAINING, order="descending", keep_optimiser=True),
        None,
    ),
    "as many steps as experts": (replace(TRAINING, steps=3), None),
    "together": (replace(TRAINING, start="base", order="together"), Adapter((Full(),))),
}


class Interrupted(Exception):  # noqa: N818 (no error)
    """What ends a training in the middle."""


def bank_of(adapter: Adapter | None = None, **options: Any) -> ExpertBank:
    return ExpertBank(tiny_predictor(), 3, adapter or ppap_adapter(2, 2.0), **options)


def shown_otherwise(**changes: Any) -> ExpertBank:
    given = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)} | changes
    predictor = Predictor(tiny_predictor().network, **given)
    return ExpertBank(predictor, 3, ppap_adapter(2, 2.0))


def with_other_statistics() -> ExpertBank:
    predictor = tiny_predictor()
    predictor.network.bn1.running_mean.add_(0.5)
    return ExpertBank(predictor, 3, Adapter((Lora(2, 2.0),)))


def train(bank: ExpertBank, training: Training, file: Path | None, **options: Any) -> list[float]:
    given = {"objective": Distillation(ClassTask()), "images": DATA} | options
    return transfer(
        bank, given.pop("schedule", linear_schedule()), given.pop("images"),
        given.pop("objective"), training, file=file, **{"every": 1} | given,
    )  # fmt: skip


def interrupt_at(step: int) -> Callable[..., None]:
    def progress(done: int, total: int, /, **facts: float) -> None:
        if done == step:
            raise Interrupted

    return progress


def listener(heard: list[int]) -> Callable[..., None]:
    def progress(done: int, total: int, /, **facts: float) -> None:
        heard.append(done)

    return progress


def same(one: ExpertBank, other: ExpertBank) -> bool:
    pairs = zip(one.experts.state_dict().items(), other.experts.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    ("arm", "every", "steps"),
    [
        *((arm, 2, (1, 3, 6, 8)) for arm in list(ARMS)[:4]),
        ("as many steps as experts", 1, (1, 2)),
        ("previous", 1, (2, 4, 7)),
        ("together", 3, (5,)),  # it is traced anew each time
        ("base, statistics, compiled", 2, (3, 6)),
    ],
)
def test_interrupted_at_any_step_it_ends_as_if_undisturbed(
    arm: str, every: int, steps: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_step, "package", lambda traced, *_: (traced, True))
    monkeypatch.setattr(in_turn, "can_compile", lambda: True)
    compile = arm.endswith("compiled")
    training, adapter = ARMS[arm.removesuffix(", compiled")]
    options: dict[str, Any] = {"every": every, "compile": compile}
    whole = bank_of(adapter)
    losses = train(whole, training, None, compile=compile)
    for step in steps:
        file, again = tmp_path / f"{step}.safetensors", bank_of(adapter)
        seen: list[int] = []
        with pytest.raises(Interrupted):
            train(again, training, file, progress=interrupt_at(step), **options)
        resumed = train(again, training, file, progress=listener(seen), **options)
        assert same(again, whole)
        assert [repr(loss) for loss in resumed] == [repr(loss) for loss in losses]
        assert seen == list(range(seen[0], training.steps + 1))
        assert step - every < seen[0] <= step


@pytest.mark.parametrize("order", ["ascending", "together"])
def test_weights_that_are_channels_last_go_on_as_others_do(order: Any, tmp_path: Path) -> None:
    """A file holds an optimiser's moments contiguous, and the optimiser reads memory alone."""
    training = Training(steps=8, batch=6, learning_rate=1e-2, start="base", order=order)
    banks = []
    for _ in range(2):
        predictor = tiny_predictor()
        predictor.network.to(memory_format=torch.channels_last)
        banks.append(ExpertBank(predictor, 2, Adapter((Full(),))))
    whole, again = banks
    train(whole, training, None)
    file = tmp_path / "training.safetensors"
    with pytest.raises(Interrupted):
        train(again, training, file, progress=interrupt_at(3))
    train(again, training, file)
    assert same(again, whole)


def test_a_finished_training_is_read(tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    whole, again = bank_of(), bank_of()
    losses = train(whole, TRAINING, file)
    assert train(again, TRAINING, file, progress=interrupt_at(TRAINING.steps)) == losses
    assert same(again, whole)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_training_is_told_by_numpys_numbers_as_by_others(tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    train(bank_of(), replace(TRAINING, seed=np.int64(3)), file)
    losses = train(bank_of(), replace(TRAINING, seed=3), file, progress=interrupt_at(1))
    assert len(losses) == len(bank_of())
    with pytest.raises(CheckpointError):
        train(bank_of(), replace(TRAINING, seed=np.int64(4)), file)


def test_the_same_bank_goes_on_after_an_exception(tmp_path: Path) -> None:
    file, bank, whole = tmp_path / "training.safetensors", bank_of(), bank_of()
    with pytest.raises(Interrupted):
        train(bank, TRAINING, file, progress=interrupt_at(5))
    assert same(bank, bank_of())
    assert not bank.training
    train(bank, TRAINING, file)
    train(whole, TRAINING, None)
    assert same(bank, whole)


class Dropping(nn.Module):
    """Drops features at random in training, from PyTorch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(SHAPE[0] * 64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
            nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Scaling(Dropping):
    """Scales by random numbers of Python and NumPy in training."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found * random.gauss(1, 0.3) * np.random.rand() if self.training else found  # noqa: NPY002


@pytest.mark.parametrize("network", [Dropping, Scaling])
def test_random_layers_go_on_in_their_stream(
    network: Callable[[], nn.Module], tmp_path: Path
) -> None:
    def bank() -> ExpertBank:
        torch.manual_seed(0)
        return ExpertBank(Predictor(network(), (0.5,) * 3, (0.5,) * 3), 2, Adapter((Full(),)))

    def seed(number: int) -> None:
        for begin in (torch.manual_seed, random.seed, np.random.seed):
            begin(number)

    file, whole, cut, again = tmp_path / "training.safetensors", bank(), bank(), bank()
    seed(1)
    train(whole, TRAINING, None)
    seed(1)
    with pytest.raises(Interrupted):
        train(cut, TRAINING, file, progress=interrupt_at(3))
    seed(2)
    train(again, TRAINING, file)
    assert same(again, whole)


def test_through_accelerate_it_goes_on_as_well(tmp_path: Path) -> None:
    file, whole, again = tmp_path / "training.safetensors", bank_of(), bank_of()
    accelerator = Accelerator(cpu=True)
    train(whole, TRAINING, None, accelerator=accelerator)
    with pytest.raises(Interrupted):
        train(bank_of(), TRAINING, file, accelerator=accelerator, progress=interrupt_at(5))
    train(again, TRAINING, file, accelerator=accelerator)
    assert same(again, whole)


class Weighted:
    """A task of a user's that is no dataclass."""

    def __init__(self, weights: Any, how: Any = None) -> None:
        self.weights, self.how, self.whole = weights, how, self
        self.inner, self.log = ClassTask(), logging.getLogger(f"of {weights}")
        self.log.addHandler(logging.NullHandler())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def halved(value: float) -> float:
    return value / 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.5, 0.25),
        (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
        ({"a": 1.0}, {"a": 2.0}),
        ({1, 2}, {1, 3}),
        (torch.ones(2), torch.zeros(2)),
        (partial(halved, value=1.0), partial(halved, value=2.0)),
        (halved, len),
        (nn.Linear(2, 2, bias=False), nn.Linear(2, 2)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        ([Weighted(1)], [Weighted(2)]),
    ],
)
def test_a_task_that_is_no_dataclass_is_told_by_its_attributes(
    one: Any, other: Any, tmp_path: Path
) -> None:
    file = tmp_path / "training.safetensors"
    losses = train(bank_of(), TRAINING, file, objective=Distillation(Weighted(one)))
    again = train(bank_of(), TRAINING, file, objective=Distillation(Weighted(copy.deepcopy(one))))
    assert again == losses
    with pytest.raises(CheckpointError, match="of another training: objective differs"):
        train(bank_of(), TRAINING, file, objective=Distillation(Weighted(other)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": replace(TRAINING, seed=1)}, "training differs"),
        ({"bank": bank_of(seed=1)}, "first state of the experts differs"),
        ({"bank": bank_of(Adapter((Full(),)))}, "first state of the experts, adapter differ"),
        ({"bank": bank_of(ppap_adapter(2, 4.0))}, "adapter differs"),
        ({"bank": bank_of(normalised=False)}, "normalised differs"),
        ({"bank": bank_of(task=ClassTask(temperature=1.0))}, "task differs"),
        ({"bank": shown_otherwise(mean=(0.5, 0.4, 0.4))}, "mean, std and size differs"),
        ({"bank": shown_otherwise(size=(6, 6))}, "mean, std and size differs"),
        ({"bank": with_other_statistics()}, "buffers of the predictor, first state"),
        ({"schedule": cosine_schedule()}, "schedule differs"),
        ({"images": DATA.flip(0)}, "images differs"),
        ({"images": DATA[:12]}, "images differs"),
        ({"flips": True}, "images differs"),
        ({"objective": Supervision(torch.zeros(20).long())}, "objective differs"),
        ({"objective": Distillation(ClassTask(temperature=2.0))}, "objective differs"),
    ],
)
def test_a_file_of_another_training_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "training.safetensors"
    train(bank_of(), TRAINING, file)
    before = file.read_bytes()
    given = {"bank": bank_of(), "training": TRAINING, "file": file} | changes
    with pytest.raises(CheckpointError, match=f"of another training: {said}"):
        train(**given)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixed_precision": "bf16"}, "mixed precision differs"),
        ({"gradient_accumulation_steps": 2}, "gradient accumulation differs"),
    ],
)
def test_a_file_of_another_accelerator_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    forget_accelerators()
    file = tmp_path / "training.safetensors"
    train(bank_of(), TRAINING, file)
    with pytest.raises(CheckpointError, match=f"of another training: {said}"):
        train(bank_of(), TRAINING, file, accelerator=Accelerator(cpu=True, **options))


def test_what_an_earlier_version_did_not_write_down_is_taken_for_the_same(tmp_path: Path) -> None:
    file, whole = tmp_path / "training.safetensors", bank_of()
    losses = train(whole, TRAINING, file)
    with safe_open(file, "pt") as opened:
        known = json.loads(opened.metadata()["training"])
    del known["adapter"], known["task"]
    save_weights(load_state(file), file, metadata={"training": json.dumps(known)})
    assert train(bank_of(), TRAINING, file, progress=interrupt_at(1)) == losses


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_damaged_file_is_told(length: int, tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    train(bank_of(), TRAINING, file)
    file.write_bytes(file.read_bytes()[:length])
    bank = bank_of()
    with pytest.raises(CheckpointError, match="delete it to begin anew"):
        train(bank, TRAINING, file)
    assert same(bank, bank_of())


def test_what_cannot_be_written_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train(bank_of(), TRAINING, tmp_path / "file" / "x.safetensors", progress=interrupt_at(1))
    with pytest.raises(ValueError, match=r"a \.safetensors file, got x\.pt"):
        train(bank_of(), TRAINING, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="every so many steps, got 0"):
        train(bank_of(), TRAINING, tmp_path / "x.safetensors", every=0)


def test_what_a_kill_in_the_middle_of_a_write_left_is_cleared_away(tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    train(bank_of(), TRAINING, file)
    (tmp_path / "training.safetensors.part").write_bytes(b"half")
    train(bank_of(), TRAINING, file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
