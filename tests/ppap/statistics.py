"""A toy extractor, and images, features and references that the tests of metrics share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppap.evaluation.features import Features
from ppap.evaluation.reference import ReferenceStatistics

NAME = "toy-8"


class Toy:
    """A fixed random network: 8 features and 5 logits of each image on its own."""

    def __init__(self, name: str = NAME) -> None:
        self.name = name
        self.weight = torch.randn(3 * 4 * 4, 8, generator=torch.Generator().manual_seed(0)) / 4

    def __call__(self, images: Tensor) -> Features:
        hidden = torch.tanh(images.flatten(1) @ self.weight)
        return Features(hidden, 3 * hidden[:, :5])


def pixels(count: int, seed: int, top: int = 256) -> Tensor:
    shape = (count, 3, 4, 4)
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, top, shape, generator=made, dtype=torch.uint8)


def normal(count: int, size: int = 8, shift: float = 0.0, seed: int = 0) -> Features:
    made = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, size, generator=made) + shift
    return Features(matrix, matrix[:, :5], NAME)


def reference(count: int = 500, size: int = 8, seed: int = 99) -> ReferenceStatistics:
    return ReferenceStatistics.from_features(normal(count, size, seed=seed))


def standard(size: int) -> ReferenceStatistics:
    return ReferenceStatistics(NAME, 10**6, np.zeros(size), np.eye(size))
