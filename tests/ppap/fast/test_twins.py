"""Every form that a network is run in is the same function: on random networks, in float64.

``pytest --thorough tests/ppap/fast/test_twins.py`` traces each of them, and compiles a dozen.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppap.compute.packages import package
from ppap.compute.tracing import Traced
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.layers import AUTO
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Norms, Part
from ppap.experts.bank import ExpertBank
from ppap.fast.gradients import Gradients, likelihood_gradient
from ppap.fast.views import view_of
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.random_networks import CLASSES, FAMILIES, SIDE, RandomNetwork, tiny_network

TOLERANCE, GRAPHS = 1e-9, 200
EXPERTS = torch.tensor([1, 0, 0, 1])
TIMESTEPS = torch.tensor([900, 10, 400, 999])
ORDER = EXPERTS.argsort(stable=True).argsort()
TARGETS = torch.arange(4) % CLASSES
ADAPTERS: tuple[tuple[Part, ...], ...] = (
    (Lora(2, 4.0, AUTO),),
    (Biases(""), Norms("."), Lora(2, 4.0, AUTO)),
    (Norms("norm|bn", statistics=False), Lora(1, 2.0, AUTO)),
    (Full(),),
)


def bank_around(network: nn.Module, parts: tuple[Part, ...], seed: int) -> ExpertBank:
    bank = ExpertBank(Predictor(network.double().eval()), 2, Adapter(parts)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return bank.eval()


def images(side: int, seed: int) -> Tensor:
    drawn = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return drawn.double().requires_grad_()


def same(what: str, found: Tensor, expected: Tensor) -> None:
    size = expected.abs().max().clamp(min=1)
    assert found.shape == expected.shape, what
    assert (found - expected).abs().max() <= TOLERANCE * size, what


def gradient(values: Tensor, x: Tensor) -> Tensor:
    probe = torch.arange(1, values.numel() + 1).double().cos().view_as(values)
    return torch.autograd.grad((values * probe).sum(), x)[0]


def plain(bank: ExpertBank, x: Tensor) -> Tensor:
    """As trained: rows by the network under their expert's weights, computed with their graph.

    Never one alone: torch 2.14 has a wrong gradient for a single image where an activation comes
    before a layer norm of its tokens.
    """
    base = dict(bank.predictor.network.named_parameters())
    bank.predictor.network.eval()
    prepared = bank.predictor.prepare(x)
    parts = []
    for number in (0, 1):
        own, inputs = bank.expert(number), prepared[number == EXPERTS]
        parts.append(bank.student.run(base, own.tensors(), own.statistics(), inputs))
    return torch.cat(parts)[ORDER]


def merged(bank: ExpertBank, x: Tensor) -> Tensor:
    """As guided: rows by the network with the merged weights of their expert, which are kept."""
    parts = [bank(x[n == EXPERTS], TIMESTEPS[n == EXPERTS]) for n in (0, 1)]
    return torch.cat(parts)[ORDER]


def written(bank: ExpertBank, x: Tensor) -> Tensor:
    """As an ordinary module, with each expert written into it in turn."""
    found = torch.empty(len(x), CLASSES, dtype=x.dtype)
    for number in (0, 1):
        found[number == EXPERTS] = bank.merge(number)(x)[number == EXPERTS]
    bank.unmerge()
    return found


def check(bank: ExpertBank, x: Tensor, traced: bool) -> None:
    expected = plain(bank, x)
    slope = gradient(expected, x)
    for what, values in (
        ("merged", merged(bank, x)),
        ("grouped", bank(x, TIMESTEPS)),
    ):
        same(what, values, expected)
        same(f"gradient, {what}", gradient(values, x), slope)
    with torch.no_grad():
        same("written", written(bank, x), expected)
    if not traced:
        return
    view, t = view_of(bank), torch.full((4,), 900)
    assert view is not None
    view.switch(900)
    same("folded", view.run(view.weights(), x, t), bank.predict(x, 1))
    guide = bank.guide(TARGETS)
    terms = Gradients(lambda graph, arguments: graph).terms(guide, 900)
    assert terms is not None
    ((term, _),) = terms
    steep = likelihood_gradient(bank, ClassTask(), x, t, TARGETS)
    if term.prepare(x.detach(), t, TARGETS):
        same("gradient, traced", term(x.detach(), t, TARGETS), steep)


def test_random_graphs_of_layers(pytestconfig: pytest.Config) -> None:
    every = 1 if pytestconfig.getoption("thorough") else 10
    grouped = 0
    for seed in range(GRAPHS):
        draw = random.Random(seed)
        bank = bank_around(RandomNetwork(seed), draw.choice(ADAPTERS), seed)
        try:
            check(bank, images(SIDE, seed), traced=seed % every == 0)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {bank.predictor.network}") from error
        grouped += bank._mixed.grouped is not None and not bank._mixed.check.dropped
    assert grouped > GRAPHS / 4


@pytest.mark.parametrize("family", FAMILIES)
def test_published_families(family: str) -> None:
    bank = bank_around(tiny_network(family), ADAPTERS[len(family) % 3], 0)
    check(bank, images(16, 0), traced=True)


@pytest.mark.thorough
def test_a_dozen_compiled(tmp_path: Path) -> None:
    """In one package, for a compiler takes most of its time to start."""
    count = 12
    banks = [bank_around(RandomNetwork(seed), ADAPTERS[seed % 4], seed) for seed in range(count)]
    views = [view_of(bank) for bank in banks]
    t = torch.full((4,), 900)
    for view in views:
        assert view is not None
        view.switch(900)

    def run(weights: list[list[Tensor]], x: Tensor) -> list[Tensor]:
        found = []
        for view, own in zip(views, weights, strict=True):
            assert view is not None
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                values = view.run(own, leaf, t)
                found += [values, gradient(values, leaf)]
        return found

    x = images(SIDE, 0)
    arguments = ([view.weights() for view in views if view is not None], x.detach())
    compiled, _ = package(Traced(run, arguments, frozen=False), arguments, tmp_path)
    found = compiled(*arguments)
    for number, bank in enumerate(banks):
        expected = bank.predict(x, 1)
        same(f"values, seed {number}", found[2 * number], expected.detach())
        same(f"gradient, seed {number}", found[2 * number + 1], gradient(expected, x))
