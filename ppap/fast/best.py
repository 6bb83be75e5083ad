"""Which preset suits these images and this guide: found out by the off-the-shelf predictor itself.

How guidance goes wrong depends on the images. Of garments, experts that are held back in the noise
guide better than as published, of scenes worse; calibrated ones the other way round. No data is
needed to find out which: images are drawn under each preset, over several scales, and shown to the
predictor, which was trained on clean images and has guided none of them. What counts is how well
they agree with their targets within a distance from what the denoiser draws unguided, on average
over distances. Distance is that of Fréchet between principal components of the pixels
(:class:`ppap.evaluation.pixels.PixelComponents`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppap.compute.options import check_number, check_whole
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import seed_list
from ppap.diffusion.stepping import AnyGuide
from ppap.evaluation.curves import Curve
from ppap.evaluation.features import extract
from ppap.evaluation.metrics import fid
from ppap.evaluation.pixels import PixelComponents
from ppap.evaluation.reference import ReferenceStatistics
from ppap.fast.path import FastPath
from ppap.fast.presets import Preset, preset_of
from ppap.fast.sampling import sample

__all__ = ["CANDIDATES", "SCALES", "Best", "Tried", "best_preset"]

CANDIDATES = ("fast", "held-back", "calibrated")
SCALES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Of a classifier's guidance in 8 steps."""
MOST_COMPONENTS = 32
PLACES = 65
"""At which presets are compared."""
LEAST_DISTANCE = 1e-12
"""Of images that are the same as others, whose logarithm is to be taken."""


@dataclass(frozen=True)
class Tried:
    """Images under one preset at one scale.

    Attributes:
        preset: its name.
        scale: of the guide.
        agreement: mean score of the images, by who did not guide them.
        distance: Fréchet's from unguided images, squared, in pixels of [-1, 1].
    """

    preset: str
    scale: float
    agreement: float
    distance: float


@dataclass(frozen=True)
class Best:
    """What was found.

    Attributes:
        name: of the preset, as it was given.
        preset: for ``ppap.sample(..., preset=best.preset)``.
        scale: for the guide: that of the best agreement, and of equals the least.
        gain: of agreement over the first preset within the same distances; 0 for itself.
        tried: preset by preset, scales rising.
    """

    name: str
    preset: Preset
    scale: float
    gain: float
    tried: tuple[Tried, ...]


