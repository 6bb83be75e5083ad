"""Judges' ensembles and encoders without labels."""

from __future__ import annotations

import torch

from ablations.settings.judges import Autoencoder, Ensemble, ResidualJudge


def test_an_ensemble_gives_the_mean_of_its_members_probabilities() -> None:
    torch.manual_seed(0)
    members = [ResidualJudge(1, 4, (8, 8, 8), 6).eval() for _ in range(3)]
    ensemble, images = Ensemble(members), torch.randn(2, 1, 16, 16)
    expected = torch.stack([member(images).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(ensemble(images).exp(), expected)
    assert ensemble.features(images).shape == (2, 18)
    torch.testing.assert_close(ensemble.head(ensemble.features(images)), ensemble(images))


def test_an_autoencoder_gives_an_image_back_in_its_shape() -> None:
    network, images = Autoencoder(3, features=5, width=8).eval(), torch.randn(2, 3, 32, 32)
    assert network.features(images).shape == (2, 5)
    assert network(images).shape == images.shape
