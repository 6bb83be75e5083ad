"""All experts in one step equal each in a step of its own."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.compute.tracing import Traced
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.compiled_step import Inputs, Run
from ppap.experts.objectives import Distillation, Supervision
from ppap.experts.together import JointStep
from ppap.experts.transfer import transfer
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import images, tiny_predictor

from .test_bank import Recurrent, Several
from .test_grouped import bank_of, transformer
from .test_transfer import DATA, SCHEDULE, SHORT, divergence

EXPERTS, SHARE = 3, 4
LABELS = torch.arange(EXPERTS * SHARE) % 5
CASES = {
    "paper": (tiny_predictor, ppap_adapter(2, 2.0)),
    "full": (tiny_predictor, Adapter((Full(),))),
    "transformer": (transformer, Adapter((Biases(""), Lora(3, 2.0, "qkv|proj")))),
    "peft": (transformer, Adapter((Peft("lora", 2, 2.0, "qkv|proj"), Biases("")))),
}


def loss(predictions: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(predictions, labels)


@pytest.mark.parametrize(("case", "compile"), [*((case, False) for case in CASES), ("paper", True)])
def test_two_joint_steps_are_the_experts_own(case: str, compile: bool) -> None:
    make: Callable[[], Predictor]
    make, adapter = CASES[case]
    together, apart = (bank_of(make(), adapter, EXPERTS).train() for _ in range(2))
    joint = JointStep(together, loss, compile)
    ours = torch.optim.SGD(joint.parameters, 0.1)
    theirs = torch.optim.SGD(apart.experts.parameters(), 0.1)
    for step in range(2):
        x_t = images(EXPERTS * SHARE, step)
        chosen = torch.randperm(EXPERTS * SHARE, generator=torch.Generator().manual_seed(step))
        value = joint(x_t.view(EXPERTS, SHARE, *x_t.shape[1:]), LABELS[chosen])
        ours.step()
        parts = [
            loss(apart.predict(share, number), LABELS[picked])
            for number, (share, picked) in enumerate(
                zip(x_t.split(SHARE), chosen.split(SHARE), strict=True)
            )
        ]
        theirs.zero_grad()
        torch.stack(parts).sum().backward()
        theirs.step()
        assert value == pytest.approx(float(torch.stack(parts).detach().mean()), rel=1e-5)
    joint.write_back()
    for (name, mine), other in zip(
        together.experts.state_dict().items(), apart.experts.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("fault", ["another loss", "another gradient", "other statistics", "error"])
def test_a_compiled_step_that_gives_another_result_is_dropped(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And its trial leaves no trace: neither in the statistics nor in what is drawn next."""

    def wrong(graph: Traced, inputs: Inputs, folder: Path) -> tuple[Run, bool]:
        def run(*arguments: Any) -> list[Tensor]:
            value, *found = graph(*arguments)
            statistics = len(arguments[1])
            torch.rand(1)
            if fault == "error":
                raise RuntimeError("C++ compile error")
            if fault == "another loss":
                value = value * torch.nan
            elif fault == "another gradient":
                found[-1][-1] += 1.0  # of one expert's last tensor
            else:
                found[statistics - 1][-1] += 1
            return [value, *found]

        return run, True

    monkeypatch.setattr("ppap.experts.compiled_step.package", wrong)
    x_t = images(EXPERTS * SHARE, 0).view(EXPERTS, SHARE, 3, 8, 8)
    results = []
    for compile in (False, True):
        bank = bank_of(tiny_predictor(), ppap_adapter(2, 2.0), EXPERTS).train()
        torch.manual_seed(7)
        joint = JointStep(bank, loss, compile)
        value = joint(x_t, LABELS)
        assert bool(caplog.records) == compile
        joint.write_back()
        gradients = [parameter.grad for parameter in joint.parameters]
        results.append((value, gradients, bank.state_dict(), torch.rand(3)))
    torch.testing.assert_close(*results, atol=0, rtol=0)
    assert "the joint step is not compiled" in caplog.text


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_laid_out_as_their_parameters(case: str) -> None:
    """A fused optimiser goes through the memory of both, and does not look at strides."""
    make, adapter = CASES[case]
    joint = JointStep(bank_of(make(), adapter, EXPERTS).train(), loss)
    joint(images(EXPERTS * SHARE, 0).view(EXPERTS, SHARE, 3, 8, 8), LABELS)
    plain = copy.deepcopy(joint.parameters)
    for ours, theirs in zip(joint.parameters, plain, strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    torch.optim.AdamW(joint.parameters, 0.1, fused=True).step()
    torch.optim.AdamW(plain, 0.1, foreach=False).step()
    for ours, theirs in zip(joint.parameters, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


class Encoder(nn.Module):
    """PyTorch's own encoder, which in evaluation has a kernel that knows no gradient."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.patches, self.encoder = nn.Conv2d(3, 8, 2, 2), nn.TransformerEncoder(layer, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_experts_of_pytorchs_own_encoder_are_trained_together() -> None:
    bank = bank_of(Predictor(Encoder().eval()), Adapter((Lora(2, 2.0, "auto"),)), EXPERTS).train()
    joint = JointStep(bank, loss)
    x_t = images(EXPERTS * SHARE, 0)
    found = joint(x_t.view(EXPERTS, SHARE, 3, 8, 8), LABELS)
    parts = [bank.predict(part, number) for number, part in enumerate(x_t.split(SHARE))]
    assert found == pytest.approx(float(loss(torch.cat(parts), LABELS).detach()), rel=1e-5)


class Scaled:
    """A loss whose factor may be set, or rises by a ten thousandth with every call."""

    def __init__(self, rising: bool) -> None:
        self.factor, self.rising = 1.0, rising

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        self.factor += 1e-4 * self.rising
        return self.factor * loss(predictions, labels)


def test_a_joint_step_follows_a_loss_that_is_changed_between_steps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bank = bank_of(tiny_predictor(), ppap_adapter(2, 2.0), EXPERTS).train()
    x_t = images(EXPERTS * SHARE, 0).view(EXPERTS, SHARE, 3, 8, 8)
    scaled = Scaled(rising=False)
    joint = JointStep(bank, scaled.loss)
    first = joint(x_t, LABELS)
    for number in range(2, 10):  # more often than it is traced for
        scaled.factor = float(number)
        assert joint(x_t, LABELS) == pytest.approx(number * first)
    rising = Scaled(rising=True)
    joint = JointStep(bank, rising.loss)
    for _ in range(3):
        assert joint(x_t, LABELS) == pytest.approx(rising.factor * first, rel=1e-5)
    assert "the joint step is not traced: every call changes factor" in caplog.text


def test_training_together_brings_every_student_to_the_teacher() -> None:
    longer = replace(SHORT, steps=200, batch=16, start="base", order="together")
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Full(),)))
    before = divergence(bank.eval())
    losses = transfer(bank, SCHEDULE, DATA, Distillation(ClassTask()), longer)
    assert len(losses) == 2
    assert not bank.training
    assert divergence(bank) < 0.5 * before
    again = ExpertBank(tiny_predictor(), 2, Adapter((Full(),)))
    transfer(again, SCHEDULE, DATA, Distillation(ClassTask()), longer)
    for mine, other in zip(bank.experts.parameters(), again.experts.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_cannot_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="no previous one"):
        replace(SHORT, order="together")
    bank = ExpertBank(tiny_predictor(), 3)
    training = replace(SHORT, order="together", start="base", batch=8)
    with pytest.raises(ValueError, match="share batches evenly"):
        transfer(bank, SCHEDULE, DATA, Distillation(ClassTask()), training)


def test_a_network_that_knows_no_batch_of_weights_is_named_with_the_mend() -> None:
    bank = ExpertBank(Predictor(Recurrent()), 2, Adapter((Full(),)))
    training = replace(SHORT, order="together", start="base")
    with pytest.raises(ValueError, match=r"of Recurrent cannot .* choose order='ascending'"):
        transfer(bank, SCHEDULE, DATA, Distillation(ClassTask()), training)


class ReadLabels:
    """A task that reads its labels beside PyTorch."""

    def supervised_loss(self, student: Tensor, targets: Tensor) -> Tensor:
        rows = enumerate(targets.tolist())
        return -torch.stack([student.log_softmax(1)[row, label] for row, label in rows]).mean()


def test_a_loss_that_reads_its_targets_is_named_with_the_mend() -> None:
    """Every step would be trained on the labels of the first."""
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Full(),)))
    training = replace(SHORT, order="together", start="base")
    labelled = Supervision(torch.arange(len(DATA)) % 5, ReadLabels())
    with pytest.raises(ValueError, match=r"reads values of its input by tolist.*'ascending'"):
        transfer(bank, SCHEDULE, DATA, labelled, training)
    in_turn = transfer(bank, SCHEDULE, DATA, labelled, replace(SHORT, steps=2))
    assert all(map(math.isfinite, in_turn))


class Drawing(nn.Module):
    """Drops what it predicts by Python's random numbers, as a stochastic depth may."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))) * (random.random() < 0.5)


def test_a_network_that_draws_by_python_draws_anew_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ppap.experts.in_turn.can_compile", lambda: True)
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        bank = ExpertBank(Predictor(Drawing()), 2, Adapter((Full(),)))
        random.seed(0)
        losses.append(transfer(bank, SCHEDULE, DATA, None, SHORT, compile=compile))
    assert losses[0] == losses[1]
    training = replace(SHORT, order="together", start="base")
    with pytest.raises(ValueError, match=r"numbers of Python's.* choose order='ascending'"):
        transfer(bank, SCHEDULE, DATA, None, training)


@dataclass(frozen=True)
class Scores:
    """Compares one of several predictions."""

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        return ClassTask().transfer_loss(student["scores"], teacher["scores"])


def test_predictions_of_several_tensors_are_trained_together() -> None:
    training = replace(SHORT, order="together", start="base")
    found = []
    for network, task in ((Several(), Scores()), (tiny_predictor().network, ClassTask())):
        bank = ExpertBank(Predictor(network), 2, ppap_adapter(2))
        found.append(transfer(bank, SCHEDULE, DATA, Distillation(task), training))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
