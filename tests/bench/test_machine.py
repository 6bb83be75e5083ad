"""What a machine could do is counted by what kind of work it is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bench.machine import Operations, measure_ceiling


def test_operations_are_counted_as_convolutions_or_products_gradients_included() -> None:
    x = torch.randn(2, 3, 8, 8)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    a = torch.randn(5, 6)
    with Operations() as counter:
        y = F.conv2d(x, weight, padding=1)
        assert (counter.convolutions, counter.products) == (2 * 2 * 4 * 64 * 27, 0)
        torch.autograd.grad(y.sum(), weight)
        a @ a.t()
    assert counter.convolutions == 2 * (2 * 2 * 4 * 64 * 27)
    assert counter.products == 2 * 5 * 6 * 5
    assert counter.total == counter.convolutions + counter.products


def test_a_ceiling_is_operations_over_the_median_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 9.0, 2.0, 1.0, 7.0] * 2)  # two to warm up, then 1, 2 and 7
    monkeypatch.setattr("bench.machine.clock", lambda function: next(seconds))
    monkeypatch.setattr("bench.machine.SIDE", 4)
    found = measure_ceiling(calls=3)
    assert found.product == 2 * 4**3 / 2.0
    assert found.convolution == 2 * 9 * 32 * 32 * 32 * 128 * 128 / 2.0
