"""Refinements change when and how the same experts guide, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from ablations.cells.chosen import ChosenRefinement
from ablations.cells.curves import Claim, Curve
from ablations.cells.refined import Refined, Refinement
from ablations.machine.store import Artifact
from ablations.sweeps import HEADLINE, SWEEPS, Lab
from ablations.sweeps.refinements import CHOSEN, REFINEMENTS, RIVALS
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.fast.presets import Preset
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.classes import ClassTask
from tests.ablations.sweeps.test_claims import curves as curves_of_claims
from tests.ablations.sweeps.test_claims import lab, scores
from tests.ppap.networks import images, tiny_denoiser


def arms(made: Lab) -> dict[str, Curve]:
    found = [r for r in SWEEPS["refinements"].build(made) if isinstance(r, Curve)]
    return {r.about.method: r for r in found if r.about.predictor == found[0].about.predictor}


def test_only_the_guide_differs_and_what_claims_have_drawn_is_not_drawn_again() -> None:
    found, claimed = arms(lab()), curves_of_claims(lab())
    rivals = {f"{name}, held back": name for name in RIVALS}
    assert found.keys() == {"ppap", *REFINEMENTS, CHOSEN, *rivals}
    for name, curve in found.items():
        theirs = claimed["resnet", rivals.get(name, "ppap")]
        assert [bank.key for bank in curve.banks] == [bank.key for bank in theirs.banks]
        for ours, published in zip(scores(curve), scores(theirs), strict=True):
            assert ours.samples.first_seed == published.samples.first_seed
            assert ours.samples.sampler == published.samples.sampler
            assert (ours.key == published.key) == (name == "ppap")
    assert "refinements" not in HEADLINE


def test_every_refinement_is_claimed_to_be_better_and_to_keep_what_experts_are_worth() -> None:
    claims = [r for r in SWEEPS["refinements"].build(lab()) if isinstance(r, Claim)]
    pairs = {(claim.ours, claim.theirs, claim.quantity, claim.expected) for claim in claims}
    quantities = ("score_at_matched_distance", "best_score")
    assert pairs == {
        (ours, theirs, quantity, "greater")
        for quantity in quantities
        for ours, theirs in (
            *((name, "ppap") for name in (*REFINEMENTS, CHOSEN)),
            *(("held back", f"{name}, held back") for name in RIVALS),
        )
    }


def test_every_training_seed_has_a_choice_of_its_own_on_images_that_no_curve_has() -> None:
    curve = arms(lab())[CHOSEN]
    models = [score.samples.guidance[0].model for score in curve.points[0]]
    choices = [model.refinement for model in models if isinstance(model, Refined)]
    assert len(choices) == len(models) == len(curve.units)
    seeds: set[int] = set()
    for choice, bank in zip(choices, curve.banks, strict=True):
        assert isinstance(choice, ChosenRefinement)
        assert choice.model.experts == bank
        assert choice.sampler == curve.points[0][0].samples.sampler
        names = [name for name, _ in choice.refinements]
        assert names == ["as published", "held back", "calibrated"]
        own = set(range(choice.first_seed, choice.first_seed + 2 * choice.count))
        assert not seeds & own
        seeds |= own
    drawn = {seed for points in curve.points for score in points for seed in score.samples.seeds}
    assert not seeds & drawn


@pytest.mark.parametrize(("budget", "images"), [("smoke", 10), ("default", 60), ("full", 100)])
def test_a_choice_looks_at_what_the_budget_has_for_selections(budget: str, images: int) -> None:
    model = arms(lab(budget=budget))[CHOSEN].points[0][0].samples.guidance[0].model
    assert isinstance(model, Refined)
    assert isinstance(model.refinement, ChosenRefinement)
    assert model.refinement.count == images


def test_a_model_guides_as_was_chosen() -> None:
    curve = arms(lab())[CHOSEN]
    (score, *_) = curve.points[0]
    model = score.samples.guidance[0].model
    assert isinstance(model, Refined)
    assert model.refinement in tuple(score.samples.guidance_inputs())
    for refinement in (Refinement(), REFINEMENTS["held back"], REFINEMENTS["half the marginal"]):
        found = Artifact({"refinement": json.loads(json.dumps(asdict(refinement)))})
        assert model.chosen(lambda cell, found=found: found) == refinement


def test_guidance_at_some_steps_is_no_preset() -> None:
    assert Refinement().preset(DDIM(5), False, "fp32") == Preset(DDIM(5))
    both = Refinement(marginal=0.5, power=0.25).preset(DDIM(5), True, "bf16")
    assert both == Preset(DDIM(5), True, "bf16", 0.25, 0.5)
    with pytest.raises(ValueError, match="guides at some steps only"):
        REFINEMENTS["not near the image"].preset(DDIM(5), False, "fp32")


def gradient(refinement: Refinement, timestep: int, scale: float = 3.0) -> Any:
    plain = LikelihoodGuide(
        lambda x, t: x.flatten(1)[:, :4] * (1 + t[:, None] / 100), ClassTask(), [0, 1, 2], 1.0
    )
    state = State(images(3), torch.full((3,), timestep), tiny_denoiser())
    return refinement.guide(plain, scale)(state), plain(state), state


@pytest.mark.parametrize(
    ("first", "last", "timestep", "acts"),
    [
        (100, 700, 99, False),
        (100, 700, 100, True),
        (100, 700, 700, True),
        (100, 700, 701, False),
        (200, None, 199, False),
        (200, None, 999, True),
        (0, 870, 0, True),
        (0, 870, 871, False),
    ],
)
def test_nothing_guides_outside_the_interval(
    first: int, last: int | None, timestep: int, acts: bool
) -> None:
    ours, plain, _ = gradient(Refinement(first=first, last=last), timestep)
    if acts:
        torch.testing.assert_close(ours, 3 * plain)
    else:
        assert ours is None


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_a_guide_is_held_back_by_the_images_share(power: float) -> None:
    for timestep in (10, 500, 990):
        ours, plain, _ = gradient(Refinement(power=power), timestep)
        abar = float(tiny_denoiser().schedule.signal(torch.tensor([timestep])))
        torch.testing.assert_close(ours, 3 * abar**power * plain)


def test_half_the_marginal_is_the_gradient_of_the_calibrated_logits() -> None:
    ours, _, state = gradient(Refinement(marginal=0.5), 100)
    x = state.x_t.clone().requires_grad_()
    logits = x.flatten(1)[:, :4] * 2
    rows = torch.arange(3)
    value = (logits[rows, rows] - (0.5 * logits).exp().sum(1).log()).sum()
    torch.testing.assert_close(ours, 3 * torch.autograd.grad(value, x)[0])
