"""Training an expert bank: it learns, it is reproducible, its arms differ as named."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from ppap.compute import precision
from ppap.compute.precision import PrecisionError
from ppap.diffusion.schedule import linear_schedule
from ppap.experts import compiled_step, in_turn
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Supervision
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.images import from_uint8, to_uint8
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import images, tiny_predictor

SHORT = Training(steps=10, batch=8, learning_rate=1e-2)
SCHEDULE = linear_schedule()
DATA = to_uint8(images(64, 5).clamp(-1, 1))


def trained(training: Training, count: int = 2, adapter: Adapter | None = None) -> ExpertBank:
    bank = ExpertBank(tiny_predictor(), count, adapter or ppap_adapter(2, 2.0))
    transfer(bank, SCHEDULE, DATA, Distillation(ClassTask()), training)
    return bank


def state(bank: ExpertBank, number: int) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in bank.expert(number).tensors().values()])


def divergence(bank: ExpertBank) -> float:
    """Mean transfer loss at low noise, on fixed noise."""
    x_0 = from_uint8(DATA)
    t = torch.arange(64)
    x_t = SCHEDULE.add_noise(x_0, t, images(64, 9))
    with torch.no_grad():
        return float(ClassTask().transfer_loss(bank(x_t, t), bank.teacher_prediction(x_0)))


def test_transfer_brings_the_student_to_the_teacher() -> None:
    before = divergence(ExpertBank(tiny_predictor(), 2, Adapter((Full(),))).eval())
    bank = trained(replace(SHORT, steps=200), adapter=Adapter((Full(),)))
    assert divergence(bank) < 0.5 * before


def test_labels_are_learned() -> None:
    labels = torch.arange(64) % 5
    bank = ExpertBank(tiny_predictor(), 1, Adapter((Full(),)))
    longer = replace(SHORT, steps=300, batch=32)
    early = transfer(bank, SCHEDULE, DATA, Supervision(labels), SHORT)
    late = transfer(bank, SCHEDULE, DATA, Supervision(labels), longer)
    assert late[0] < early[0]


def test_the_same_seed_trains_the_same_bank() -> None:
    assert torch.equal(state(trained(SHORT), 1), state(trained(SHORT), 1))
    other = trained(replace(SHORT, seed=1))
    assert not torch.equal(state(trained(SHORT), 1), state(other, 1))


def test_the_predictor_is_left_as_it_was() -> None:
    bank = trained(SHORT)
    reference = tiny_predictor().state_dict()
    assert all(torch.equal(v, reference[k]) for k, v in bank.predictor.state_dict().items())
    assert not bank.training


@pytest.mark.parametrize("order", ["ascending", "together"])
def test_what_layers_write_in_training_is_not_left_in_the_predictor(
    order: Any, tmp_path: Path
) -> None:
    predictor = tiny_predictor()
    nn.utils.parametrizations.spectral_norm(predictor.network.fc)
    whole = copy.deepcopy(predictor)
    bank = ExpertBank(predictor, 2, ppap_adapter(2, layers="conv1"))
    transfer(bank, SCHEDULE, DATA, training=replace(SHORT, start="base", order=order))
    bank.train()(images(4), torch.tensor([0, 999, 1, 998]))  # in one pass
    now = predictor.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in whole.state_dict().items())
    bank.save(tmp_path)
    ExpertBank.load(tmp_path, whole)


@pytest.mark.parametrize(
    ("order", "compile"), [("ascending", False), ("ascending", True), ("together", False)]
)
def test_what_is_frozen_in_the_experts_stays(
    order: Any, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_turn, "can_compile", lambda: True)
    monkeypatch.setattr(compiled_step, "package", lambda traced, *_: (traced, True))
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2))
    for name, parameter in bank.experts.named_parameters():
        parameter.requires_grad_("lora" in name)
    before = {name: tensor.clone() for name, tensor in bank.experts.named_parameters()}
    training = replace(SHORT, start="base", order=order)
    transfer(bank, SCHEDULE, DATA, training=training, compile=compile)
    for name, tensor in bank.experts.named_parameters():
        assert torch.equal(tensor, before[name]) == ("lora" not in name), name
    bank.expert(1).requires_grad_(False)
    with pytest.raises(ValueError, match=r"expert 1 is frozen; .*requires_grad_\(True\)"):
        transfer(bank, SCHEDULE, DATA, training=training)
    next(bank.expert(1).parameters()).requires_grad_()
    with pytest.raises(ValueError, match="the same tensors frozen"):
        transfer(bank, SCHEDULE, DATA, training=replace(training, order="together"))


def test_an_expert_starts_from_the_one_before_it() -> None:
    # One step in all, given to the last expert: what it starts from is what the others hold.
    chained = trained(replace(SHORT, steps=2))
    based = trained(replace(SHORT, steps=2, start="base"))
    assert torch.equal(state(chained, 0), state(based, 0))
    fresh = ExpertBank(tiny_predictor(), 2, ppap_adapter(2, 2.0))
    # AdamW's first step moves every tensor by at most the rate, decay aside.
    limit = 1.2 * SHORT.learning_rate
    assert (state(chained, 1) - state(chained, 0)).abs().max() < limit
    assert (state(based, 1) - state(fresh, 1)).abs().max() < limit
    assert (state(based, 1) - state(based, 0)).abs().max() > limit


def test_a_shared_start_is_trained_on_all_noise_and_then_copied() -> None:
    shared = trained(replace(SHORT, steps=4, start="shared", shared_share=0.5))
    assert (state(shared, 1) - state(shared, 0)).abs().max() < 2.5 * SHORT.learning_rate


@pytest.mark.parametrize("start", ["previous", "base", "shared"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_budget_is_kept_whatever_the_start(start: str, count: int) -> None:
    steps: list[int] = []
    bank = ExpertBank(tiny_predictor(), count, ppap_adapter(2))
    training = replace(SHORT, steps=11, start=start)

    def progress(done: int, total: int, loss: float) -> None:
        assert total == 11
        assert loss > 0
        steps.append(done)

    transfer(bank, SCHEDULE, DATA, training=training, progress=progress)
    assert steps == list(range(1, 12))


def test_descending_order_trains_high_noise_first() -> None:
    # Two steps, one expert each: whoever comes first starts from the fresh adapter.
    fresh = ExpertBank(tiny_predictor(), 2, ppap_adapter(2, 2.0))
    down = trained(replace(SHORT, steps=2, order="descending"))
    limit = 1.2 * SHORT.learning_rate
    assert (state(down, 1) - state(fresh, 1)).abs().max() < limit
    assert (state(down, 0) - state(down, 1)).abs().max() < limit
    bank = ExpertBank(tiny_predictor(), 3, ppap_adapter(2, 2.0))
    losses = transfer(bank, SCHEDULE, DATA, training=replace(SHORT, order="descending"))
    assert len(losses) == 3


def test_a_kept_optimiser_goes_on_where_it_was() -> None:
    """The first expert trains alike either way; the second differs by its momentum."""
    fresh, kept = (trained(replace(SHORT, keep_optimiser=k)) for k in (False, True))
    assert torch.equal(state(fresh, 0), state(kept, 0))
    assert not torch.equal(state(fresh, 1), state(kept, 1))


def test_raw_students_see_unnormalised_images() -> None:
    bank = ExpertBank(tiny_predictor(), 1, ppap_adapter(2), normalised=False).eval()
    x = images(4, 1).clamp(-1, 1)
    expected = bank.predictor.network(x)
    torch.testing.assert_close(bank.predict(x, 0), expected)
    assert not torch.allclose(bank.teacher_prediction(x), expected)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 3),
        ({"start": "base"}, 3),
        ({"order": "descending"}, 3),
        ({"start": "shared"}, 5),
        ({"start": "shared", "order": "together", "shared_share": 0.2}, 3),
    ],
)
def test_no_expert_is_left_without_a_step(options: dict[str, Any], least: int) -> None:
    def losses(steps: int) -> list[float]:
        bank = ExpertBank(tiny_predictor(), 3, ppap_adapter(2))
        training = replace(SHORT, steps=steps, batch=3, **options)
        return transfer(bank, SCHEDULE, DATA, training=training)

    assert all(map(math.isfinite, losses(least)))
    with pytest.raises(ValueError, match=f"^{least - 1} steps.* are too few: each of 3 experts"):
        losses(least - 1)


def test_mistakes_are_named() -> None:
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2), steps=500)
    with pytest.raises(ValueError, match="500"):
        transfer(bank, SCHEDULE, DATA, Distillation(ClassTask()), SHORT)
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2))
    with pytest.raises(ValueError, match=r"500 timesteps are \[0, 2, 4\] \.\.\. 999.*0 to 499"):
        transfer(bank, SCHEDULE.respace("500"), DATA)
    with pytest.raises(ValueError, match="at least one image"):
        transfer(bank, SCHEDULE, DATA[:0], Distillation(ClassTask()), SHORT)
    with pytest.raises(ValueError, match="as many labels"):
        transfer(bank, SCHEDULE, DATA, Supervision(torch.zeros(3).long()), SHORT)
    with pytest.raises(ValueError, match="unknown start"):
        replace(SHORT, start="next")
    with pytest.raises(ValueError, match="unknown order"):
        replace(SHORT, order="upwards")
    with pytest.raises(ValueError, match="unknown precision"):
        replace(SHORT, precision="fp64")
    with pytest.raises(ValueError, match="shared_share"):
        replace(SHORT, shared_share=1.0)
    with pytest.raises(ValueError, match="steps"):
        replace(SHORT, steps=0)


@pytest.mark.parametrize(("start", "order"), [("previous", "ascending"), ("base", "together")])
def test_bfloat16_trains_nearly_the_same_on_float32_weights(
    start: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("native_bfloat16", "quick_bfloat16"):
        monkeypatch.setattr(precision, name, lambda: True)
    plain = replace(SHORT, start=start, order=order)
    exact, near = trained(plain), trained(replace(plain, precision="bf16"))
    assert state(near, 1).dtype == torch.float32
    assert not torch.equal(state(near, 1), state(exact, 1))
    assert divergence(near.eval()) == pytest.approx(divergence(exact.eval()), rel=0.05)
    assert torch.equal(state(trained(replace(plain, precision="auto")), 1), state(near, 1))


@pytest.mark.parametrize(
    ("start", "order", "compile"),
    [
        ("previous", "ascending", False),
        ("previous", "ascending", True),
        ("base", "together", False),
    ],
)
def test_what_is_compared_with_labels_is_float32(
    start: str, order: str, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("native_bfloat16", "quick_bfloat16"):
        monkeypatch.setattr(precision, name, lambda: True)
    monkeypatch.setattr(in_turn, "can_compile", lambda: False)  # the same step, and quicker
    seen = []

    class Seen(ClassTask):
        def supervised_loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
            seen.append((predictions.dtype, (predictions @ predictions.T).dtype))
            return super().supervised_loss(predictions, targets)

    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2, 2.0))
    training = replace(SHORT, steps=2, start=start, order=order, precision="bf16")
    labels = Supervision(torch.arange(64) % 5, Seen())
    transfer(bank, SCHEDULE, DATA, labels, training, compile=compile)
    assert {*seen} == {(torch.float32, torch.float32)}


def test_without_native_bfloat16_training_is_refused_or_chooses_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda: False)
    with pytest.raises(PrecisionError, match="would emulate bfloat16"):
        trained(replace(SHORT, precision="bf16"))
    assert torch.equal(
        state(trained(replace(SHORT, precision="auto")), 1), state(trained(SHORT), 1)
    )
    (line,) = caplog.messages
    assert "no native bfloat16: computing in float32" in line


def test_bytes_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert to_uint8(torch.tensor([-2.0, 2.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(torch.zeros(2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"denoiser": torch.nn.Identity()}, r"needs a ppap.Denoiser\(.*or its schedule, got Ident"),
        ({"images": "synthetic/"}, r"got the name 'synthetic/'; ppap.synthesize\(denoiser, count"),
        ({"objective": Training(9)}, r"got Training; name it: training="),
        ({"objective": "labels"}, r"ppap.Supervision\(labels\), got str$"),
        ({"training": 300}, "training is a ppap.Training, got int"),
        ({"images": DataLoader([DATA])}, "got DataLoader; stack what a data set"),
        ({"images": None}, "got NoneType"),
    ],
)
def test_what_is_in_anothers_place_is_named(given: dict[str, Any], message: str) -> None:
    usual = {"bank": ExpertBank(tiny_predictor(), 2), "denoiser": linear_schedule()}
    with pytest.raises(TypeError, match=message):
        transfer(**{**usual, "images": to_uint8(images(4)), **given})


class Waves(nn.Module):
    """A filter by complex weights, as those of Fourier neural operators."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 8, 5, dtype=torch.complex64))
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        filtered = torch.fft.irfft2(torch.fft.rfft2(x) * self.filter)
        found: Tensor = self.fc(filtered.tanh().mean((2, 3)))
        return found


