"""The fast path in bfloat16: networks in half precision, all that is around them in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.compute import precision
from ppap.compute.precision import PrecisionError, shortens_float32
from ppap.compute.tracing import Traced
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import Step
from ppap.fast import gradients, kept, prediction
from ppap.fast.kept import forget_paths, kept_path
from ppap.fast.path import FastPath
from ppap.fast.sampling import fast_path, sample
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.classes import ClassTask
from tests.ppap.fast.test_path import COUNT, TARGETS, learned_denoiser, smooth_bank
from tests.ppap.networks import images

HALF_AN_ULP = 2.0**-9


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Emulated where it is not: the figures are the same."""
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    monkeypatch.setattr(
        kept, "FastPath", lambda d, batch, **options: FastPath(d, batch, compile=False, **options)
    )
    forget_paths()
    yield
    forget_paths()


def types_of(traced: Traced) -> dict[str, set[torch.dtype]]:
    """Result types in a graph, by operator."""
    found: dict[str, set[torch.dtype]] = {}
    for node in traced.graph.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            found.setdefault(str(node.target), set()).add(value.dtype)
    return found


def test_networks_compute_in_bfloat16_and_steps_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Traced] = []

    class Seen(Traced):
        def __init__(self, *arguments: object, **options: bool) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            made.append(self)

    for module in (gradients, prediction):
        monkeypatch.setattr(module, "Traced", Seen)
    denoiser, guide, steps = learned_denoiser(), smooth_bank().guide(TARGETS, 3.0), list[Step]()
    found = sample(
        denoiser, COUNT, guide, DDIM(5), batch=4, precision="bf16", fast=True, on_step=steps.append
    )
    guided, denoised = (types_of(traced) for traced in made)
    assert denoised["aten.convolution.default"] == {torch.bfloat16}
    products = guided.get("aten.addmm.default", set()) | guided.get("aten.mm.default", set())
    assert products == {torch.bfloat16}
    assert guided["aten._log_softmax.default"] == {torch.float32}
    assert guided["aten._log_softmax_backward_data.default"] == {torch.float32}
    for step in steps:
        assert step.gradient is not None
        assert {step.x.dtype, step.x_0.dtype, step.gradient.dtype} == {torch.float32}
    exact = sample(denoiser, COUNT, guide, DDIM(5), batch=4, fast=True)
    plain = sample(denoiser, COUNT, guide, DDIM(5), batch=4, precision="bf16", fast=False)
    unguided = sample(denoiser, COUNT, None, DDIM(5), batch=4)
    for other in (exact, plain):
        assert 0 < (found - other).abs().max() < 0.1
    assert (exact - unguided).abs().max() > 0.5


def test_one_step_errs_by_the_rounding_of_bfloat16() -> None:
    denoiser, guide, sampler = learned_denoiser(), smooth_bank().guide(TARGETS, 3.0), DDIM(10)
    schedule, x_t = denoiser.schedule.respace(sampler.spacing), images(COUNT)
    state = State(x_t, torch.full((COUNT,), int(schedule.timesteps[5])), denoiser)
    exact, half = (
        FastPath(denoiser, COUNT, compile=False, precision=kind).step(
            sampler, schedule, 5, state, guide, None
        )
        for kind in ("fp32", "bf16")
    )
    for found, expected in ((half.x, exact.x), (half.gradient, exact.gradient)):
        assert found is not None
        assert expected is not None
        error = (found - expected).norm() / expected.norm()
        assert HALF_AN_ULP / 100 < error < 10 * HALF_AN_ULP


def test_what_no_graph_holds_computes_in_bfloat16_too() -> None:
    layer = torch.nn.Conv2d(3, 3, 3).requires_grad_(False)
    kinds: list[torch.dtype] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = layer(x)
        kinds.append(found.dtype)
        return found.mean((2, 3))

    guide = LikelihoodGuide(model, ClassTask(), 1, 3.0)
    path = FastPath(learned_denoiser(), COUNT, compile=False, precision="bf16")
    sample(path.denoiser, COUNT, guide, DDIM(2), fast=path)
    assert set(kinds) == {torch.bfloat16}


