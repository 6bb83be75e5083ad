"""Every operation of the kernels against float64: sizes of real networks, and odd ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ppap_kernels as kernels
import torch
from ppap_kernels.dispatch import Backend
from ppap_kernels.operations import (
    PASSES,
    Problem,
    grouped_lora_linear,
    guided_step,
    lora_conv,
    lora_linear,
    merge_lora,
    problems,
    transfer_loss,
)
from ppap_kernels.operations.description import normal
from torch import Tensor

from bench.gpu.hardware import precision

__all__ = ["MODES", "Check", "odd_checks", "real_checks", "run_check"]

Tensors = dict[str, Tensor]
MODES = {
    "fp32": (torch.float32, 2e-5),
    "tf32": (torch.float32, 5e-3),
    "fp16": (torch.float16, 8e-3),
    "bf16": (torch.bfloat16, 6e-2),
}
"""Element types, and the largest difference allowed, as a share of the largest value."""
FACTORS = ("x", "w", "a", "b", "bias")
BACKENDS: tuple[Backend, ...] = ("triton", "auto")


@dataclass(frozen=True)
class Check:
    """An operation at one size.

    Attributes:
        name: of the operation.
        shape: in words.
        make: (dtype, device) -> inputs.
        call: (inputs, backend) -> result.
        reference: plain torch, also in float64.
        trained: inputs that a full backward pass gives gradients.
    """

    name: str
    shape: str
    make: Callable[[torch.dtype, torch.device], Tensors]
    call: Callable[[Tensors, Backend], Tensor]
    reference: Callable[[Tensors], Tensor]
    trained: tuple[str, ...]


CALLS: dict[str, Callable[[Tensors, Backend], Tensor]] = {
    "lora_linear": lambda t, backend: kernels.lora_linear(
        t["x"], t["w"], t["a"], t["b"], t["bias"], 0.5, backend=backend
    ),
    "grouped_lora_linear": lambda t, backend: kernels.grouped_lora_linear(
        t["x"], t["w"], t["a"], t["b"], t["index"], t["bias"], 0.5, backend=backend
    ),
    "lora_conv": lambda t, backend: kernels.lora_conv(
        t["x"], t["w"], t["a"], t["b"], None, 0.5, stride=1, padding=1, backend=backend
    ),
    "merge_lora": lambda t, backend: kernels.merge_lora(
        torch.empty_like(t["w"]), t["w"], t["a"], t["b"], 0.5, backend=backend
    ),
    "guided_ddim_step": lambda t, backend: kernels.guided_ddim_step(
        t["x"], t["eps"], t["level"], t["before"], t["sigma"], t["gradient"], t["noise"],
        backend=backend,
    ),
    "guided_ddpm_step": lambda t, backend: kernels.guided_ddpm_step(
        t["x"], t["eps"], t["level"], t["before"], 1 - t["before"], t["sigma"], None,
        t["gradient"], t["noise"], backend=backend,
    ),
    "transfer_loss": lambda t, backend: kernels.transfer_loss(
        t["x"], t["teacher"], 0.25, backend=backend
    ),
}  # fmt: skip


def odd_checks() -> Iterator[Check]:
    """Sizes that no tile fits: quick, and what is wrong shows there first."""
    yield from _convolutions()
    yield _with_idle_rows()
    for problem in (
        lora_linear.problem(33, 70, 101, 5, gpu=False),
        lora_linear.problem(5, 7, 6, 1, gpu=False),
        grouped_lora_linear.problem(7, 5, 45, 77, 3, gpu=False),
        lora_conv.problem(3, 37, 7, 5, gpu=False),
        merge_lora.problem(37, 1, 5, gpu=False),
        merge_lora.problem(23, 3, 3, gpu=False),
        guided_step.ddim_problem(3, 2, 13, gpu=False),
        guided_step.ddpm_problem(3, 2, 13, gpu=False),
        transfer_loss.problem(5, 10, gpu=False),
        transfer_loss.problem(37, 21, gpu=False),
    ):
        yield _of(problem)


def real_checks(on: torch.device) -> Iterator[Check]:
    """Sizes of real networks."""
    return map(_of, problems(on))


def _of(problem: Problem) -> Check:
    trained = tuple(name for name in FACTORS if name != "x") if problem.trained else ()
    call = CALLS[problem.name]
    return Check(problem.name, problem.shape, problem.make, call, problem.reference, trained)


def _convolutions() -> Iterator[Check]:
    for stride, padding, side in [((1, 1), 1, 7), ((2, 1), 1, 8), ((2, 3), 0, 9)]:
        for experts in (0, 3):
            yield _convolution(experts, stride, padding, side)


def _convolution(experts: int, stride: tuple[int, int], padding: int, side: int) -> Check:
    stack = (experts,) if experts else ()

    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = normal(
            dtype, on, x=(5, 7, side, side + 1), w=(18, 7, 3, 3), a=(*stack, 5, 7, 3, 3),
            b=(*stack, 18, 5), bias=(18,),
        )  # fmt: skip
        return found | {"index": torch.tensor([2, 0, -1, 0, 2], device=on)}

    def call(t: Tensors, backend: Backend) -> Tensor:
        about: Any = {"stride": stride, "padding": padding, "backend": backend}
        factors = t["x"], t["w"], t["a"], t["b"]
        if experts:
            return kernels.grouped_lora_conv(*factors, t["index"], t["bias"], 0.5, **about)
        return kernels.lora_conv(*factors, t["bias"], 0.5, **about)

    name = "grouped_lora_conv" if experts else "lora_conv"
    shape = f"5x7x{side}x{side + 1}->18, 3x3, stride {stride}, padding {padding}"
    return Check(name, shape, make, call, lambda t: call(t, "torch"), ("w", "a", "b", "bias"))


def _with_idle_rows() -> Check:
    """Some samples belong to no expert, one expert has none."""

    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = normal(dtype, on, x=(5, 7, 21), w=(18, 21), a=(3, 5, 21), b=(3, 18, 5), bias=(18,))
        return found | {"index": torch.tensor([2, 0, -1, 0, 2], device=on)}

    call = CALLS["grouped_lora_linear"]
    shape = "5x7x21->18, some of none"
    trained = ("w", "a", "b", "bias")
    return Check("grouped_lora_linear", shape, make, call, lambda t: call(t, "torch"), trained)


def run_check(check: Check, mode: str, on: torch.device) -> Iterator[dict[str, Any]]:
    """A row for every backend and pass, each on its own: one that fails doesn't stop the next."""
    dtype, limit = MODES[mode]
    inputs = check.make(dtype, on)
    for backend in BACKENDS:
        for what in PASSES:
            row: dict[str, Any] = {
                "operation": check.name, "shape": check.shape, "mode": mode,
                "backend": backend, "pass": what,
            }  # fmt: skip
            try:
                with precision(mode):
                    errors = relative_errors(check, inputs, backend, what)
            except Exception as error:  # noqa: BLE001 whatever a driver or a compiler raises
                yield row | {"ok": False, "failed": f"{type(error).__name__}: {str(error)[:600]}"}
                continue
            if errors is not None:
                worst = max(errors.values())
                ok = bool(worst <= limit)
                yield row | {"ok": ok, "worst": worst, "errors": errors, "limit": limit}