def best_preset(
    denoiser: Denoiser,
    guide: Callable[[float], AnyGuide],
    score: Callable[[Tensor], Tensor],
    seeds: int | Sequence[int] = 128,
    *,
    presets: Sequence[str] | Mapping[str, Preset] = CANDIDATES,
    scales: Sequence[float] = SCALES,
    batch: int = 128,
    fast: FastPath | bool | None = None,
) -> Best:
    """The preset under which images agree best with their targets, within the same distance.

    It is that of the best agreement within a distance on average over distances, the same for all:
    from where all have images to where the last is at its best. Between two scales agreement is
    taken to be straight in the logarithm of the distance. With the same seeds the same call finds
    the same. It draws as many images as there are seeds for each scale of each preset, and holds
    for other targets of the kind.

    Args:
        denoiser: what is sampled from.
        guide: from a scale to the guide with as many targets as there are seeds, e.g.
            ``lambda scale: bank.guide(targets, scale)``.
        score: (N, C, H, W) images in [-1, 1] on the CPU, one per seed, to (N,) how well each
            agrees with its target; more is better. E.g. by the predictor that the experts were
            made of: ``lambda images: task.score(predictor(images), targets)``.
        seeds: of the guided images, as for :func:`ppap.sample`. As many that follow the greatest
            are of the unguided ones.
        presets: names of :data:`ppap.fast.presets.PRESETS`, or presets by names of your own.
        scales: of the guide that are tried, under every preset; two or more.
        batch: images per network call.
        fast: as for :func:`ppap.sample`, in place of the presets' own.

    Raises:
        StepGuideError: for a guide that makes whole steps, and a preset that changes it.
        TypeError: for what is no preset, a guide that is no function of the scale, a scale that is
            no number, or scores that are no tensor.
        ValueError: for no preset or an unknown one, fewer than two seeds or scales, a scale twice
            or one that is not positive and finite, or scores that are not (N,) finite numbers.
    """
    known = _by_name(presets)
    if hasattr(guide, "target_count") or not callable(guide):
        raise TypeError(
            "the guide is a function of the scale, such as lambda scale: bank.guide(targets, "
            f"scale), got {type(guide).__name__}"
        )
    for at in scales:
        check_number("a scale", at, 0, above=True)
    ladder = sorted(scales)
    if len(set(ladder)) < max(2, len(ladder)):
        raise ValueError(f"expected two scales or more, all different, got {scales}")
    check_whole("batch", batch)
    numbers = seed_list(seeds)
    if len(numbers) < 2:
        raise ValueError(f"a distance between images takes two seeds or more, got {len(numbers)}")
    others = range(max(numbers) + 1, max(numbers) + 1 + len(numbers))
    unguided = sample(denoiser, others, batch=batch, fast=fast, preset=next(iter(known.values())))
    seen_by = PixelComponents.fit(unguided, min(MOST_COMPONENTS, len(numbers) - 1))
    reference = ReferenceStatistics.from_features(extract(seen_by, unguided))

    def tried(name: str, at: float) -> Tried:
        images = sample(denoiser, numbers, guide(at), batch=batch, fast=fast, preset=known[name])
        with torch.no_grad():
            scores = _checked(score(images), len(numbers))
        distance = fid(extract(seen_by, images), reference)
        agreement = float(scores.double().mean())
        return Tried(name, at, agreement, max(distance, LEAST_DISTANCE))

    found = {name: [tried(name, at) for at in ladder] for name in known}
    standings = _standings(found)
    best = max(standings, key=standings.__getitem__)  # of equals the first
    gain = standings[best] - next(iter(standings.values()))
    chosen = max(found[best], key=lambda point: point.agreement)
    every = tuple(itertools.chain.from_iterable(found.values()))
    return Best(best, known[best], chosen.scale, gain, every)


def _by_name(presets: Sequence[str] | Mapping[str, Preset]) -> dict[str, Preset]:
    if isinstance(presets, str):
        raise TypeError(f"presets are several names, got {presets!r} alone")
    named = presets if isinstance(presets, Mapping) else {name: name for name in presets}
    if not named:
        raise ValueError("there must be a preset to choose")
    return {name: preset_of(preset) for name, preset in named.items()}


def _checked(scores: Tensor, count: int) -> Tensor:
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores are a tensor, one for each image, got {type(scores).__name__}")
    if scores.shape != (count,) or not bool(scores.isfinite().all()):
        raise ValueError(
            f"expected ({count},) finite scores, one for each image, got {tuple(scores.shape)}"
        )
    return scores


def _standings(found: Mapping[str, Sequence[Tried]]) -> dict[str, float]:
    """Of each preset the best agreement within a distance, on average over its logarithm.

    From the least distance within which all have images to the greatest at which any is at its
    best.
    """
    curves = {
        name: Curve.of(
            [point.scale for point in points],
            [point.distance for point in points],
            [point.agreement for point in points],
        )
        for name, points in found.items()
    }
    low = max(curve.distances.min() for curve in curves.values())
    high = max(curve.distances[curve.scores.argmax()] for curve in curves.values())
    distances = np.geomspace(low, high, PLACES) if high > low else [low]
    return {
        name: float(np.mean([_within(curve, at) for at in distances]))
        for name, curve in curves.items()
    }


def _within(curve: Curve, distance: float) -> float:
    """The best agreement up to a distance."""
    reached = curve.scores[curve.distances <= distance]
    return float(np.nanmax([*reached, curve.score_at(distance)]))
