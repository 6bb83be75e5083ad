"""Guides that users bring along: a module of theirs with one class, by the module's name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ablations.cells.guidance import AroundModel, Model
from ablations.cells.setup import Setup
from ablations.errors import UserError
from ablations.machine.cell import Load
from ablations.machine.code import code_of, digest_of_code
from ablations.settings.plugins import load_plugin
from ppap.diffusion.stepping import AnyGuide
from ppap.guidance import METHODS
from ppap.guidance.guides import IgnoreTimestep
from ppap.guidance.likelihoods import ImageLikelihood, Likelihood, NoisyLikelihood

__all__ = ["Method", "defines_guide", "digest", "load_guide", "search_space"]

THROUGH_DENOISER = 3.0
"""How much longer a step takes with a gradient through the denoiser; for the time left."""


@dataclass(frozen=True)
class Method(AroundModel):
    """A way to guide by a model that is not its own gradient in x_t.

    Attributes:
        name: of ``ppap.guidance.METHODS``, or of a plugin's module.
        model: what it follows: a clean predictor, shown the predicted image, or experts, shown
            x_t.
        digest: of the plugin's code.
    """

    name: str
    model: Model
    digest: str

    @classmethod
    def of(cls, name: str, model: Model) -> Method:
        """By its name alone."""
        return cls(name, model, digest(name))

    def image_seconds(self) -> float:
        return THROUGH_DENOISER * self.model.image_seconds()

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float) -> AnyGuide:
        """The method, made with the likelihood of (N, ...) targets."""
        made = self.model.guide(setup, load, targets, 1.0)
        likelihood: Likelihood
        if isinstance(made.model, IgnoreTimestep):
            likelihood = ImageLikelihood(made.model.predictor, made.task, targets)
        else:
            likelihood = NoisyLikelihood(made.model, made.task, targets)
        return load_guide(self.name)(likelihood, scale)


def load_guide(name: str) -> Callable[..., AnyGuide]:
    """A method of ``ppap.guidance.METHODS``, or the only guide that a module defines.

    Called with a likelihood and a scale, and with options by name.

    Raises:
        UserError: for a module that cannot be imported, or has no guide, or several.
    """
    return METHODS[name] if name in METHODS else _class_of(name)


def defines_guide(name: str) -> bool:
    """Whether a plugin has a guide.

    Raises:
        UserError: for one whose module is called like a method of the library, which it would be
            taken for.
    """
    found = bool(_classes_of(name))
    if found and name in METHODS:
        raise UserError(
            f"the plugin {name} is called like a method of ppap.guidance.METHODS",
            "give its file another name",
        )
    return found


def digest(name: str) -> str:
    """Changes when a file of the plugin's own does; empty for a method of the library."""
    if name in METHODS:
        return ""
    _class_of(name)
    return digest_of_code(code_of(load_plugin(name)))


def search_space(name: str) -> Mapping[str, tuple[Any, ...]]:
    """What a plugin's search varies: its class's ``SEARCH``.

    A pair of positive numbers under ``"scale"``, from the least to the greatest scale, and under
    each option of the class the values that it may have; by default the scale alone.

    Raises:
        UserError: for another shape, or an option that the class does not have.
    """
    cls = _class_of(name)
    space: Any = getattr(cls, "SEARCH", {})
    if not isinstance(space, Mapping):
        raise UserError(f"plugin {name}: SEARCH is {space!r}", "give a dictionary of tuples")
    space = {"scale": (0.1, 64.0), **space}
    for option, values in space.items():
        if not isinstance(values, list | tuple) or not values:
            raise UserError(
                f"plugin {name}: SEARCH[{option!r}] is {values!r}",
                "give a tuple of values; one of a single value ends in a comma",
            )
        if unfit := [value for value in values if not _is_plain(value)]:
            raise UserError(
                f"plugin {name}: SEARCH[{option!r}] has {unfit[0]!r}, a {type(unfit[0]).__name__}",
                "give numbers, words, None or tuples of these, which a record can hold",
            )
    scale = space["scale"]
    numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in scale)
    if len(scale) != 2 or not numbers or not 0 < scale[0] < scale[1]:
        raise UserError(
            f"plugin {name}: SEARCH['scale'] is {scale!r}",
            "give the least and the greatest scale, both positive",
        )
    known = inspect.signature(cls).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    if unknown := [each for each in space if each not in ("scale", *known) and not anything]:
        raise UserError(
            f"plugin {name}: {cls.__name__} takes no {unknown[0]}, which is in SEARCH",
            f"choose from {', '.join(known)}",
        )
    return {option: tuple(values) for option, values in space.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _class_of(name: str) -> type[Any]:
    found = _classes_of(name)
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise UserError(
            f"plugin {name} must define one guide, a public class with rows and target_count; "
            f"it has {names}",
            "begin the names of the others with an underscore",
        )
    return found[0]


def _classes_of(name: str) -> list[type[Any]]:
    """The public classes of a module that are guides or step guides by what they can do."""
    module = load_plugin(name)
    return [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not key.startswith("_")
        and hasattr(value, "rows")
        and hasattr(value, "target_count")
    ]