def test_an_autocast_around_calls_is_that_of_the_plain_path_and_ends_with_them() -> None:
    denoiser, guide = learned_denoiser(), smooth_bank().guide(TARGETS, 3.0)

    def errors(path: FastPath, cast: bool) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            found, plain = (
                sample(denoiser, COUNT, guide, DDIM(5), fast=fast) for fast in (path, False)
            )
        return float((found - plain).abs().max())

    with torch.autocast("cpu", torch.bfloat16):
        rounded = sample(denoiser, COUNT, guide, DDIM(5), fast=False)
    exact = sample(denoiser, COUNT, guide, DDIM(5), fast=False)
    apart = float((rounded - exact).abs().max())
    for casts in ((True, False, True), (False, True, False)):
        path = FastPath(denoiser, COUNT, compile=False)
        for cast in casts:
            assert errors(path, cast) < (apart / 2 if cast else 1e-4)
        assert len(path._predict._graphs) == 2


def test_a_graph_that_errs_more_than_bfloat16_does_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bank, x_t, t = smooth_bank(), images(COUNT), torch.full((COUNT,), 440)

    def prepared(factor: float) -> bool:
        def compiler(graph: Traced, arguments: tuple[object, ...]) -> object:
            del arguments
            return lambda *inputs: [factor * part for part in graph(*inputs)]

        found = gradients.Gradients(compiler, "bf16")  # type: ignore[arg-type]
        terms = found.terms(bank.guide(TARGETS), 440)
        assert terms is not None
        return terms[0][0].prepare(x_t, t, TARGETS)

    assert prepared(1.0)
    assert not caplog.records
    assert not prepared(1.3)
    assert "its graph gives another gradient" in caplog.text


class Turning(nn.Module):
    """A network that makes much of rounding; its input loses bits where float32 products may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.last = nn.Linear(3 * 8 * 8, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        del t
        shorter = 1 + SHORTENED if shortens_float32(x.device) else 1.0
        found: Tensor = self.last(torch.sin(50 * self.hidden(x.flatten(1) * shorter)))
        return found


SHORTENED = 3e-4
"""A relative error of TF32's size."""


@pytest.mark.parametrize("mode", ["bf16", "ieee"])
def test_a_graph_may_turn_otherwise_where_products_are_short(
    mode: str, caplog: pytest.LogCaptureFixture, float32_switches: Any
) -> None:
    """What errs as much as the model itself does is rounding there, and there alone.

    A result that is wrong is wrong in both.
    """
    float32_switches.mkldnn.conv.fp32_precision = mode
    model, x_t, t = Turning().requires_grad_(False), images(COUNT), torch.zeros(COUNT)

    def prepared(error: float) -> bool:
        def compiler(graph: Traced, arguments: tuple[object, ...]) -> object:
            del arguments
            return lambda weights, x, *rest: graph(weights, x * (1 + error), *rest)

        found = gradients.Gradients(compiler)  # type: ignore[arg-type]
        terms = found.terms(LikelihoodGuide(model, ClassTask(), 1, 3.0), 440)
        assert terms is not None
        return terms[0][0].prepare(x_t, t, torch.ones(COUNT, dtype=torch.int64))

    short = mode == "bf16"
    assert prepared(0.0)
    assert prepared(-2 * SHORTENED if short else 2 * SHORTENED) is short
    assert not prepared(0.1)
    assert float32_switches.mkldnn.conv.fp32_precision == mode
    assert "its graph gives another gradient" in caplog.text


def test_each_precision_has_a_path_of_its_own() -> None:
    denoiser = learned_denoiser()
    assert kept_path(denoiser, 4) is kept_path(denoiser, 4, "fp32")
    assert kept_path(denoiser, 4, "bf16") is kept_path(denoiser, 4, "bf16")
    assert kept_path(denoiser, 4, "bf16") is not kept_path(denoiser, 4)
    assert fast_path(denoiser, 4, True, "bf16") is kept_path(denoiser, 4, "bf16")


def test_a_path_of_the_callers_decides_and_must_not_be_contradicted() -> None:
    denoiser = learned_denoiser()
    path = FastPath(denoiser, COUNT, compile=False, precision="bf16")
    kept_one = sample(denoiser, COUNT, None, DDIM(3), precision="bf16", fast=True)
    assert torch.equal(sample(denoiser, COUNT, None, DDIM(3), fast=path), kept_one)
    with pytest.raises(ValueError, match="computes in 'bf16', not 'fp32'"):
        sample(denoiser, COUNT, None, DDIM(3), precision="fp32", fast=path)


def test_emulated_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda: False)
    with pytest.raises(PrecisionError, match="would emulate bfloat16"):
        FastPath(learned_denoiser(), 4, precision="bf16")
    with pytest.raises(PrecisionError, match="would emulate bfloat16"):
        sample(learned_denoiser(), 4, precision="bf16", fast=True)
    with pytest.raises(ValueError, match="unknown precision 'fp16'"):
        FastPath(learned_denoiser(), 4, precision="fp16")  # type: ignore[arg-type]
