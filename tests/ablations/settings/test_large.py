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

SMALL = {"fashion-large": "fashion", "scenes-large": "scenes", "scenes-long": "scenes"}
"""By the large setting, whose tasks, predictors and judges it has."""


def test_every_large_setting_has_a_training() -> None:
    assert SMALL.keys() == LARGE.keys()
    assert all(LARGE[name].denoiser == small for name, small in SMALL.items())
    assert all(each.setting == name for name, each in LARGE.items())


@pytest.mark.parametrize(("name", "of"), SMALL.items())
def test_only_the_denoiser_is_another(name: str, of: str) -> None:
    small, large = load_setting(of), load_setting(name)
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
    folder = WEIGHTS / name
    facts = json.loads((folder / "zoo.json").read_text())
    assert facts["setting"] == folder.name
    assert facts["fingerprint"] == fingerprint(folder, ["denoiser"])
    reached = facts["models"]["denoiser"]["unguided"]
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| unguided samples | {reached['fid']:.2f} |" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12 * 2**20


@pytest.mark.parametrize(("name", "of"), SMALL.items())
def test_the_cards_have_the_large_denoiser_nearer_to_real_images(name: str, of: str) -> None:
    small, large = (
        json.loads((WEIGHTS / each / "zoo.json").read_text())["models"]["denoiser"]
        for each in (of, name)
    )
    assert large["unguided"]["fid"] < 0.7 * small["fid"]


def test_the_longer_training_is_of_the_same_network_and_the_judge_is_surer() -> None:
    large, longer = (load_setting(name) for name in ("scenes-large", "scenes-long"))
    ours, theirs = longer.denoiser().state_dict(), large.denoiser().state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }
    assert longer.fingerprint != large.fingerprint
    sure = []
    for setting in (large, longer):
        drawn = sample(setting.denoiser(), 64, sampler=DPMSolver(8))
        with torch.no_grad():
            probabilities = setting.extractor()(drawn).logits.softmax(1)
        sure.append(float((probabilities.amax(1) > 0.9).double().mean()))
    assert sure[1] > sure[0] + 0.1  # 0.69 and 0.47 of them


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
