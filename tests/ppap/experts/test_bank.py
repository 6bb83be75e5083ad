"""An expert bank: routing, sharing, training apart from evaluation."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.guide import State
from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.layers import AUTO
from ppap.experts.adapters.parts import Biases, Full
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.peft_folders import save_peft
from ppap.experts.together import JointStep
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.images import to_uint8
from ppap.predictors.predictor import Predictor
from ppap.predictors.softplus import with_softplus
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.segmentation import SegmentationTask
from tests.ppap.networks import images, scrambled, tiny_predictor

ADAPTERS = [ppap_adapter(2, 2.0), Adapter((Full(),))]


TIMESTEPS = torch.tensor([999, 0, 200, 199, 400, 799, 800])


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


@pytest.mark.parametrize("adapter", [Adapter((Full(),)), ppap_adapter(2, layers="auto")])
def test_layers_may_have_slashes_in_their_names(adapter: Adapter, tmp_path: Path) -> None:
    banks = []
    for name in ("conv1/7x7", "conv1_7x7"):
        torch.manual_seed(0)
        layers = {name: nn.Conv2d(3, 6, 7), "flat": nn.Flatten(), "fc": nn.Linear(24, 5)}
        network = nn.Sequential()
        for key, layer in layers.items():
            network.add_module(key, layer)
        banks.append(scrambled(ExpertBank(Predictor(network), 2, adapter)))
    bank, twin = banks
    assert "conv1/7x7.bias" in bank.expert(0).tensors()
    assert torch.equal(bank(images(7), TIMESTEPS), twin(images(7), TIMESTEPS))
    bank.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, bank.predictor)
    assert torch.equal(loaded(images(7), TIMESTEPS), twin(images(7), TIMESTEPS))


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


def test_a_bank_has_its_predictors_task_unless_it_is_given_another() -> None:
    predictor = Predictor(tiny_predictor().network, task=SegmentationTask(2.0))
    adapter = ppap_adapter(2)
    assert ExpertBank(predictor, 1, adapter).task == SegmentationTask(2.0)
    assert ExpertBank(predictor, 1, adapter, DepthTask()).task == DepthTask()


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (lambda: nn.DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(192, 5))), "module within"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "call it once"),
        (nn.Flatten, "no weights"),
    ],
)
def test_networks_that_cannot_run_under_experts_are_refused_with_the_mend(
    make: Callable[[], nn.Module], mend: str
) -> None:
    with pytest.raises(ValueError, match=mend):
        ExpertBank(Predictor(make()), 2)


def test_a_network_that_is_not_wrapped_and_an_adapter_that_is_none_are_named() -> None:
    network = tiny_predictor().network
    for given in (network, lambda x: x):
        with pytest.raises(TypeError, match=r"adapts a ppap.Predictor\(network, mean, std\)"):
            ExpertBank(given, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ppap_adapter\(rank=16\), got 'lora'$"):
        ExpertBank(tiny_predictor(), 2, "lora")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"put it into ppap.Adapter\(\(part,\)\)"):
        ExpertBank(tiny_predictor(), 2, Biases())  # type: ignore[arg-type]
    for parts in ((), (Biases,), Biases(), "lora"):
        with pytest.raises(TypeError, match=r"parts of an adapter are such as \(ppap.Biases"):
            Adapter(parts)  # type: ignore[arg-type]


def test_timesteps_are_as_many_as_images_or_one_for_all() -> None:
    bank, x = scrambled(ExpertBank(tiny_predictor(), 5, ppap_adapter(2))), images(7)
    assert bank(x[:0], TIMESTEPS[:0]).shape == (0, 5)
    assert torch.equal(bank(x, TIMESTEPS[:1]), bank(x, TIMESTEPS[:1].expand(7)))
    for wrong in (TIMESTEPS[:2], TIMESTEPS[:0], torch.tensor(5), TIMESTEPS[:, None]):
        with pytest.raises(ValueError, match=r"7 images have timesteps \(7,\), got"):
            bank(x, wrong)


class Recurrent(nn.Module):
    """Reads images row by row; PyTorch keeps weak references to its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.fc = nn.LSTM(24, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rows(x.transpose(1, 2).flatten(2))[0][:, -1])


@pytest.mark.parametrize("graph", [torch.export.export, torch.jit.trace])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_merged_predictor_is_exported_and_not_the_bank_that_routes(graph: Any) -> None:
    bank, x = scrambled(ExpertBank(tiny_predictor(), 5)), images(2)
    with pytest.raises(RuntimeError, match=r"export what bank.merge\(expert\) gives"):
        graph(bank, (x, torch.tensor([500, 900])))
    expected = bank(x, torch.tensor([500]))
    found = graph(bank.merge(2), (x,))
    made = found.module() if graph is torch.export.export else found
    torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda bank: pickle.loads(pickle.dumps(bank))])
