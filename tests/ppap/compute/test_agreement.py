"""A twin is compared with its original once, and used only if it is the same function."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppap.compute.agreement import FirstUse, agree, as_near, values_and_gradient
from ppap.compute.precision import shortens_float32

X = torch.linspace(-1, 1, 12).view(4, 3)


def first_use() -> FirstUse:
    return FirstUse("the twin", logging.getLogger("ppap"))


def test_the_same_function_written_otherwise_is_allowed_and_compared_once() -> None:
    calls = []

    def twin(x: Tensor) -> Tensor:
        calls.append(x)
        return (2 * x.sin()) * x.cos()

    check = first_use()
    assert all(check.allows(twin, lambda x: (2 * x).sin(), X) for _ in range(3))
    assert len(calls) == 1


def raising(x: Tensor) -> Tensor:
    raise KeyError("1")


DIFFERENT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "values": (lambda x: 2.1 * x, "its values are others"),
    "values of one sample": (
        lambda x: torch.cat([2 * x[:3], 2.1 * x[3:]]),
        "its values are others",
    ),
    "gradient": (lambda x: 2 * x.detach() + 0 * x, "its gradient is another"),
    "no gradient": (lambda x: 2 * x.detach(), "its gradient is another"),
    "shape": (lambda x: 2 * x[:2], "its values are others"),
    "an error": (raising, "KeyError: '1'"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_another_function_is_dropped_with_one_line(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    twin, reason = DIFFERENT[kind]
    check = first_use()
    with caplog.at_level(logging.WARNING):
        assert not any(check.allows(twin, lambda x: 2 * x, X) for _ in range(3))
    assert caplog.messages == [f"the twin is not used: {reason}"]


def test_modes_are_compared_each_and_one_refusal_is_enough() -> None:
    check = first_use()
    assert check.allows(torch.sin, torch.sin, X, mode="evaluation")
    assert not check.allows(torch.cos, torch.sin, X, mode="training")
    assert not check.allows(torch.sin, torch.sin, X, mode="evaluation")


def test_an_original_that_draws_at_random_is_not_compared_and_the_stream_is_kept() -> None:
    before = torch.get_rng_state()
    assert first_use().allows(torch.sin, lambda x: x + torch.rand_like(x), X)
    assert torch.equal(before, torch.get_rng_state())


def test_values_and_gradient_are_there_without_gradients_and_in_inference() -> None:
    with torch.no_grad():
        values, gradient = values_and_gradient(torch.square, X)
    assert torch.equal(values, X.square())
    torch.testing.assert_close(gradient, 2 * X * torch.arange(1, 13).cos().view(4, 3))
    with torch.inference_mode():
        assert first_use().allows(torch.sin, torch.sin, X.clone())


@pytest.mark.parametrize(
    ("dtype", "relative", "same"),
    [
        (torch.float64, 1e-8, False),
        (torch.float32, 1e-4, True),
        (torch.float32, 1e-2, False),
        (torch.bfloat16, 2e-2, True),
        (torch.bfloat16, 0.2, False),
        (torch.float32, float("nan"), False),
    ],
)
def test_what_counts_as_rounding(dtype: torch.dtype, relative: float, same: bool) -> None:
    x = X.to(dtype)
    assert agree(x * (1 + relative), x) is same


def test_a_gradient_may_turn_at_a_kink_of_one_sample_in_four() -> None:
    turned = X.clone()
    turned[0] *= -1
    assert agree(turned, X)
    assert not agree(turned, X, differing=0)
    turned[1] *= -1
    assert not agree(turned, X)


def test_a_gradient_in_half_precision_may_err_as_much_as_another() -> None:
    usual, larger = X * 1.2, X * 1.3
    assert as_near(larger, usual, X)
    assert not as_near(X * 1.5, usual, X)
    assert as_near(X * 1.05, X, X)  # by luck the other one errs by nothing
    assert not as_near(X * 1.15, X, X)
    turned = usual.clone()
    turned[0] *= -1
    assert as_near(turned, usual, X)
    assert as_near(usual, turned, X)  # one sample at a kink lends the others no leeway
    assert not as_near(X * 1.5, turned, X)
    assert not as_near(X * float("nan"), usual, X)
    assert not as_near(X[:2], usual, X)
    assert not as_near(X * 1.05, X, X, small=0.01)  # as in TF32
    assert as_near(X * 1.005, X, X, small=0.01)


def test_a_twin_is_compared_with_whole_products(
    caplog: pytest.LogCaptureFixture, float32_switches: Any
) -> None:
    """Else TF32, of which kinks make more than rounding, would speak against it."""
    seen: list[bool] = []

    def original(x: Tensor) -> Tensor:
        seen.append(shortens_float32("cpu"))
        return x * (1.1 if seen[-1] else 1.0)

    float32_switches.mkldnn.matmul.fp32_precision = "tf32"
    assert FirstUse("a twin", logging.getLogger("ppap")).allows(lambda x: x, original, X)
    assert shortens_float32("cpu")
    assert seen == [False]
    assert not caplog.records
