"""What judges are trained on, and what is said of them."""

from __future__ import annotations

import torch

from ablations.zoo.judges import NETWORKS, Trained, figures, loss_of, varied


def ramps(count: int = 64) -> torch.Tensor:
    """(count, 1, 12, 12), brighter to the right, not symmetric."""
    return torch.linspace(-0.5, 0.5, 12).expand(count, 1, 12, 12).contiguous()


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_about_half_of_the_images_are_mirrored() -> None:
    found = varied(ramps(400), draws(), mirrored=True, hidden=0)
    rising = (found[:, 0, 0].diff(dim=1) > 0).sum(1) > 5
    assert 160 < int(rising.sum()) < 240


def test_nothing_is_mirrored_or_hidden_unless_asked() -> None:
    found = varied(ramps(), draws(), mirrored=False, hidden=0)
    assert all(torch.equal(image, found[0]) for image in found)
    shifts = [shift for shift in range(-2, 3) if torch.equal(ramps(1)[0].roll(shift, 2), found[0])]
    assert len(shifts) == 1


def test_a_square_is_hidden_of_each_image_at_its_own_place() -> None:
    found = varied(ramps(), draws(), mirrored=False, hidden=4)
    hidden = (found == -1).flatten(1)
    assert hidden.sum(1).max() == 25
    assert len({tuple(row.tolist()) for row in hidden}) > 30


def test_a_loss_depends_on_its_generator_alone() -> None:
    images = torch.randint(256, (8, 1, 32, 32), dtype=torch.uint8, generator=draws())
    labels = torch.arange(8) % 3
    trained = Trained("fashion", torch.nn.Identity, NETWORKS["judge-0"].recipe)
    loss = loss_of(trained, images, labels, "fp32")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3))
    chosen = torch.arange(4)
    assert torch.equal(loss(network, chosen, draws(1)), loss(network, chosen, draws(1)))
    assert not torch.equal(loss(network, chosen, draws(1)), loss(network, chosen, draws(2)))


def test_a_network_that_knows_the_labels_is_said_to() -> None:
    labels = torch.arange(6)
    images = torch.eye(6)[:, None, None] * 2 - 1
    trained = NETWORKS["judge-0"]
    assert figures(torch.nn.Flatten(), trained, (images, labels)) == {"test_accuracy": 1.0}
    encoder = NETWORKS["autoencoder"]
    assert figures(torch.nn.Identity(), encoder, (images, labels)) == {"test_error": 0.0}
