"""The best preset is that under which images agree best with their targets, at no more distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.diffusion.stepping import StepGuideError
from ppap.fast.best import Best, best_preset
from ppap.fast.presets import Preset
from ppap.fast.sampling import sample
from ppap.guidance.guides import naive_guide
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.mpgd import MPGD
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import CLASSES, SHAPE, tiny_denoiser, tiny_predictor

SEEDS = 24
ALWAYS, LATE = Preset(DDIM(6)), Preset(DDIM(6), signal_power=1.0)
TWO = {"always": ALWAYS, "late": LATE}
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Push:
    """Brightens the first channel at some noise levels; at the others it draws stripes for it."""

    scale: float
    wasteful: Callable[[Tensor], Tensor]
    target_count: int | None = None

    def __call__(self, state: State) -> Tensor:
        wasted = self.wasteful(state.signal).reshape(-1, 1, 1, 1).float()
        gradient = torch.zeros_like(state.x_t)
        gradient[:, 0] = 1.0
        stripes = torch.ones_like(state.x_t)
        stripes[..., ::2] = -1.0
        return self.scale * ((1 - wasted) * gradient + 2 * wasted * stripes)

    def rows(self, chosen: slice) -> Self:
        del chosen
        return self


def brightness(images: Tensor) -> Tensor:
    return images[:, 0].mean(dim=(1, 2))


def found(guide: Callable[[float], Any], **options: Any) -> Best:
    given: dict[str, Any] = {"seeds": SEEDS, "presets": TWO, "scales": SCALES} | options
    score = given.pop("score", brightness)
    return best_preset(tiny_denoiser(), guide, score, **given)


@pytest.mark.parametrize(
    ("wasteful", "name"),
    [(lambda signal: signal < 0.3, "late"), (lambda signal: signal > 0.3, "always")],
    ids=["in the noise", "near the image"],
)
def test_what_wastes_less_distance_is_found(
    wasteful: Callable[[Tensor], Tensor], name: str
) -> None:
    best = found(lambda scale: Push(scale, wasteful))
    assert (best.name, best.preset) == (name, TWO[name])
    assert (best.gain > 0.01) == (name == "late")
    assert best.gain >= 0
    points = [point for point in best.tried if point.preset == name]
    assert best.scale == max(points, key=lambda point: point.agreement).scale


def test_it_tells_what_it_has_seen() -> None:
    denoiser, predictor, task = tiny_denoiser(), tiny_predictor(), ClassTask()
    targets = torch.arange(SEEDS) % CLASSES

    def score(images: Tensor) -> Tensor:
        return task.score(predictor(images), targets)

    def guide(scale: float) -> Any:
        return naive_guide(predictor, task, targets, scale)

    best = found(guide, score=score, seeds=range(5, 5 + SEEDS), scales=(8.0, 2.0))
    assert [(point.preset, point.scale) for point in best.tried] == [
        ("always", 2.0), ("always", 8.0), ("late", 2.0), ("late", 8.0),
    ]  # fmt: skip
    for point in best.tried:
        seeds = range(5, 5 + SEEDS)
        images = sample(denoiser, seeds, guide(point.scale), preset=TWO[point.preset])
        assert point.agreement == pytest.approx(float(score(images).mean()))
        assert 0 < point.distance < 4 * math.prod(SHAPE)
    assert found(guide, score=score, seeds=range(5, 5 + SEEDS), scales=(8.0, 2.0)) == best


def test_of_equal_presets_the_first_is_taken() -> None:
    best = found(lambda scale: Push(scale, torch.zeros_like), presets={"a": ALWAYS, "b": ALWAYS})
    assert (best.name, best.gain) == ("a", 0.0)
    first, second = best.tried[: len(SCALES)], best.tried[len(SCALES) :]
    assert [point.distance for point in first] == [point.distance for point in second]


def test_where_nothing_guides_the_first_is_taken() -> None:
    best = found(lambda scale: Push(0.0, torch.zeros_like))
    assert (best.name, best.gain, best.scale) == ("always", 0.0, min(SCALES))


def test_what_reaches_more_nearer_than_another_ever_comes_is_found() -> None:
    best = found(lambda scale: Push(scale, lambda signal: signal < 0.3), scales=(4.0, 8.0))
    near, far = (
        [point.distance for point in best.tried if point.preset == name]
        for name in ("late", "always")
    )
    assert max(near) < min(far)
    assert best.name == "late"


def test_names_stand_for_the_librarys_own_presets() -> None:
    targets = torch.arange(SEEDS) % CLASSES
    best = found(
        lambda scale: naive_guide(tiny_predictor(), ClassTask(), targets, scale),
        presets=("fast", "calibrated"), scales=(1.0, 4.0), fast=False,
    )  # fmt: skip
    assert {point.preset for point in best.tried} == {"fast", "calibrated"}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"presets": ()}, ValueError, "there must be a preset to choose"),
        ({"presets": "fast"}, TypeError, "several names, got 'fast' alone"),
        ({"presets": ("quick",)}, ValueError, "unknown preset 'quick'"),
        ({"presets": {"mine": DDIM(5)}}, TypeError, r"a name or a ppap\.Preset, got DDIM"),
        ({"seeds": 1}, ValueError, "two seeds or more, got 1"),
        ({"scales": (1.0,)}, ValueError, "two scales or more"),
        ({"scales": (1.0, 1.0)}, ValueError, "all different"),
        ({"scales": (0.0, 1.0)}, ValueError, "a scale must be finite and above 0, got 0"),
        ({"scales": (1.0, math.nan)}, ValueError, "a scale must be finite and above 0, got nan"),
        ({"scales": (1.0, "2")}, TypeError, "a scale is a number, got '2'"),
        ({"score": lambda images: 0.5}, TypeError, "one for each image, got float"),
        ({"score": lambda images: images}, ValueError, rf"expected \({SEEDS},\) finite scores"),
        ({"score": lambda images: brightness(images) / 0}, ValueError, "finite scores"),
        ({"batch": 0}, ValueError, "batch"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        found(lambda scale: Push(scale, torch.zeros_like), **options)


def test_a_guide_is_a_function_of_the_scale() -> None:
    for given in (Push(1.0, torch.zeros_like), 1.0):
        with pytest.raises(TypeError, match=r"is a function of the scale, such as lambda scale: "):
            found(given)


def test_whole_steps_are_not_held_back() -> None:
    targets = torch.arange(SEEDS) % CLASSES
    likelihood = ImageLikelihood(tiny_predictor(), ClassTask(), targets)
    with pytest.raises(StepGuideError, match="makes whole steps"):
        found(lambda scale: MPGD(likelihood, scale))


def test_best_is_no_preset_but_a_question() -> None:
    with pytest.raises(ValueError, match=r"depends on the images; ppap\.best_preset finds it"):
        sample(tiny_denoiser(), 2, preset="best")
