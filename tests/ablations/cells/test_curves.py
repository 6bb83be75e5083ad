"""Points of curves, how far their scales go on, and the records of curves and claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ablations.cells.chosen import ChosenRefinement
from ablations.cells.curve_points import (
    CurveScore,
    ExtendedSamples,
    Extension,
    SamplesAtScore,
    best_place,
)
from ablations.cells.curves import Claim, Curve
from ablations.cells.guidance import Guidance, Guiding, Model
from ablations.cells.pixel_reference import PixelReference
from ablations.cells.refined import Refined, Refinement
from ablations.cells.results import About
from ablations.cells.samples import Samples
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.evaluation.pixels import PixelComponents
from ppap.files.images import from_uint8, to_uint8

SETUP = Setup.of(load_setting("fashion"))
SAMPLER = DPMSolver(8, last=80)
REFERENCE = PixelReference(SETUP, 8, 200)
NAIVE = (Guidance(Model("resnet"), 4.0),)
SAMPLES = Samples(SETUP, SAMPLER, NAIVE, 50, 20)
SCORE = CurveScore(SAMPLES, "class", REFERENCE)
STAMP = {"created": "2026", "commit": "c", "dirty": False, "wall_seconds": 1.0, "hardware": {}}


@pytest.fixture(scope="module")
def pixels() -> Artifact:
    return REFERENCE.compute(lambda cell: Artifact({}))


def loading(found: Callable[[Cell], Artifact], pixels: Artifact) -> Callable[[Cell], Artifact]:
    return lambda cell: pixels if isinstance(cell, PixelReference) else found(cell)


def scored(images: Any, pixels: Artifact, score: CurveScore = SCORE) -> Artifact:
    drawn = Artifact({"scales": [4.0]}, {"images": np.asarray(images)})
    return score.compute(loading(lambda cell: drawn, pixels))


def garments() -> torch.Tensor:
    """Test images of the classes that the samples' targets are, in their order."""
    images, labels = load_setting("fashion").labelled("test")
    places = [int((labels == target).nonzero()[k]) for k in (20, 21) for target in range(10)]
    return images[torch.tensor(places)]


def test_the_reference_is_the_components_of_the_test_images(pixels: Artifact) -> None:
    extractor, statistics = REFERENCE.read(lambda cell: pixels)
    images, _ = load_setting("fashion").labelled("test")
    chosen = images[torch.linspace(0, len(images) - 1, 200).round().long()]
    fitted = PixelComponents.fit(chosen, 8)
    torch.testing.assert_close(extractor.components, fitted.components)
    assert statistics.extractor == "fashion-pixels-8"
    assert statistics.count == 200
    expected = fitted(from_uint8(chosen)).features.var(0).numpy()
    np.testing.assert_allclose(np.diag(statistics.covariance), expected, rtol=1e-5)


def test_a_point_tells_what_judge_pixels_and_guide_make_of_the_samples(pixels: Artifact) -> None:
    right = scored(garments(), pixels)
    figures = right.meta["figures"]
    assert (figures["scale"], figures["samples"]) == (4.0, 20)
    assert figures["score"] > 0.7
    assert figures["score"] == pytest.approx(right.arrays["scores"].mean())
    assert figures["belief"] == pytest.approx(right.arrays["belief"].mean())
    assert figures["belief"] > 0.6  # the clean network finds the targets in them, too
    assert right.arrays["belief"].shape == right.arrays["scores"].shape == (20,)
    assert right.meta["extractor"] == load_setting("fashion").extractor().name
    wrong = scored(garments().roll(1, 0), pixels).meta["figures"]
    assert wrong["score"] < 0.2 > wrong["belief"]
    assert wrong["pixel_fid"] == pytest.approx(figures["pixel_fid"])
    white = scored((garments() > 60).byte() * 255, pixels).meta["figures"]
    assert white["pixel_fid"] > 2 * figures["pixel_fid"]
    assert white["saturation_bright"] > 0.2 > figures["saturation_bright"]
    assert figures["pixel_fid_corrected"] < figures["pixel_fid"]
    assert white["pixel_coverage"] < figures["pixel_coverage"]
    assert set(figures) == {
        "scale", "samples", "score", "fid", "kid", "precision", "recall", "pixel_fid", "pixel_kid",
        "pixel_fid_corrected", "pixel_precision", "pixel_recall", "pixel_coverage", "saturation",
        "saturation_bright", "belief",
    }  # fmt: skip


