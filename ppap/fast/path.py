"""The guided step that is actually run: merged, folded, compiled, overlapped.

The plain path (:func:`ppap.diffusion.samplers.trajectory`) says what a guided step computes. This
module computes the same, up to rounding, from static shapes and static buffers:

* An expert is merged into the predictor's weights once per switch, into buffers of this module's
  own: nothing is ever written into the predictor, so there is nothing to restore.
* Batch norms of the predictor are folded into the convolutions before them, once per switch.
* The gradient in x_t is one traced graph of forward and backward pass, in which no weight has a
  gradient. Weights are its inputs, so a switch changes values and compiles nothing.
* On a CPU graphs are compiled ahead of time by inductor, the denoiser's with frozen weights, and
  kept on disk: another process loads them in milliseconds. On a GPU the whole step is compiled
  and captured in one CUDA graph, in which denoiser and gradient run on streams of their own, for
  neither needs the other's result.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ppap_kernels import guided_ddim_step, guided_ddpm_step
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from ppap.compute.allocator import keep_freed_memory
from ppap.compute.cpu_operators import REPLACEMENTS, use_onednn
from ppap.diffusion.denoiser import Denoiser, Prediction
from ppap.diffusion.samplers import DDIM, DDPM, Sampler, step_variance
from ppap.diffusion.schedule import Schedule
from ppap.experts.bank import ExpertBank
from ppap.guidance.guides import Guide, IgnoreTimestep, LikelihoodGuide, SumOfGuides
from ppap.predictors.predictor import Function, Predictor
from ppap.tasks.tasks import Task

__all__ = ["FastPath", "FoldedNetwork", "cache_folder"]

SHORT_ATTENTION = 256
"""Keys up to which attention written out beats the fused kernel on a CPU, once compiled."""
WARM_UPS = 3

Weights = dict[str, Tensor]
Compiled = Callable[..., Any]


def cache_folder() -> Path:
    """Where compiled graphs are kept: ``$XDG_CACHE_HOME/ppap/compiled``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ppap" / "compiled"


