"""How narrowly tests pass: ``nox -s margins``.

Every comparison of numbers with a tolerance is watched: those of torch, NumPy and
``pytest.approx``, and assertions that a number is below or above another. At the end, the tests
are listed that used more than a third of what they are allowed, the narrowest first: a CPU that
rounds otherwise may need the rest. Thresholds that are no tolerances (an accuracy above one
half) are listed apart, for a reader to judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch

ROOM = 3.0
# What torch.testing.assert_close allows where a test states nothing: relative, absolute.
DEFAULTS = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}
NUMBER = r"(?:np\.\w+\(|tensor\()?(-?\d+\.?\d*(?:e[-+]?\d+)?)(?:, dtype=[\w.]+)?\)?"
ORDERED = re.compile(rf"^{NUMBER} (<=?|>=?) {NUMBER}(?: (<=?|>=?) {NUMBER})?$")

# Of the running test: the sort of a comparison, the share that it used, what was compared.
seen: list[tuple[str, float, str]] = []


def note(actual: Any, expected: Any, rtol: float, atol: float) -> None:
    """Take down the largest share of the allowed difference that was used."""
    one, other = _plain(actual), _plain(expected)
    with np.errstate(all="ignore"):
        allowed = atol + rtol * np.abs(other)
        share = np.where(one == other, 0.0, np.abs(one - other) / allowed)
    largest = float(np.nanmax(share, initial=0.0))
    seen.append(("tolerance", largest, f"rtol={rtol:g}, atol={atol:g}"))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().to(torch.complex128 if value.is_complex() else torch.float64)
    return np.asarray(value, dtype=np.complex128)


def _pairs(actual: Any, expected: Any) -> Iterator[tuple[Any, Any]]:
    """The tensors of a structure, each with its like in another of the same form."""
    if isinstance(expected, Mapping):
        for key in expected:
            yield from _pairs(actual[key], expected[key])
    elif isinstance(expected, Sequence):
        for one, other in zip(actual, expected, strict=True):
            yield from _pairs(one, other)
    else:
        yield actual, expected


def _watch_torch(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def assert_close(actual: Any, expected: Any, **options: Any) -> None:
        original(actual, expected, **options)
        for pair in _pairs(actual, expected):
            kinds = [value.dtype for value in pair if isinstance(value, torch.Tensor)]
            defaults = [DEFAULTS.get(kind, (0.0, 0.0)) for kind in kinds or [torch.float64]]
            rtol, atol = (max(column) for column in zip(*defaults, strict=True))
            if options.get("rtol") is not None:
                rtol, atol = options["rtol"], options["atol"]
            note(*pair, rtol, atol)

    return assert_close


def _watch_numpy(original: Callable[..., Any], rtol: float, atol: float) -> Callable[..., Any]:
    @wraps(original)
    def allclose(
        actual: Any, expected: Any, rtol: float = rtol, atol: float = atol, **options: Any
    ) -> Any:
        close = original(actual, expected, rtol=rtol, atol=atol, **options)
        if close is None or close:
            note(actual, expected, rtol, atol)
        return close

    return allclose


def _watch_approx(original: Callable[..., bool]) -> Callable[..., bool]:
    def equal(self: Any, actual: Any) -> bool:
        close = original(self, actual)
        if close and isinstance(self.expected, int | float | np.number):
            note(actual, self.expected, 0.0, self.tolerance)
        return close

    return equal


def pytest_configure() -> None:
    """Watch, from before the test modules import what is watched."""
    torch.testing.assert_close = _watch_torch(torch.testing.assert_close)
    torch.allclose = _watch_numpy(torch.allclose, 1e-5, 1e-8)
    np.testing.assert_allclose = _watch_numpy(np.testing.assert_allclose, 1e-7, 0.0)
    np.allclose = _watch_numpy(np.allclose, 1e-5, 1e-8)
    scalar: Any = type(pytest.approx(1.0))
    scalar.__eq__ = _watch_approx(scalar.__eq__)


def pytest_assertion_pass(orig: str, expl: str) -> None:
    """Take down an assertion that one number is below another, or between two."""
    match = ORDERED.match(expl.split("\n", maxsplit=1)[0])
    if match is None:
        return
    first, _, second, *rest = match.groups()
    pairs = [(first, second)] + ([(second, rest[1])] if rest[0] else [])
    for pair in pairs:
        small, large = sorted(abs(float(number)) for number in pair)
        if large and math.isfinite(large):
            seen.append(("threshold", small / large, f"{match[0]}: {orig}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """The narrowest comparison of each sort travels with the test's report."""
    seen.clear()
    result = yield
    for sort in ("tolerance", "threshold"):
        found = [(share, what) for kind, share, what in seen if kind == sort]
        if found:
            item.user_properties.append((sort, max(found)))
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tests with less room than `ROOM`."""
    reports = [r for r in terminalreporter.getreports("passed") if r.when == "call"]
    for sort in ("tolerance", "threshold"):
        found = [
            (share, f"{report.nodeid}  {what}")
            for report in reports
            for name, (share, what) in report.user_properties
            if name == sort
        ]
        narrow = sorted((f for f in found if f[0] * ROOM > 1), reverse=True)
        terminalreporter.section(f"{sort}: {len(narrow)} of {len(found)} tests have little room")
        for share, told in narrow:
            terminalreporter.write_line(f"{share:6.3f}  {told}")