def test_unguided_samples_have_no_guide_that_believes_anything(pixels: Artifact) -> None:
    drawn = Artifact({"scales": []}, {"images": garments().numpy()})
    score = replace(SCORE, samples=replace(SAMPLES, guidance=()))
    figures = score.compute(loading(lambda cell: drawn, pixels)).meta["figures"]
    assert figures["scale"] == 0.0
    assert figures["belief"] is None


def test_at_a_large_scale_the_pixels_leave_those_of_real_images(pixels: Artifact) -> None:
    """What a classifier's features do not see."""

    def distance(scale: float) -> float:
        samples = replace(SAMPLES, guidance=(Guidance(Model("resnet"), scale),), count=16)
        images = samples.draw(lambda cell: Artifact({}), samples.seeds)
        figures = scored(to_uint8(images), pixels, replace(SCORE, samples=samples)).meta["figures"]
        return float(figures["pixel_fid"])

    assert distance(300.0) > 1.5 * distance(1.0)


def points(
    *means: float | None, models: Sequence[Guiding] = (Model("resnet"),) * 2
) -> tuple[tuple[tuple[CurveScore, ...], ...], Any]:
    """Two units at scales 2, 4, 8, ..., whose scores lie around means, and what loads them."""
    made, known = [], {}
    for place, mean in enumerate(means):
        row = []
        for unit, off in enumerate((-0.05, 0.05)):
            guidance = (Guidance(models[unit], 2.0 ** (place + 1)),)
            samples = Samples(SETUP, SAMPLER, guidance, 100 * unit, 20)
            score = CurveScore(samples, "class", REFERENCE)
            figures = None if mean is None else {
                "scale": 2.0 ** (place + 1), "samples": 20, "score": mean + off, "pixel_fid": 1.0,
            }  # fmt: skip
            known[score.key] = Artifact({"figures": figures, "extractor": "judge"})
            known[samples.key] = Artifact({"cell": {"kind": "Samples"}, "provenance": STAMP})
            row.append(score)
        made.append(tuple(row))
    return tuple(made), lambda cell: known[cell.key]


@pytest.mark.parametrize(
    ("means", "higher", "further"),
    [
        ((0.2, 0.5, 0.9), True, True),
        ((0.2, 0.9, 0.5), True, False),
        ((0.2, 0.9, 0.9), True, False),  # of equals the smaller scale
        ((0.9, 0.5, 0.2), True, False),  # below it lies scale 0, which is known
        ((0.9, 0.5, 0.2), False, True),
        ((0.9, 0.2, 0.5), False, False),
        ((0.2, 0.9, None), True, False),  # ended before
        ((0.5, 0.9, None), False, False),
    ],
)
def test_a_curve_goes_on_while_its_best_mean_is_at_the_end(
    means: tuple[float | None, ...], higher: bool, further: bool
) -> None:
    made, load = points(*means)
    assert Extension(made, higher).compute(load).meta["further"] is further


def test_samples_beyond_the_end_are_neither_drawn_nor_scored(pixels: Artifact) -> None:
    made, _ = points(0.5)
    extension = Extension(made, True)
    samples = ExtendedSamples(SETUP, SAMPLER, NAIVE, 50, 2, extension=extension)
    assert extension in list(samples.inputs())
    nothing = samples.compute(lambda cell: Artifact({"further": False}))
    assert not nothing.arrays
    score = CurveScore(samples, "class", REFERENCE)
    assert score.compute(loading(lambda cell: nothing, pixels)).meta["figures"] is None
    drawn = samples.compute(lambda cell: Artifact({"further": True}))
    same = Samples(SETUP, SAMPLER, NAIVE, 50, 2).compute(lambda cell: Artifact({}))
    np.testing.assert_array_equal(drawn.arrays["images"], same.arrays["images"])
    assert drawn.meta["scales"] == [4.0]


