"""Options looked at where they are given: a wrong one is named at once, not hours later."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["check_captions", "check_choice", "check_number", "check_whole"]


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuse what is no whole number in a range.

    Args:
        name: of the option, for the message.
        value: what was given.
        least: the smallest that is allowed.
        most: the largest; None for no bound.

    Raises:
        TypeError: for what is no integer, such as 25.0.
        ValueError: for one outside the range.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"{name} is a whole number, got {value!r}")
    if found < least or (most is not None and found > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, above: bool = False
) -> None:
    """Refuse what is no finite number in a range.

    Args:
        name: of the option, for the message.
        value: what was given.
        least: the lower bound.
        most: the upper bound, itself allowed.
        above: whether the lower bound itself is not allowed.

    Raises:
        TypeError: for what is no number.
        ValueError: for NaN, infinity and numbers outside the range.
    """
    try:
        found = None if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise TypeError(f"{name} is a number, got {value!r}")
    if not math.isfinite(found) or not least <= found <= most or (above and found == least):
        low = f"{'above' if above else 'at least'} {least:g}" if least > -math.inf else ""
        high = f"at most {most:g}" if most < math.inf else ""
        wanted = " and ".join(part for part in (low, high) if part)
        raise ValueError(f"{name} must be finite{wanted and ' and '}{wanted}, got {value}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse what is none of several choices.

    Raises:
        ValueError: naming them.
    """
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(map(str, choices))}")


def check_captions(captions: Sequence[Any]) -> None:
    """Refuse what is no list of captions; one alone would be taken for its letters.

    Raises:
        TypeError: for a single caption, or one that is no text.
        ValueError: for none.
    """
    if isinstance(captions, str):
        raise TypeError(f"captions are several texts, got {captions!r} alone; give [{captions!r}]")
    if wrong := [caption for caption in captions if not isinstance(caption, str)]:
        raise TypeError(f"captions are texts, got {wrong[0]!r}")
    if not len(captions):
        raise ValueError("expected a caption or more, got none")