def test_a_bank_of_a_recurrent_network_runs_its_own_weights_and_is_copied(
    again: Callable[[ExpertBank], ExpertBank],
) -> None:
    torch.manual_seed(0)
    bank = scrambled(ExpertBank(Predictor(Recurrent()), 5, Adapter((Full(),))))
    single = copy.deepcopy(bank.predictor)
    single.network.load_state_dict(bank.expert(1).tensors())
    torch.testing.assert_close(bank(images(7), TIMESTEPS)[2], single(images(7))[2])
    twin = again(bank)
    assert torch.equal(twin(images(7), TIMESTEPS), bank(images(7), TIMESTEPS))
    twin.predictor.network.fc = nn.Identity()  # which is noticed in the copy, too
    assert twin.predict(images(2), 0).shape == (2, 7)


class Keeping(nn.Module):
    """A hook keeps what its first layer gives, with its graph in training."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.act = tiny_predictor().network, nn.ReLU()
        self.kept: list[Tensor] = []
        self.network.get_submodule("conv1").register_forward_hook(self.keep)

    def keep(self, layer: nn.Module, given: Any, found: Tensor) -> None:
        self.kept[:] = [found]

    def forward(self, x: Tensor) -> Any:
        return self.act(self.network(x))


@pytest.mark.parametrize("adapter", [ppap_adapter(2, 2.0), Adapter((Peft("lora", 2, 2.0, AUTO),))])
@pytest.mark.parametrize("mode", ["trained", "used"])
def test_a_bank_whose_network_keeps_what_it_computed_is_copied(
    adapter: Adapter, mode: str, tmp_path: Path
) -> None:
    bank = ExpertBank(Predictor(Keeping()), 2, adapter)
    bank.train().predict(images(2), 0).sum().backward()
    if mode == "used":
        scrambled(bank)
        bank.predict(images(2).requires_grad_(), 1)
    twin = copy.deepcopy(bank)
    for number in range(2):
        expected = bank.eval().predict(images(3), number)
        torch.testing.assert_close(twin.eval().predict(images(3), number), expected)
    with torch.no_grad():
        for parameter in twin.experts.parameters():
            parameter.zero_()
    torch.testing.assert_close(bank.predict(images(3), 1), expected)
    bank.train().predict(images(2), 0)
    smooth = with_softplus(bank)
    assert smooth.eval().predict(images(3), 1).gt(bank.eval().predict(images(3), 1)).all()
    bank.train().predict(images(2), 0)
    save_peft(bank, tmp_path)
    assert (tmp_path / "expert_1").is_dir()


class Several(nn.Module):
    """Predicts a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_predictor().network

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor]]:
        scores = self.network(x)
        return {"scores": scores, "maps": (x[:, 0] * scores[:, :1, None],)}


@dataclass
class Found:
    scores: Tensor


class Beside(nn.Module):
    """Predicts scores, and something else."""

    def __init__(self, beside: str) -> None:
        super().__init__()
        self.network, self.beside = tiny_predictor().network, beside

    def forward(self, x: Tensor) -> Any:
        scores = self.network(x)
        match self.beside:
            case "nothing":
                return scores, None, "logits"
            case "a mean":
                return scores, scores.square().mean()
            case "weights":
                return scores, self.network.fc.weight
            case _:
                return Found(scores)


@dataclass(frozen=True)
class First(ClassTask):
    """Of several predictions, the first."""

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        return super().transfer_loss(student[0], teacher[0])


@pytest.mark.parametrize("order", ["ascending", "together"])
def test_predictions_may_hold_none_and_words(order: Any) -> None:
    bank = ExpertBank(Predictor(Beside("nothing"), task=First()), 2, ppap_adapter(2))
    scores, nothing, word = bank.eval()(images(7), TIMESTEPS)
    expected = bank.predictor.network.network(bank.predictor.prepare(images(7)))
    torch.testing.assert_close(scores, expected)
    assert (nothing, word) == (None, "logits")
    training = Training(2, 4, start="base", order=order)
    losses = transfer(bank, linear_schedule(), to_uint8(images(8).clamp(-1, 1)), training=training)
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize(
    ("beside", "got"), [("a mean", r"a tensor \(\)"), ("weights", "a tensor"), ("", "Found")]
)
def test_what_has_no_row_for_each_image_is_not_mixed(beside: str, got: str) -> None:
    bank = ExpertBank(Predictor(Beside(beside), task=First()), 2, ppap_adapter(2)).eval()
    with pytest.raises(TypeError, match=f"put together from tensors.* got {got}"):
        bank(images(7), TIMESTEPS)
    assert bank.teacher_prediction(images(2)) is not None
    bank.train()
    step = JointStep(bank, lambda student, _: student[0].square().mean())
    if beside == "":
        with pytest.raises(TypeError, match=r"compiled, or of all experts together.* got Found"):
            step(torch.stack([images(2), images(2)]), images(4))
    else:
        assert math.isfinite(step(torch.stack([images(2), images(2)]), images(4)))


def test_predictions_of_several_tensors_are_mixed_in_their_form() -> None:
    bank = scrambled(ExpertBank(Predictor(Several()), 5, ppap_adapter(2)))
    x = images(7)
    together = bank(x, TIMESTEPS)
    for i in range(7):
        alone = bank(x[i : i + 1], TIMESTEPS[i : i + 1])
        torch.testing.assert_close(together["scores"][i], alone["scores"][0])
        torch.testing.assert_close(together["maps"][0][i], alone["maps"][0][0])
