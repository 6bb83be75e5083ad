"""What a graph holds besides weights is what it is now: attributes, hooks, layers, tasks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import Step
from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.guidance.guides import Guide, LikelihoodGuide, naive_guide
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.fast.test_identity import drawn
from tests.ppap.fast.test_path import COUNT, TARGETS, learned_denoiser
from tests.ppap.networks import SHAPE

SCALE = 300.0


class Setting:
    gain = 1.0


class Classifier(nn.Module):
    """Of images, or of noisy images; it depends on attributes of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.act: nn.Module = nn.Tanh()
        self.temperature = 1.0
        self.setting = Setting()

    def forward(self, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
        found = self.act(self.norm(self.conv(x))).mean((2, 3))
        return self.setting.gain * found / self.temperature


def cooled(network: Classifier) -> None:
    network.temperature = 0.2


def raised(network: Classifier) -> None:
    network.setting.gain = 4.0


def swapped(network: Classifier) -> None:
    network.act = nn.Sequential(nn.Tanh(), nn.Hardtanh(-0.1, 0.1))


def hooked(network: Classifier) -> None:
    network.conv.register_forward_hook(lambda layer, x, out: 3.0 * out)


CHANGES = (cooled, raised, swapped, hooked)


def guide_around(kind: str, network: nn.Module) -> Guide:
    match kind:
        case "predictor":
            return naive_guide(Predictor(network.eval()), ClassTask(), TARGETS, SCALE)
        case "bank":
            bank = ExpertBank(Predictor(network.eval()), 2, Adapter((Biases(),)))
            return bank.guide(TARGETS, SCALE)
        case _:
            return LikelihoodGuide(network.eval(), ClassTask(), TARGETS, SCALE)


@pytest.mark.parametrize("kind", ["predictor", "bank", "noise-aware"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_attributes_that_change_between_calls_are_noticed(
    kind: str, change: Callable[[Classifier], None]
) -> None:
    network, path = Classifier(), FastPath(learned_denoiser(), COUNT, compile=False)
    guide = guide_around(kind, network)
    before = drawn(path, guide)
    change(network)
    assert (drawn(path, guide) - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["predictor", "bank", "noise-aware"])
def test_hooks_of_all_modules_between_calls_are_noticed(kind: str) -> None:
    network, path = Classifier(), FastPath(learned_denoiser(), COUNT, compile=False)
    guide = guide_around(kind, network)
    before = drawn(path, guide)
    hooked = register_module_forward_hook(
        lambda layer, x, out: 3.0 * out if isinstance(layer, nn.Conv2d) else None
    )
    try:
        during = drawn(path, guide)
    finally:
        hooked.remove()
    assert (during - before).abs().max() > 1e-3
    torch.testing.assert_close(drawn(path, guide), before, atol=1e-5, rtol=0)


def test_a_number_that_changes_within_a_trajectory_is_noticed() -> None:
    network, path = Classifier(), FastPath(learned_denoiser(), COUNT, compile=False)
    guide = guide_around("noise-aware", network)

    def cool(step: Step) -> None:
        network.temperature = 1.0 / (step.number + 2)

    images = []
    for fast in (path, False):
        network.temperature = 1.0
        images.append(sample(path.denoiser, COUNT, guide, DDIM(4), fast=fast, on_step=cool))
    torch.testing.assert_close(*images, atol=1e-3, rtol=0)


class SharpTask(ClassTask):
    """A task of one's own, with an attribute to turn."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "sharpness", [1.0])

    def __hash__(self) -> int:
        return 1

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        return super().log_likelihood(prediction * self.sharpness[0], targets)  # type: ignore[attr-defined]


def test_attributes_of_a_task_are_noticed() -> None:
    task, path = SharpTask(), FastPath(learned_denoiser(), COUNT, compile=False)
    guide = LikelihoodGuide(Classifier().eval(), task, TARGETS, SCALE)
    before = drawn(path, guide)
    task.sharpness[0] = 5.0  # type: ignore[attr-defined]
    assert (drawn(path, guide) - before).abs().max() > 1e-3


def test_whether_a_bank_shows_normalised_images_is_noticed() -> None:
    predictor = Predictor(Classifier().eval(), (0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
    bank, path = ExpertBank(predictor, 2, Adapter((Biases(),))), None
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    before = drawn(path, bank.guide(TARGETS, SCALE))
    bank.normalised = False
    assert (drawn(path, bank.guide(TARGETS, SCALE)) - before).abs().max() > 1e-3


class Shrinking(nn.Module):
    """A denoiser with an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.share = 0.5

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.share * self.layer(x)


def test_attributes_of_the_denoiser_are_noticed() -> None:
    network = Shrinking()
    path = FastPath(Denoiser(network, linear_schedule(), SHAPE).eval(), COUNT, compile=False)
    before = drawn(path, None)
    network.share = 0.9
    assert (drawn(path, None) - before).abs().max() > 1e-3


class Baked(FastPath):
    """Its graphs hold the values of the moment, as compiled ones do."""

    def _compiled(self, module: Any, arguments: Any, freezing: bool = False) -> Any:
        return copy.deepcopy(module)


class Weighing:
    """A task with a network and a tensor of its own."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        self.network = nn.Sequential(nn.Sequential(nn.Linear(5, 1)))
        self.weights = torch.ones(1)

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        return (self.weights * self.network(prediction)).sum(1) * targets


class WeighingModule(nn.Module):
    """A task that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.arange(5.0))

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        return (prediction * self.weights).sum(1) * targets


@torch.no_grad()
def turned(*weights: Tensor) -> None:
    for weight in weights:
        weight.data.copy_(-2.0 * weight)  # as averages of weights are written


def test_weights_that_a_graph_holds_as_constants_are_noticed() -> None:
    network, aim = Shrinking(), torch.ones(1)
    path = Baked(Denoiser(lambda x, t: 1.0 * network(x, t), linear_schedule(), SHAPE), COUNT, False)
    plain, module = Weighing(), WeighingModule()
    guides: list[tuple[Guide | None, list[Tensor]]] = [
        (None, list(network.parameters())),
        (naive_guide(Predictor(Classifier()), plain, aim, SCALE), [plain.weights]),
        (
            naive_guide(Predictor(Classifier()), plain, aim, SCALE),
            list(plain.network.parameters()),
        ),
        (naive_guide(Predictor(Classifier()), module, aim, SCALE), list(module.parameters())),
    ]
    for guide, weights in guides:
        before = drawn(path, guide)
        turned(*weights)
        assert (drawn(path, guide) - before).abs().max() > 1e-3


def test_constants_that_stay_are_traced_once() -> None:
    network, module = Shrinking(), WeighingModule()
    path = Baked(Denoiser(lambda x, t: 1.0 * network(x, t), linear_schedule(), SHAPE), COUNT, False)
    guide = naive_guide(Predictor(Classifier()), module, torch.ones(1), SCALE)

    def graphs() -> list[object]:
        ((gradient, _),) = path._gradients.terms(guide, 500) or ()
        return [*path._predict._graphs.values(), *gradient._compiled.values()]

    drawn(path, guide)
    first = graphs()
    drawn(path, guide)
    assert graphs() == first
    turned(module.weights)
    drawn(path, guide)
    second = graphs()
    assert second[0] is first[0]
    assert second[1] is not first[1]
    drawn(path, guide)
    assert graphs() == second


class Keeping(Classifier):
    """Leaves its input and that input's size behind, or counts its calls."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.counts, self.calls, self.size = counts, 0, ()
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
        self.kept["x"], self.size = x, tuple(x.shape)
        self.calls += self.counts
        return super().forward(x, timesteps)


def test_what_a_model_leaves_behind_compiles_nothing_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    path = FastPath(learned_denoiser(), COUNT, compile=False)
    guide = guide_around("noise-aware", Keeping(counts=False))
    drawn(path, guide)
    ((gradient, _),) = path._gradients.terms(guide, 500) or ()
    compiled = dict(gradient._compiled)
    drawn(path, guide)
    assert gradient._compiled == compiled
    assert None not in compiled.values()
    assert not caplog.records
    drawn(path, guide_around("noise-aware", Keeping(counts=True)))
    (record,) = caplog.records
    assert record.message == "Keeping is run as it is: it changes calls in every call"


def test_what_changes_again_and_again_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network, layer = Classifier(), Shrinking()
    path = FastPath(Denoiser(layer, linear_schedule(), SHAPE).eval(), COUNT, compile=False)
    guide = guide_around("noise-aware", network)
    images = []

    def turn(step: Step) -> None:
        network.temperature, layer.share = 1.0 / (step.number + 2), 0.5 / (step.number + 2)

    for fast in (path, False):
        network.temperature, layer.share = 1.0, 0.5
        images.append(sample(path.denoiser, COUNT, guide, DDIM(8), fast=fast, on_step=turn))
    torch.testing.assert_close(*images, atol=1e-3, rtol=0)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "the denoiser is run as it is",
        "Classifier is run as it is",
    ]