def relative_errors(
    check: Check, inputs: Tensors, backend: Backend, what: str
) -> dict[str, float] | None:
    """Largest difference by result, as a share of its largest value; None without such a pass."""
    tensors = dict(inputs)
    exact = {n: v.double() if v.is_floating_point() else v for n, v in tensors.items()}
    wanted: list[str] = []
    if what != "forward":
        if "x" not in tensors or (what == "full backward" and not check.trained):
            return None
        both = ("x", *(n for n in check.trained if n in tensors))
        wanted = list(both if what == "full backward" else both[:1])
        for name in wanted:
            tensors[name] = tensors[name].detach().requires_grad_()
            exact[name] = exact[name].detach().requires_grad_()
    with torch.set_grad_enabled(bool(wanted)):
        found, expected = check.call(tensors, backend), check.reference(exact)
    if not wanted:
        return {"y": _apart(found, expected)}
    generator = torch.Generator(found.device).manual_seed(1)
    probe = torch.randn(found.shape, generator=generator, device=found.device).to(found.dtype)
    ours = torch.autograd.grad(found, [tensors[n] for n in wanted], probe)
    probe = probe.double()
    theirs = torch.autograd.grad(expected, [exact[n] for n in wanted], probe)
    triples = zip(wanted, ours, theirs, strict=True)
    return {f"d{name}": _apart(a, b) for name, a, b in triples}


def _apart(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"expected {tuple(expected.shape)}, got {tuple(found.shape)}")
    size = expected.abs().max().clamp(min=1e-30)
    return float(((found.double() - expected).abs().max() / size).nan_to_num(torch.inf))
