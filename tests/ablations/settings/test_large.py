"""The setting ``fashion-large``: another denoiser, and all else as in ``fashion``."""

from __future__ import annotations

import json

import torch

from ablations.settings.catalogue import load_setting
from ablations.settings.shipped import WEIGHTS
from ablations.zoo.training import fingerprint
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.fast.sampling import sample

FOLDER = WEIGHTS / "fashion-large"


def test_only_the_denoiser_is_another() -> None:
    small, large = load_setting("fashion"), load_setting("fashion-large")
    assert large.tasks.keys() == small.tasks.keys()
    assert large.predictors == small.predictors
    assert large.extractor().name == small.extractor().name
    assert large.fingerprint != small.fingerprint
    ours, theirs = large.predictor("resnet").state_dict(), small.predictor("resnet").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    sizes = [sum(p.numel() for p in setting.denoiser().parameters()) for setting in (small, large)]
    assert sizes[1] > 4 * sizes[0]


def test_the_weights_are_those_that_the_card_tells_of() -> None:
    facts = json.loads((FOLDER / "zoo.json").read_text())
    assert facts["fingerprint"] == fingerprint(FOLDER, ["denoiser"])
    reached = facts["models"]["denoiser"]["unguided"]
    card = (FOLDER / "MODEL_CARD.md").read_text()
    assert f"| unguided samples | {reached['fid']:.2f} |" in card
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10 * 2**20


def test_its_samples_are_nearer_to_garments_than_those_of_the_small_denoiser() -> None:
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