@pytest.mark.parametrize(
    ("score", "scale"), [(0.1, 2.0), (0.45, 4.0), (0.75, 8.0), (0.95, 8.0), (0.7, 4.0)]
)
def test_samples_are_shown_at_the_scale_whose_mean_score_is_nearest(
    score: float, scale: float
) -> None:
    made, load = points(0.2, 0.5, 0.9, None)  # halfway, at 0.7, the smaller scale

    def drawn(cell: Any) -> Artifact:
        if not isinstance(cell, Samples):
            return load(cell)
        own = cell.guidance[0].scale
        return Artifact({"scales": [own]}, {"images": np.full(1, cell.first_seed + own)})

    shown = SamplesAtScore.of(made, score)
    assert {s.samples.key for row in made for s in row[:1]} < {cell.key for cell in shown.inputs()}
    found = shown.compute(drawn)
    assert found.meta["scales"] == [scale]
    assert found.meta["score"] == pytest.approx({2.0: 0.2, 4.0: 0.5, 8.0: 0.9}[scale])
    np.testing.assert_array_equal(found.arrays["images"], [scale])


@pytest.mark.parametrize(
    ("means", "unbounded"),
    [((0.2, 0.9, 0.5, None), False), ((0.2, 0.5, 0.9), True), ((0.5,), False)],
)
def test_a_curves_record_has_every_point_that_was_measured(
    means: tuple[float | None, ...], unbounded: bool
) -> None:
    made, load = points(*means)
    about = About("claims", "smoke", "ppap", "resnet")
    curve = Curve(SETUP, about, "8 to 80", (0, 1), "accuracy", True, made)
    assert {score.samples.key for row in made for score in row} <= {c.key for c in curve.inputs()}
    record = curve.compute(load).meta["record"]
    measured = [mean for mean in means if mean is not None]
    assert [(p["unit"], p["scale"]) for p in record["points"]] == [
        (unit, 2.0 ** (place + 1)) for place in range(len(measured)) for unit in (0, 1)
    ]
    assert [p["score"] for p in record["points"][:2]] == [means[0] - 0.05, means[0] + 0.05]  # type: ignore[operator]
    assert record["unbounded"] is unbounded
    assert (record["units"], record["trained_steps"]) == ([0, 1], 0)
    assert (record["metric"], record["higher_is_better"]) == ("accuracy", True)
    assert record["provenance"]["wall_seconds"] == 2.0 * len(measured)
    assert record["provenance"]["pixel_extractor"] == "fashion-pixels-8"
    assert record["provenance"]["samples_per_fid"] == 20


def test_a_curves_record_tells_what_was_chosen_unit_by_unit() -> None:
    model, of = Model("resnet"), (("as published", Refinement()), ("held back", Refinement()))
    choices = [ChosenRefinement(SETUP, model, SAMPLER, of, (2.0,), seed, 4) for seed in (0, 100)]
    names = {choices[0].key: "held back", choices[1].key: "as published"}
    made, load = points(0.2, 0.9, 0.5, models=[Refined(model, choice) for choice in choices])

    def told(cell: Cell) -> Artifact:
        return Artifact({"name": names[cell.key]}) if cell.key in names else load(cell)

    about = About("refinements", "smoke", "best", "resnet")
    curve = Curve(SETUP, about, "8 to 80", (0, 1), "accuracy", True, made)
    assert names.keys() <= {cell.key for cell in curve.inputs()}
    assert curve.compute(told).meta["record"]["chosen"] == ["held back", "as published"]
    plain, load = points(0.2, 0.9, 0.5)
    assert "chosen" not in replace(curve, points=plain).compute(load).meta["record"]


def test_of_equal_scores_that_of_the_smaller_scale_is_best() -> None:
    assert best_place([0.1, 0.7, 0.7], True) == 1
    assert best_place([0.7, 0.1, 0.1], False) == 1


def test_a_claim_has_no_numbers_but_its_margin() -> None:
    about = About("claims", "smoke", "experts beat one network", "resnet")
    claim = Claim(
        SETUP, about, "Five beat one.", "paper", "five", "one", "experts", "area", "greater", 0.01
    )
    record = claim.compute(lambda cell: Artifact({})).meta["record"]
    assert {name for name, value in record.items() if isinstance(value, float)} == {"margin"}
    assert record["kind"] == "claim"
    assert record["method"] == "experts beat one network"
    assert (record["ours"], record["theirs"]) == ("five", "one")
