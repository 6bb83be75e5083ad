"""The card of a denoiser, and the networks that the zoo trains."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ablations.zoo.denoisers import TRAININGS, denoiser_card

POINT = {"images": 25_600, "seconds": 247, "learning_rate": 1.0, "loss": 0.1792}
FIGURES = {"fid": 5.896, "pixel_distance": 7.504, "sure": 0.31}


def test_the_card_tells_what_is_reached_what_could_be_and_how_it_was_learned() -> None:
    real = {"fid": 0.105, "pixel_distance": 1.831, "sure": 0.772}
    facts = {
        "parameters": 4_111_745,
        "samples": 10_000,
        "precision": "bf16",
        "conditional": False,
        "trained_on": "a CPU",
        "unguided": FIGURES,
        "training_images": real,
        "curve": [POINT | {"samples": 1000} | FIGURES],
    }
    card = denoiser_card("fashion", facts)
    assert "4,111,745 parameters" in card
    assert "| unguided samples | 5.90 | 7.50 | 31.0 % |" in card
    assert "| training images | 0.10 | 1.83 | 77.2 % |" in card
    assert "| 25,600 | 4.1 | 1.00 | 0.1792 | 5.90 | 7.50 | 31.0 % |" in card


@pytest.mark.parametrize(
    ("name", "products"), [("fashion", 216e6), ("scenes", 269e6), ("fashion-conditional", 216e6)]
)
def test_a_denoiser_costs_what_is_said_of_it(name: str, products: float) -> None:
    of = TRAININGS[name]
    network = of.make().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found = of.denoiser(network, 1)(torch.zeros(1, *of.shape), torch.zeros(1).long()).epsilon
    assert found.shape == (1, *of.shape)
    assert counter.get_total_flops() / 2 == pytest.approx(products, rel=0.01)
    half_precision_bytes = 2 * sum(parameter.numel() for parameter in network.parameters())
    assert half_precision_bytes < 12e6
