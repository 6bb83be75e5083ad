"""``--set field=value``: what a run changes of its budget and of how its experts are made.

A change is part of the budget's name, and so of every record: ``default+batch=32``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ablations.errors import UserError
from ablations.settings.budget import Budget
from ablations.sweeps.recipes import PPAP, FineTuning, Recipe

__all__ = ["Changes"]

NAMED = ("experts", "supervision", "tuning", "guide", "refinement")
"""Of a recipe, what the labels of rows tell: a change would make them lie."""
BUDGET: dict[str, Any] = get_type_hints(Budget)
RECIPE: dict[str, Any] = {
    **{name: kind for name, kind in get_type_hints(Recipe).items() if name not in NAMED},
    "learning_rate": get_type_hints(FineTuning)["learning_rate"],
}
SAMPLES = ("samples", "selection_samples", "ancestral_samples", "curve_samples")
LEAST = dict.fromkeys(SAMPLES, 10) | {"resamples": 2}
"""Below, FID and intervals cannot be had."""


@dataclass(frozen=True)
class Changes:
    """What differs from a budget and from the recipes of the sweeps.

    Attributes:
        budget: new values of fields of :class:`Budget`.
        recipe: new values of fields of every :class:`Recipe` that has experts, and the
            ``learning_rate`` of its tuning.
    """

    budget: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: Iterable[str], options: Mapping[str, Any]) -> Changes:
        """From the command line.

        Args:
            given: ``field=value`` each; of two for one field the later counts. Several values
                are separated by commas.
            options: fields of the budget that have an option of their own, and their values.

        Raises:
            UserError: for a field that is not there, a value that it cannot have, or two values
                of one field.
        """
        found: dict[str, Any] = {}
        for word in given:
            name, equals, text = word.partition("=")
            if name not in {**BUDGET, **RECIPE} or not equals:
                what = f"no field {name!r}" if equals else f"{word!r} is no field=value"
                raise UserError(f"--set: {what}", f"choose from {', '.join({**BUDGET, **RECIPE})}")
            found[name] = _parse(name, text, {**BUDGET, **RECIPE}[name])
        for name, value in options.items():
            _check(name, value, "--")
            if found.setdefault(name, value) != value:
                raise UserError(
                    f"--{name} and --set {name} say two things", "leave out one of them"
                )
        return cls(
            {name: found[name] for name in BUDGET if name in found},
            {name: found[name] for name in RECIPE if name in found},
        )

    def applied(self, budget: Budget) -> Budget:
        """The budget with its changes."""
        return replace(budget, **self.budget)

    def name(self, budget: Budget, name: str) -> str:
        """What records call the changed budget: the name of the other, and what is different.

        Scales that are given are told even if they are the budget's: all rows are at these then.
        """
        usual = {**vars(budget), **vars(PPAP)}
        told = [
            f"+{each}={_text(value)}"
            for each, value in sorted({**self.budget, **self.recipe}.items())
            if each not in usual or usual[each] != value or each == "scales"
        ]
        return "".join([name, *told])


def _parse(name: str, text: str, kind: Any) -> Any:
    """A value of a type, out of its text."""
    convert: Callable[[str], Any] = _kinds(kind)
    try:
        value = convert(text)
    except ValueError as error:
        raise UserError(f"--set {name}={text}: {error}", "give another value") from None
    _check(name, value, "--set ")
    return value


def _check(name: str, value: Any, option: str) -> None:
    """Refuse numbers that nothing can be run with."""
    numbers = value if isinstance(value, tuple) else (value,)
    least = LEAST.get(name, 1)
    for number in numbers:
        if isinstance(number, bool | str):
            continue
        if isinstance(number, int) and number < least:
            raise UserError(f"{option}{name} must be at least {least}, got {number}", "raise it")
        low = number < 0 if name == "scales" else number <= 0
        if low or not math.isfinite(number):
            raise UserError(f"{option}{name} cannot be {number:g}", "give a positive number")
    if not numbers or len(set(numbers)) != len(numbers):
        raise UserError(f"{option}{name} has no value, or one twice", "list each once")


def _kinds(kind: Any) -> Callable[[str], Any]:
    if get_origin(kind) is tuple:
        convert = _kinds(get_args(kind)[0])
        return lambda text: tuple(convert(part) for part in text.split(",") if part)
    if get_origin(kind) is Literal:
        return lambda text: _one_of(text, get_args(kind))
    if kind is bool:
        return lambda text: _one_of(text, ("false", "true")) == "true"
    return kind  # type: ignore[no-any-return]


def _one_of(text: str, known: tuple[str, ...]) -> str:
    """The word that is given, as it is or as it stands in a budget's name."""
    for word in known:
        if text in (word, _text(word)):
            return word
    raise ValueError(f"choose from {', '.join(known)}")


def _text(value: Any) -> str:
    """A value as it stands in a file's name."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0").replace(" ", "-")