class FastPath:
    """Runs guided steps of one denoiser, whatever the guide.

    Guides over an :class:`ppap.experts.bank.ExpertBank`, a predictor or any other module, and sums
    of such, are compiled; any other guide is called as it is. A graph is compiled for each batch
    size, model and task that it meets; batches smaller than ``batch`` are filled up to it.

    Args:
        denoiser: what is sampled from.
        batch: images per call.
        compile: whether graphs go through inductor; without it they are merged, folded and
            traced only.
        cache: folder of compiled graphs (CPU); :func:`cache_folder` by default.

    Attributes:
        compilations: how many graphs were compiled so far, those found on disk aside.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        batch: int,
        compile: bool = True,
        cache: Path | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.batch = batch
        self.compile = compile and can_compile()
        self.cache = cache or cache_folder()
        self.compilations = 0
        self._predict: dict[torch.device, Compiled] = {}
        self._gradients: dict[tuple[int, Task], _Gradient] = {}
        self._captured: dict[tuple[object, ...], _Captured] = {}

    @torch.no_grad()
    def step(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        x_t: Tensor,
        guide: Guide | None,
        noise: Tensor | None,
    ) -> Tensor:
        """x at the next lower index of the respaced schedule; see :meth:`Sampler.step`.

        Args:
            sampler: DDIM and DDPM run as one fused update, others by their own step.
            schedule: the respaced schedule.
            index: position in it.
            x_t: (B, C, H, W), at most ``batch`` images.
            guide: with one target per image.
            noise: (B, C, H, W) standard normal, for samplers that need it.

        Raises:
            ValueError: for more images than ``batch``.
        """
        count = len(x_t)
        if count > self.batch:
            raise ValueError(f"this fast path takes up to {self.batch} images, got {count}")
        timestep = int(schedule.timesteps[index])
        timesteps = torch.full((self.batch,), timestep, device=x_t.device)
        terms = [] if guide is None else self._terms(guide, timestep)
        filled = _fill(x_t, self.batch)
        targets = [_fill(part.targets.to(x_t.device), self.batch) for _, part in terms or ()]
        if x_t.is_cuda and terms is not None:
            fill = None if noise is None else _fill(noise, self.batch)
            return self._graphed(sampler, schedule, index, filled, timesteps, terms, targets, fill)[
                :count
            ]
        prediction = self._prediction(filled, timesteps)
        gradient = None
        if terms is None:
            assert guide is not None
            gradient = guide(x_t, timesteps[:count])
        elif terms:
            gradient = _total(terms, targets, filled, timesteps)[:count]
        fraction = prediction.variance_fraction
        kept = Prediction(
            prediction.epsilon[:count], None if fraction is None else fraction[:count]
        )
        return fused_step(sampler, schedule, index, x_t, kept, gradient, noise)

    def _prediction(self, x_t: Tensor, timesteps: Tensor) -> Prediction:
        if x_t.device not in self._predict:
            denoiser = self.denoiser
            names, weights = _flat(_state(denoiser), x_t.device)

            def run(weights: list[Tensor], x: Tensor, t: Tensor) -> list[Tensor]:
                state = dict(zip(names, weights, strict=True))
                found = functional_call(denoiser, state, (x, t))
                fraction = found.variance_fraction
                return [found.epsilon] if fraction is None else [found.epsilon, fraction]

            traced = _Traced(run, (weights, x_t, timesteps), frozen=True)
            self._predict[x_t.device] = self._compiled(traced, (x_t, timesteps), freezing=True)
        return Prediction(*self._predict[x_t.device](x_t, timesteps))

    def _terms(self, guide: Guide, timestep: int) -> list[tuple[_Gradient, LikelihoodGuide]] | None:
        """The compiled gradients that a guide sums, switched to a timestep; None if it has none."""
        parts: Iterable[Guide] = guide.parts if isinstance(guide, SumOfGuides) else (guide,)
        terms = []
        for part in parts:
            if not isinstance(part, LikelihoodGuide):
                return None
            key = id(part.model), part.task
            if key not in self._gradients:
                view = _view(part.model)
                if view is None:
                    return None
                self._gradients[key] = _Gradient(view, part.task, self._compiled)
            self._gradients[key].view.switch(timestep)
            terms.append((self._gradients[key], part))
        return terms

    def _compiled(
        self, module: nn.Module, arguments: tuple[Any, ...], freezing: bool = False
    ) -> Compiled:
        if not self.compile:
            return module
        if any(isinstance(a, Tensor) and a.is_cuda for a in arguments):
            self.compilations += 1
            compiled: Compiled = torch.compile(module, fullgraph=True, dynamic=False)
            return compiled
        return self._ahead_of_time(module, arguments, freezing)

    def _ahead_of_time(
        self, module: nn.Module, arguments: tuple[Any, ...], freezing: bool
    ) -> Compiled:
        """Inductor's package for a module, from disk if some process has compiled it before."""
        keep_freed_memory()
        program = torch.export.export(module, arguments)
        path = self.cache / f"{_digest(program, freezing)}.pt2"
        if not path.is_file():
            self.compilations += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f"{path.stem}.{os.getpid()}.pt2")
            with torch._inductor.config.patch(freezing=freezing):
                torch._inductor.aoti_compile_and_package(program, package_path=str(scratch))
            scratch.replace(path)
        return torch._inductor.aoti_load_package(str(path))

    def _graphed(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        x_t: Tensor,
        timesteps: Tensor,
        terms: list[tuple[_Gradient, LikelihoodGuide]],
        targets: list[Tensor],
        noise: Tensor | None,
    ) -> Tensor:
        """The whole step as one CUDA graph: two streams until the update."""
        coefficients = step_coefficients(sampler, schedule, index, self.batch, x_t.device)
        key = (
            repr(sampler), noise is None, x_t.shape,
            tuple((id(term), guide.scale) for term, guide in terms),
            tuple((target.shape, target.dtype) for target in targets),
        )  # fmt: skip
        if coefficients is None:  # a sampler of the caller's: its step stays outside
            prediction = self._prediction(x_t, timesteps)
            gradient = _total(terms, targets, x_t, timesteps) if terms else None
            return sampler.step(schedule, index, x_t, prediction, gradient, noise)
        inputs = [x_t, timesteps, *targets, *coefficients.values()]
        inputs += [] if noise is None else [noise]
        if key not in self._captured:
            names, side = list(coefficients), torch.cuda.Stream()  # type: ignore[no-untyped-call]

            def step(x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
                aims, rest = rest[: len(targets)], rest[len(targets) :]
                found = dict(zip(names, rest, strict=False))
                fresh = rest[len(names)] if len(rest) > len(names) else None
                here = torch.cuda.current_stream()
                side.wait_stream(here)
                gradient = None
                with torch.cuda.stream(side):
                    if terms:
                        gradient = _total(terms, list(aims), x, t)
                prediction = self._prediction(x, t)
                here.wait_stream(side)
                return fused_update(sampler, found, x, prediction, gradient, fresh)

            self._captured[key] = _Captured(step, inputs)
        return self._captured[key](inputs)


class _Captured:
    """A function of tensors as a CUDA graph over static inputs."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compilation and allocations happen outside the capture
            for _ in range(WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(*self.inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        self.graph.replay()
        return self.output.clone()


@dataclass
class _Gradient:
    """The gradient in x_t of the log-likelihood under one model and task, per batch size."""

    view: _View
    task: Task
    compiler: Callable[..., Compiled]
    compiled: dict[tuple[object, ...], Compiled] = field(default_factory=dict)

    def __call__(self, x_t: Tensor, timesteps: Tensor, targets: Tensor) -> Tensor:
        weights = self.view.weights()
        key = x_t.shape, x_t.dtype, x_t.device, targets.shape, targets.dtype
        if key not in self.compiled:

            def run(weights: list[Tensor], x: Tensor, t: Tensor, targets: Tensor) -> list[Tensor]:
                with torch.enable_grad():
                    x = x.detach().requires_grad_()
                    likelihood = self.task.log_likelihood(self.view.run(weights, x, t), targets)
                    (gradient,) = torch.autograd.grad(likelihood.sum(), x)
                return [gradient]

            arguments = (weights, x_t, timesteps, targets)
            self.compiled[key] = self.compiler(_Traced(run, arguments, frozen=False), arguments)
        (gradient,) = self.compiled[key](weights, x_t, timesteps, targets)
        assert isinstance(gradient, Tensor)
        return gradient


def _total(
    terms: list[tuple[_Gradient, LikelihoodGuide]],
    targets: list[Tensor],
    x_t: Tensor,
    timesteps: Tensor,
) -> Tensor:
    parts = [
        guide.scale * gradient(x_t, timesteps, aim)
        for (gradient, guide), aim in zip(terms, targets, strict=True)
    ]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


class _View:
    """A noise-aware model as a function of static weights.

    Args:
        model: called as (x_t, timesteps).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._static: Weights = {}

    def effective(self) -> Weights:
        """Parameters and buffers that the model runs with now."""
        return _state(self.model)

    def switch(self, timestep: int) -> None:
        """Make the static weights those of a timestep."""
        if not self._static:
            self._write(self.effective())

    def weights(self) -> list[Tensor]:
        """The static weights, in the order that :meth:`run` expects."""
        return list(self._static.values())

    def run(self, weights: list[Tensor], x_t: Tensor, timesteps: Tensor) -> Any:
        """Predict with these weights."""
        state = dict(zip(self._static, weights, strict=True))
        return functional_call(self.model, state, (x_t, timesteps))

    def _write(self, values: Weights) -> None:
        """Into the static buffers, in place, so that whoever holds them sees the new values."""
        for name, value in values.items():
            if name not in self._static:
                self._static[name] = _laid_out(value.detach().clone())
            else:
                self._static[name].copy_(value)


class _PredictorView(_View):
    """A predictor, its batch norms folded."""

    def __init__(self, predictor: Predictor, normalised: bool = True) -> None:
        super().__init__(predictor)
        self.predictor = predictor
        self.normalised = normalised
        self.folded = FoldedNetwork(predictor.network)

    def effective(self) -> Weights:
        return self.folded.weights(_state(self.predictor.network))

    def run(self, weights: list[Tensor], x_t: Tensor, timesteps: Tensor) -> Any:
        del timesteps
        state = dict(zip(self._static, weights, strict=True))
        prepared = self.predictor.prepare(x_t, self.normalised)
        return functional_call(self.folded.network, state, (prepared,))


class _BankView(_PredictorView):
    """A bank, one expert at a time."""

    def __init__(self, bank: ExpertBank) -> None:
        super().__init__(bank.predictor, bank.normalised)
        self.bank = bank
        self._now: tuple[int, ...] = ()

    def switch(self, timestep: int) -> None:
        number = int(self.bank.ranges.expert_of(torch.tensor([timestep])))
        expert = self.bank.expert(number)
        tensors = (*expert.parameters(), *expert.buffers())
        now = (number, *(tensor._version for tensor in tensors))  # it may have trained meanwhile
        if now != self._now:
            buffers = dict(self.bank.predictor.network.named_buffers())
            self._write(self.folded.weights(buffers | self.bank.merged(number)))
            self._now = now


def _view(model: Any) -> _View | None:
    """How a guide's model is compiled; None if it is nothing that has weights."""
    if isinstance(model, ExpertBank):
        return _BankView(model)
    if isinstance(model, IgnoreTimestep):
        predictor = model.predictor
        # What a plain function does from call to call cannot be known: it is not traced.
        known = isinstance(predictor, Predictor) and not isinstance(predictor.network, Function)
        return _PredictorView(cast(Predictor, predictor)) if known else None
    return _View(model) if isinstance(model, nn.Module) else None


class FoldedNetwork:
    """A network without those batch norms that follow a convolution or linear layer directly.

    In evaluation mode such a norm is a scale and a shift, which the layer's weight and bias can
    take on. A network that cannot be traced symbolically is left as it is.

    Args:
        network: in evaluation mode; not changed.

    Attributes:
        network: what runs with :meth:`weights`.
        folded: names of (layer, norm).
    """

    def __init__(self, network: nn.Module) -> None:
        self.network: nn.Module = network
        self.folded: list[tuple[str, str]] = []
        self._norms: dict[str, nn.BatchNorm2d] = {}
        if not any(type(layer) is nn.BatchNorm2d for layer in network.modules()):
            return
        shared = [*network.parameters(), *network.buffers()]
        twin = copy.deepcopy(network, {id(tensor): tensor for tensor in shared}).eval()
        try:
            traced = fx.symbolic_trace(twin)
        except (TypeError, RuntimeError, NotImplementedError, ValueError):
            return  # control flow that depends on values
        layers = dict(traced.named_modules())
        called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        for node in list(traced.graph.nodes):
            if node.op != "call_module" or type(layers[node.target]) is not nn.BatchNorm2d:
                continue
            before = node.args[0]
            if (
                not isinstance(before, fx.Node)
                or before.op != "call_module"
                or type(layers[str(before.target)]) is not nn.Conv2d
                or len(before.users) > 1
                or called.count(before.target) > 1
                or called.count(node.target) > 1
                or not layers[node.target].track_running_stats
            ):
                continue
            layer, norm = str(before.target), str(node.target)
            self.folded.append((layer, norm))
            self._norms[norm] = layers[norm]
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
        for layer, norm in self.folded:
            convolution = layers[layer]
            if convolution.bias is None:
                convolution.bias = nn.Parameter(torch.zeros_like(convolution.weight[:, 0, 0, 0]))
            traced.delete_submodule(norm)
        traced.recompile()
        self.network = traced.requires_grad_(False)

    def weights(self, state: Mapping[str, Tensor]) -> Weights:
        """Parameters and buffers of the folded network, from those of the original by name."""
        found = dict(state)
        for layer, norm in self.folded:
            about = {
                kind: found.pop(f"{norm}.{kind}", None)
                for kind in ("running_mean", "running_var", "weight", "bias")
            }
            found.pop(f"{norm}.num_batches_tracked", None)
            mean, variance = about["running_mean"], about["running_var"]
            assert mean is not None
            assert variance is not None
            weight, bias = fuse_conv_bn_weights(
                found[f"{layer}.weight"],
                found.get(f"{layer}.bias"),
                mean,
                variance,
                self._norms[norm].eps,
                about["weight"],
                about["bias"],
            )
            found[f"{layer}.weight"], found[f"{layer}.bias"] = weight.detach(), bias.detach()
        return found


def step_coefficients(
    sampler: Sampler, schedule: Schedule, index: int, batch: int, device: torch.device
) -> dict[str, Tensor] | None:
    """What the fused update multiplies by, (B,) float32 each; None for an unknown sampler."""
    level, before = schedule.alphas_cumprod[index], schedule.alphas_cumprod_prev[index]
    found: dict[str, float]
    if isinstance(sampler, DDIM):
        # Differences from 1 in float32, as in the plain step.
        one, a, b = np.float32(1), np.float32(level), np.float32(before)
        sigma = sampler.eta * np.sqrt((one - b) / (one - a)) * np.sqrt(one - a / b)
        found = {"signal": level, "signal_prev": before, "sigma": float(sigma)}
    elif isinstance(sampler, DDPM):
        beta = schedule.betas[index]
        variance, log_variance = step_variance(schedule, index, sampler.fixed_variance)
        found = {
            "signal": level,
            "x0_weight": beta * np.sqrt(before) / (1 - level),
            "x_t_weight": (1 - before) * np.sqrt(1 - beta) / (1 - level),
            "variance": variance,
            "log_variance": log_variance,
            "log_beta": float(np.log(beta)),
            "log_posterior": float(schedule.posterior_log_variance[index]),
            "inner": float(index > 0),
        }
    else:
        return None
    return {
        name: torch.full((batch,), float(value), device=device) for name, value in found.items()
    }


def fused_update(
    sampler: Sampler,
    coefficients: Mapping[str, Tensor],
    x_t: Tensor,
    prediction: Prediction,
    gradient: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """One elementwise pass over x_t, noise estimate, gradient and noise.

    Args:
        sampler: DDIM or DDPM.
        coefficients: of :func:`step_coefficients`.
        x_t: (B, C, H, W).
        prediction: the denoiser's for it.
        gradient: (B, C, H, W), scaled.
        noise: (B, C, H, W) standard normal.
    """
    c = coefficients
    if isinstance(sampler, DDIM):
        fresh = noise if sampler.eta > 0 else None
        return guided_ddim_step(
            x_t, prediction.epsilon, c["signal"], c["signal_prev"], c["sigma"],
            gradient, fresh, sampler.clip,
        )  # fmt: skip
    assert isinstance(sampler, DDPM)
    assert noise is not None
    variance: Tensor | None = c["variance"]
    log_variance = c["log_variance"]
    if prediction.variance_fraction is not None:
        share = (prediction.variance_fraction + 1) / 2
        high, low = (c[name][:, None, None, None] for name in ("log_beta", "log_posterior"))
        log_variance, variance = share * high + (1 - share) * low, None
    return guided_ddpm_step(
        x_t, prediction.epsilon, c["signal"], c["x0_weight"], c["x_t_weight"], log_variance,
        variance, gradient, c["inner"][:, None, None, None] * noise, sampler.clip,
    )  # fmt: skip


def fused_step(
    sampler: Sampler,
    schedule: Schedule,
    index: int,
    x_t: Tensor,
    prediction: Prediction,
    gradient: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """:meth:`Sampler.step` through the fused update where there is one."""
    found = step_coefficients(sampler, schedule, index, len(x_t), x_t.device)
    if found is None:
        return sampler.step(schedule, index, x_t, prediction, gradient, noise)
    return fused_update(sampler, found, x_t, prediction, gradient, noise)


class _Traced(nn.Module):
    """A function as a graph of tensor operations, backward pass included, at fixed shapes.

    Args:
        function: of lists of tensors and tensors; gives a list of tensors.
        arguments: examples.
        frozen: whether the first argument, a list of weights, becomes the module's own; the
            call then leaves it out.
    """

    def __init__(
        self, function: Callable[..., list[Tensor]], arguments: tuple[Any, ...], frozen: bool
    ) -> None:
        super().__init__()
        on_cpu = not any(leaf.is_cuda for leaf in tree_leaves(arguments))
        trace = make_fx(function, decomposition_table=REPLACEMENTS if on_cpu else None)
        graph = trace(*arguments)
        if on_cpu and _short_attention(graph):
            with sdpa_kernel(SDPBackend.MATH):
                graph = trace(*arguments)
        if on_cpu:
            use_onednn(graph)
        own = list(arguments[0]) if frozen else []
        own += _lift_constants(graph)
        graph.graph.set_codegen(fx.graph.CodeGen())
        graph.graph.eliminate_dead_code()
        graph.recompile()
        self.graph = graph
        self.weights = len(arguments[0]) if frozen else 0
        self.own = len(own)
        for number, tensor in enumerate(own):
            self.register_buffer(f"own_{number}", tensor)

    def forward(self, *arguments: Any) -> list[Tensor]:
        own = [getattr(self, f"own_{number}") for number in range(self.own)]
        inputs = tree_leaves(arguments)
        found: list[Tensor] = self.graph(*own[: self.weights], *inputs, *own[self.weights :])
        return found


def _lift_constants(graph: fx.GraphModule) -> list[Tensor]:
    """Make tensors that tracing met on its way further inputs of the graph; return them."""
    nodes = list(graph.graph.nodes)
    last = [node for node in nodes if node.op == "placeholder"][-1]
    given: dict[str, fx.Node] = {}
    constants = []
    for node in [node for node in nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in given:
            with graph.graph.inserting_after(last):
                given[name] = last = graph.graph.placeholder(name)
            constants.append(getattr(graph, name))
            delattr(graph, name)
        node.replace_all_uses_with(given[name])
        graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if node.target in (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    return constants


def _state(module: nn.Module) -> Weights:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _flat(state: Weights, device: torch.device) -> tuple[list[str], list[Tensor]]:
    return list(state), [_laid_out(value.detach().to(device)) for value in state.values()]


def _laid_out(tensor: Tensor) -> Tensor:
    """Convolution weights channels-last, as convolutions want them."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _fill(x: Tensor, count: int) -> Tensor:
    """(B, ...) -> (count, ...): the last row repeated."""
    if len(x) == count:
        return x
    return torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])


def _short_attention(graph: fx.GraphModule) -> bool:
    keys = [
        node.args[1].meta["val"].shape[-2]
        for node in graph.graph.nodes
        if "scaled_dot_product" in str(node.target) and "backward" not in str(node.target)
    ]
    return bool(keys) and max(keys) <= SHORT_ATTENTION


def _digest(program: torch.export.ExportedProgram, freezing: bool) -> str:
    """Names a compiled graph: what it computes, with which constants, for which machine."""
    digest = hashlib.sha256()
    machine = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        freezing,
    )
    inputs = [
        (tuple(value.shape), value.stride(), value.dtype)
        for node in program.graph.nodes
        if node.op == "placeholder" and isinstance(value := node.meta.get("val"), Tensor)
    ]
    digest.update(repr((machine, inputs, program.graph_module.code)).encode())
    constants = {**program.state_dict, **program.constants}
    for name, value in sorted(constants.items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def can_compile() -> bool:
    """Whether inductor finds what it needs here; says so by a warning if it does not."""
    compiler = os.environ.get("CXX", "g++")
    if torch.cuda.is_available() or shutil.which(compiler):
        return True
    warnings.warn(f"no C++ compiler {compiler!r}: graphs are traced, not compiled", stacklevel=3)
    return False