@pytest.mark.parametrize("order", ["ascending", "together"])
def test_complex_weights_are_trained(order: Any) -> None:
    torch.manual_seed(0)
    bank = ExpertBank(Predictor(Waves()), 1, Adapter((Full(),)))
    training = Training(1, 4, 1e-2, weight_decay=0, start="base", order=order)
    before = bank.expert(0).tensors()["filter"].detach().clone()
    transfer(bank, SCHEDULE, DATA, training=training)
    moved = torch.view_as_real(bank.expert(0).tensors()["filter"].detach() - before)[:, :, 1:4]
    # Adam's first step is the learning rate in each number, whatever its gradient.
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-2), rtol=1e-2, atol=0)


class Probed(nn.Module):
    """A head on features that are computed without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(3, 64, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.conv1(x).tanh().mean((2, 3))
        found: Tensor = self.fc(features)
        return found


@pytest.mark.parametrize("order", ["ascending", "together"])
def test_what_no_gradient_reaches_is_told(order: Any, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(2, 4, start="base", order=order)
    bank = ExpertBank(Predictor(Probed()), 2, ppap_adapter(2, 2.0, "conv1"))
    with pytest.raises(ValueError, match="no gradient reaches what is trained of Probed"):
        transfer(bank, SCHEDULE, DATA, training=training)
    bank = ExpertBank(Predictor(Probed()), 2, Adapter((Full(),)))
    caplog.clear()
    transfer(bank, SCHEDULE, DATA, training=training)
    (line,) = (record.getMessage() for record in caplog.records)
    assert "no gradient reaches 2 of 4 tensors, 85 % of what an expert trains" in line
    assert "conv1.weight, conv1.bias" in line


class Recomputing(nn.Module):
    """Its body is computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.body, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        features: Any = checkpoint(self.body, self.stem(x).tanh(), use_reentrant=self.reentrant)
        found: Tensor = self.fc(features.tanh().mean((2, 3)))
        return found


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_by_other_weights_is_refused(reentrant: bool) -> None:
    bank = ExpertBank(Predictor(Recomputing(reentrant)), 1, Adapter((Full(),)))
    with pytest.raises((ValueError, RuntimeError), match="checkpoint"):
        transfer(bank, SCHEDULE, DATA, training=Training(2, 4, start="base"))


def test_a_tensor_that_is_frozen_stays_as_it_is() -> None:
    bank = ExpertBank(tiny_predictor(), 1, Adapter((Full(),)))
    before = {name: value.detach().clone() for name, value in bank.expert(0).tensors().items()}
    bank.expert(0).tensors()["fc.weight"].requires_grad_(False)
    transfer(bank, SCHEDULE, DATA, training=Training(2, 4, start="base"))
    after = bank.expert(0).tensors()
    assert [name for name in before if torch.equal(before[name], after[name])] == ["fc.weight"]
