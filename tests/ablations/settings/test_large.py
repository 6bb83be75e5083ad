"""The large settings: another denoiser, and all else as in the small ones."""

from __future__ import annotations

import json

import pytest
import torch

from ablations.settings.catalogue import load_setting
from ablations.settings.shipped import WEIGHTS
from ablations.zoo.large import LARGE
from ablations.zoo.training import fingerprint
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.fast.sampling import sample

SMALL = ("fashion", "scenes")


def test_every_large_setting_has_a_training() -> None:
    assert {f"{name}-large" for name in SMALL} == LARGE.keys()
    assert all(each.setting == name for name, each in LARGE.items())


@pytest.mark.parametrize("name", SMALL)
def test_only_the_denoiser_is_another(name: str) -> None:
    small, large = load_setting(name), load_setting(f"{name}-large")
    assert large.tasks.keys() == small.tasks.keys()
    assert large.predictors == small.predictors
    assert large.extractor().name == small.extractor().name
    assert large.fingerprint != small.fingerprint
    ours, theirs = large.predictor("resnet").state_dict(), small.predictor("resnet").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    sizes = [sum(p.numel() for p in setting.denoiser().parameters()) for setting in (small, large)]
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize("name", SMALL)
def test_the_weights_are_those_that_the_card_tells_of(name: str) -> None:
    folder = WEIGHTS / f"{name}-large"
    facts = json.loads((folder / "zoo.json").read_text())
    assert facts["setting"] == folder.name
    assert facts["fingerprint"] == fingerprint(folder, ["denoiser"])
    reached = facts["models"]["denoiser"]["unguided"]
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| unguided samples | {reached['fid']:.2f} |" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12 * 2**20


@pytest.mark.parametrize("name", SMALL)
def test_the_cards_have_the_large_denoiser_nearer_to_real_images(name: str) -> None:
    small, large = (
        json.loads((WEIGHTS / each / "zoo.json").read_text())["models"]["denoiser"]
        for each in (name, f"{name}-large")
    )
    assert large["unguided"]["fid"] < 0.7 * small["fid"]


def test_thirty_two_garments_are_nearer_already() -> None:
    reference = load_setting("fashion").reference()
    extractor = load_setting("fashion").extractor()
    means = []
    for name in ("fashion", "fashion-large"):
        with torch.no_grad():
            features = extractor(
                sample(load_setting(name).denoiser(), 32, sampler=DPMSolver(8))
            ).features
        means.append(float((features.mean(0) - torch.as_tensor(reference.mean)).norm()))
    assert means[1] < means[0]
