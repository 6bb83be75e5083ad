"""A whole step as one CUDA graph, rehearsed on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ppap_kernels import dispatch
from ppap_kernels.dispatch import Entry
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.guide import State
from ppap.diffusion.solver import Sampler
from ppap.fast import graphs
from ppap.fast.gradients import Gradients
from ppap.fast.graphs import CapturedFunction
from ppap.fast.path import FastPath
from ppap.fast.prediction import CompiledDenoiser
from tests.ppap.fast.test_path import COUNT, TARGETS, learned_denoiser, smooth_bank
from tests.ppap.networks import images


class FakeStream:
    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu = gpu

    def wait_stream(self, other: FakeStream) -> None:
        assert other is not self
        if other in self.gpu.captured:
            self.gpu.forks += self not in self.gpu.captured
            self.gpu.captured.add(self)
            self.gpu.unjoined.discard(other)
            self.gpu.works(self)


class FakeGPU:
    """Streams joined as CUDA demands; a graph runs its function again at replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.main = self.current = FakeStream(self)
        self.origin: FakeStream | None = None
        self.captured: set[FakeStream] = set()
        self.unjoined: set[FakeStream] = set()
        self.captures = self.forks = 0
        recorded: list[Callable[[], object]] = []
        gpu = self

        class Graph:
            def replay(self) -> None:
                recorded[-1]()

        class Captured(CapturedFunction):
            def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
                super().__init__(function, inputs)
                recorded.append(lambda: self.output.copy_(function(*self.inputs)))

        monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream(gpu))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: gpu.current)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(graphs, "CapturedFunction", Captured)

    def works(self, stream: FakeStream) -> None:
        if stream in self.captured and stream is not self.origin:
            self.unjoined.add(stream)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.works(stream)
            self.current = before

    @contextmanager
    def capture(self, _: Any) -> Iterator[None]:
        """As torch.cuda.graph, which leaves its stream current if its end fails."""
        self.captures += 1
        before, self.origin = self.current, FakeStream(self)
        self.current, self.captured = self.origin, {self.origin}
        try:
            yield
        finally:
            unjoined = set(self.unjoined)
            self.captured, self.unjoined, self.origin = set(), set(), None
            if unjoined:
                raise RuntimeError("capturing stream has unjoined work")
            self.current = before


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    return FakeGPU(monkeypatch)


def compare(predict: CompiledDenoiser, samplers: Sequence[Sampler]) -> None:
    """Steps of a few experts as graphs with those of the path without."""
    guide, denoiser = smooth_bank().guide(TARGETS, 5.0), predict.denoiser
    for sampler in samplers:
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


def test_the_captured_step_is_rehearsed(gpu: FakeGPU) -> None:
    """What runs on a GPU, with streams and graphs that merely run their work at replay."""
    predict = CompiledDenoiser(learned_denoiser(), lambda module, _, freezing: module)
    compare(predict, (DDIM(10), DDPM(12)))
    assert gpu.captures == 2  # one graph per sampler, whatever the expert
    assert gpu.forks == 2  # the gradient's stream, joined before the capture ends


def test_another_scale_is_no_other_graph(gpu: FakeGPU) -> None:
    denoiser, bank, sampler = learned_denoiser(), smooth_bank(), DDIM(10)
    predict = CompiledDenoiser(denoiser, lambda module, _, freezing: module)
    steps, gradients = graphs.StepGraphs(predict), Gradients(lambda module, _: module)
    x_t, schedule = images(COUNT), sampler.respace(denoiser.schedule)
    timesteps = torch.full((COUNT,), int(schedule.timesteps[5]))
    found = []
    for scale in (1.0, 3.0, 0.5):
        terms = gradients.terms(bank.guide(TARGETS, scale), int(timesteps[0]))
        assert terms is not None
        assert terms[0][0].prepare(x_t, timesteps, TARGETS)
        with torch.no_grad():
            update = steps(sampler, schedule, 5, x_t, timesteps, terms, [TARGETS], None)
        assert update.gradient is not None
        found.append(update.gradient / scale)
    assert gpu.captures == 1
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


class Uncapturable(CompiledDenoiser):
    """Copies from the CPU, as a network does that keeps a table there."""

    gpu: FakeGPU

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Prediction:
        if self.gpu.captured:
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during capture")
        return super().__call__(x_t, timesteps)


def test_a_step_that_no_graph_can_hold_runs_without(
    gpu: FakeGPU, caplog: pytest.LogCaptureFixture
) -> None:
    predict = Uncapturable(learned_denoiser(), lambda module, _, freezing: module)
    predict.gpu = gpu
    compare(predict, [DDIM(10)])
    assert gpu.captures == 1  # not tried again in every step
    (message,) = caplog.messages
    assert "Cannot copy" in message  # the cause, not what followed from it
    assert gpu.current is gpu.main


def test_a_capture_that_cannot_end_leaves_the_stream_as_it_was(
    gpu: FakeGPU, caplog: pytest.LogCaptureFixture
) -> None:
    def forks(x: Tensor) -> Tensor:
        torch.cuda.Stream().wait_stream(torch.cuda.current_stream())  # type: ignore[no-untyped-call]
        return x + 1

    function = CapturedFunction(forks, [torch.zeros(2)])
    assert torch.equal(function([torch.ones(2)]), torch.full((2,), 2.0))
    assert "unjoined" in caplog.text
    assert gpu.current is gpu.main


def test_a_capture_launches_the_kernels_of_the_calls_before_it(
    gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first launch of another would load its code, which no capture allows."""
    in_graphs = Entry({"m": 8}, "triton", {"BLOCK": 1}, True, "torch")
    monkeypatch.setattr(dispatch, "_gpu", lambda device: "measured")
    monkeypatch.setattr(dispatch, "table", lambda gpu: {"one": (in_graphs,)})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(gpu.captured))

    class OnGpu:
        dtype, is_cuda, device = torch.float32, True, torch.device("cuda", 0)

    chosen: list[Entry | None] = []

    def step(x: Tensor) -> Tensor:
        chosen.append(dispatch.select("one", OnGpu(), {"m": 8}, force=False))  # type: ignore[arg-type]
        return x + 1

    CapturedFunction(step, [torch.zeros(2)])
    assert gpu.captures == 1
    assert chosen == [in_graphs] * (graphs.WARM_UPS + 1)


def test_a_graph_is_of_the_gpu_that_the_images_are_on(
    gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are made, captured and replayed on the current one."""
    current: list[Tensor] = []
    seen: list[bool] = []

    @contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        current.append(x)
        yield
        current.pop()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            seen.append(bool(current))
            return function(*arguments)

        return noted

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.cuda, "Stream", noting(torch.cuda.Stream))
    monkeypatch.setattr(graphs, "CapturedFunction", noting(graphs.CapturedFunction))
    monkeypatch.setattr(CapturedFunction, "__call__", noting(CapturedFunction.__call__))
    predict = CompiledDenoiser(learned_denoiser(), lambda module, _, freezing: module)
    compare(predict, [DDIM(10)])
    assert len(seen) > 3
    assert all(seen)


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
