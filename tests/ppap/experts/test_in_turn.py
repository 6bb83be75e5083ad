"""Experts trained one after another through one compiled step: as without it, up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.compute.tracing import Traced
from ppap.experts import compiled_step, in_turn
from ppap.experts.adapters.adapter import Adapter, full_adapter, ppap_adapter
from ppap.experts.adapters.parts import Biases, Full
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.compiled_step import Inputs, Run
from ppap.experts.in_turn import ExpertStep
from ppap.experts.objectives import Distillation, Objective, Supervision
from ppap.experts.training import Training
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import images, tiny_predictor

from .test_grouped import bank_of, transformer
from .test_training_files import DATA, Dropping, same, train

LABELS = torch.arange(len(DATA)) % 5
TRAINING = Training(steps=7, batch=6, learning_rate=1e-3)
Packages = list[Traced]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Packages:
    """What was compiled; in place of a compiler, a package is the traced graph itself."""
    made: Packages = []

    def package(traced: Traced, inputs: Inputs, folder: Path) -> tuple[Run, bool]:
        made.append(traced)
        return traced, True

    monkeypatch.setattr(compiled_step, "package", package)
    monkeypatch.setattr(in_turn, "can_compile", lambda: True)
    return made


def gradients(bank: ExpertBank, number: int) -> list[Tensor | None]:
    return [parameter.grad for parameter in bank.expert(number).parameters()]


CASES: dict[str, tuple[Callable[[], Predictor], Adapter]] = {
    "batch norms with statistics": (tiny_predictor, ppap_adapter(2, 2.0)),
    "everything": (tiny_predictor, Adapter((Full(),))),
    "transformer": (transformer, Adapter((Full(),))),
    "peft": (transformer, Adapter((Peft("lora", 2, 2.0, "qkv|proj"), Biases("")))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("really", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_one_graph_gives_every_experts_own_loss_gradient_and_statistics(
    case: str, really: bool, request: pytest.FixtureRequest
) -> None:
    packages: Packages = [] if really else request.getfixturevalue("packages")
    make, adapter = CASES[case]
    ours, theirs = (bank_of(make(), adapter, 3).train() for _ in range(2))
    step = ExpertStep(ours, ClassTask().supervised_loss)
    for number in (0, 1, 2, 1):
        x_t, labels = images(8, number), torch.arange(8) % 5
        found = step(ours.expert(number), x_t, labels)
        theirs.zero_grad()
        expected = ClassTask().supervised_loss(theirs.predict(x_t, number), labels)
        expected.backward()
        torch.testing.assert_close(found, expected.detach())
        torch.testing.assert_close(
            gradients(ours, number), gradients(theirs, number), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            ours.expert(number).statistics(), theirs.expert(number).statistics()
        )
    assert len(packages) == (not really)


@pytest.mark.parametrize("start", ["previous", "shared", "base", "own"])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_bank_is_trained_to_the_same_experts(
    start: Any, labelled: bool, packages: Packages
) -> None:
    training, losses, banks = replace(TRAINING, start=start), [], []
    objective: Objective = Supervision(LABELS) if labelled else Distillation(ClassTask())
    for compile in (False, True):
        bank = bank_of(tiny_predictor(), Adapter((Full(),)), 3)
        if start in ("previous", "shared"):
            bank.reset()
        losses.append(train(bank, training, None, objective=objective, compile=compile))
        banks.append(bank)
    assert len(packages) == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for mine, other in zip(banks[1].experts.buffers(), banks[0].experts.buffers(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)
    # Adam moves what has no gradient but rounding, such as a bias before a batch norm, either way.
    x, t = images(20, 3), torch.arange(20) * 50
    torch.testing.assert_close(banks[1](x, t), banks[0](x, t), atol=1e-2, rtol=1e-2)


class WithIdleLayer(nn.Module):
    """Two linear layers, and one that no prediction depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(4, 4)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def predictor_of(network: nn.Module) -> Predictor:
    torch.manual_seed(2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Predictor(network.eval(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("order", ["ascending", "together"])
def test_what_has_no_gradient_is_left_alone(order: Any, compile: bool, packages: Packages) -> None:
    """AdamW passes over a parameter without a gradient; one whose gradient is 0 it shrinks."""
    training = replace(TRAINING, start="base", order=order, weight_decay=0.5)
    bank = ExpertBank(predictor_of(WithIdleLayer()), 2, Adapter((Full(),)))
    before = [expert.tensors()["idle.weight"].clone() for expert in map(bank.expert, range(2))]
    train(bank, training, None, compile=compile)
    for number, value in enumerate(before):
        assert torch.equal(bank.expert(number).tensors()["idle.weight"], value)
        assert not torch.equal(bank.expert(number).tensors()["layers.1.weight"], before[0])


def test_gradients_are_laid_out_as_their_parameters(packages: Packages) -> None:
    """A graph's may be channels-last, and a fused optimiser does not look at strides."""
    layers = [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(8, 5)).eval()
    bank = ExpertBank(Predictor(network), 1, full_adapter()).train()
    ExpertStep(bank, ClassTask().supervised_loss)(bank.expert(0), images(8), torch.arange(8) % 5)
    assert packages
    fused, plain = bank, copy.deepcopy(bank)
    for ours, theirs in zip(fused.experts.parameters(), plain.experts.parameters(), strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    torch.optim.AdamW(fused.experts.parameters(), 0.1, fused=True).step()
    torch.optim.AdamW(plain.experts.parameters(), 0.1, foreach=False).step()
    for ours, theirs in zip(fused.experts.parameters(), plain.experts.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fault", ["error", "another loss", "a gradient", "statistics", "calls"])
def test_a_step_that_cannot_be_trusted_is_left_as_it_is(
    fault: str,
    packages: Packages,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def package(traced: Traced, inputs: Inputs, folder: Path) -> tuple[Run, bool]:
        def run(*arguments: Any) -> list[Tensor]:
            found = traced(*arguments)
            if fault == "error":
                raise RuntimeError("C++ compile error")
            place = {"another loss": 0, "a gradient": -1, "statistics": 1}[fault]
            found[place] = found[place] + 1.0
            return found

        return run, True

    class Counting(ClassTask):
        calls = 0

        def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
            object.__setattr__(self, "calls", self.calls + 1)
            return super().transfer_loss(student, teacher)

    task = Counting() if fault == "calls" else ClassTask()
    monkeypatch.setattr(compiled_step, "package", package)
    banks = [ExpertBank(tiny_predictor(), 2, ppap_adapter(2)) for _ in range(2)]
    for compile, bank in enumerate(banks):
        train(bank, TRAINING, None, objective=Distillation(task), compile=bool(compile))
    assert same(*banks)
    (line,) = [record.message for record in caplog.records if "not compiled" in record.message]
    assert line.startswith("the step is not compiled: ")


def test_a_network_that_draws_keeps_its_own_draws(
    packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package would draw other numbers; what is compiled at its first call need not."""
    graphs: list[Traced] = []
    monkeypatch.setattr(compiled_step, "just_in_time", lambda graph: graphs.append(graph) or graph)
    banks = []
    for compile in (False, True):
        bank = ExpertBank(predictor_of(Dropping()), 2, Adapter((Full(),)))
        torch.manual_seed(5)
        train(bank, TRAINING, None, compile=compile)
        banks.append(bank)
    assert len(graphs) == 1
    assert not packages
    for mine, other in zip(banks[1].experts.buffers(), banks[0].experts.buffers(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)


def test_targets_of_another_form_are_compared_by_the_step_itself(packages: Packages) -> None:
    bank = bank_of(tiny_predictor(), ppap_adapter(2), 2).train()
    step = ExpertStep(bank, lambda found, wanted: (found - wanted["like"]).square().mean())
    for count in (8, 6):
        x_t, like = images(count), torch.zeros(count, 5)
        expected = bank.predict(x_t, 0).detach().square().mean()
        assert float(step(bank.expert(0), x_t, {"like": like})) == pytest.approx(float(expected))
    assert len(packages) == 1


def test_a_step_whose_loss_is_changed_is_traced_anew_until_it_changes_too_often(
    packages: Packages,
) -> None:
    class Scaled:
        def __init__(self) -> None:
            self.factor = 1.0

        def loss(self, found: Tensor, labels: Tensor) -> Tensor:
            return self.factor * nn.functional.cross_entropy(found, labels)

    scaled = Scaled()
    bank = bank_of(predictor_of(WithIdleLayer()), Adapter((Full(),)), 1).train()
    step = ExpertStep(bank, scaled.loss)
    x_t, labels = images(8), torch.arange(8) % 5
    first = float(step(bank.expert(0), x_t, labels))
    for number in range(2, 11):
        scaled.factor = float(number)
        for _ in range(2):
            assert float(step(bank.expert(0), x_t, labels)) == pytest.approx(number * first)
    assert 2 <= len(packages) < 9


def test_without_a_compiler_steps_are_as_they_were(
    packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_turn, "can_compile", lambda: False)
    banks = [ExpertBank(tiny_predictor(), 2, ppap_adapter(2)) for _ in range(2)]
    for compile, bank in enumerate(banks):
        train(bank, TRAINING, None, compile=bool(compile))
    assert not packages
    assert same(*banks)
