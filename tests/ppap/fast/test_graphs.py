"""A whole step as one CUDA graph, rehearsed on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.guide import State
from ppap.fast import graphs
from ppap.fast.gradients import Gradients
from ppap.fast.graphs import CapturedFunction
from ppap.fast.path import FastPath
from ppap.fast.prediction import CompiledDenoiser
from tests.ppap.fast.test_path import COUNT, TARGETS, learned_denoiser, smooth_bank
from tests.ppap.networks import images


class FakeStream:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def wait_stream(self, other: FakeStream) -> None:
        assert other is not self
        self.log.append("wait")


def test_the_captured_step_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, with streams and graphs that merely run their work at replay."""
    log: list[str] = []
    main = FakeStream(log)
    recorded: list[Callable[[], object]] = []

    @contextmanager
    def stream(_: FakeStream) -> Iterator[None]:
        log.append("side")
        yield

    class Graph:
        def replay(self) -> None:
            recorded[-1]()

    class Captured(CapturedFunction):
        """Runs the function again where a graph would replay its kernels."""

        def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
            super().__init__(function, inputs)
            recorded.append(lambda: self.output.copy_(function(*self.inputs)))

    @contextmanager
    def capture(_: Any) -> Iterator[None]:
        log.append("capture")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(graphs, "CapturedFunction", Captured)
    guide = smooth_bank().guide(TARGETS, 5.0)
    for sampler in (DDIM(10), DDPM(12)):
        denoiser = learned_denoiser()
        predict = CompiledDenoiser(denoiser, lambda module, _, freezing: module)
        steps = graphs.StepGraphs(predict)
        gradients = Gradients(lambda module, _: module)
        schedule = sampler.respace(denoiser.schedule)
        noise = images(COUNT, 5) if sampler.stochastic else None
        for index in (9, 2, 0):
            x_t = images(COUNT, index)
            timesteps = torch.full((COUNT,), int(schedule.timesteps[index]))
            terms = gradients.terms(guide, int(timesteps[0]))
            assert terms is not None
            assert terms[0][0].prepare(x_t, timesteps, TARGETS)
            with torch.no_grad():
                found = steps(sampler, schedule, index, x_t, timesteps, terms, [TARGETS], noise)
            expected = FastPath(denoiser, COUNT, compile=False).step(
                sampler, schedule, index, State(x_t, timesteps, denoiser), guide, noise
            )
            for part in ("x", "x_0", "gradient"):
                torch.testing.assert_close(getattr(found, part), getattr(expected, part))
    assert log.count("capture") == 2  # one graph per sampler, whatever the expert
    assert log.count("side") == log.count("capture") * (1 + 3 + 1) + 6


def test_what_is_one_graph_on_a_gpu() -> None:
    gradients, bank = Gradients(lambda module, _: module), smooth_bank()

    def terms(scale: Any) -> Any:
        return gradients.terms(bank.guide(TARGETS, scale), 0)

    class Own(DDIM):
        pass

    assert graphs.can_capture(DDIM(10), terms(2.0))
    assert graphs.can_capture(DDPM(10), [])
    assert not graphs.can_capture(Own(10), terms(2.0))
    assert not graphs.can_capture(DDIM(10), terms(torch.ones(COUNT)))
    assert not graphs.can_capture(DDIM(10), terms(lambda signal: signal))
