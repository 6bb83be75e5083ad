r"""A setting: garments in fewer classes, of the same denoiser and predictors.

python -m ablations run peers --plugin ablations.examples.groups --setting fashion-5 --budget full \
        --predictors resnet --rows ppap freedom 'freedom in 5 steps'

What differs between ``fashion-2``, ``fashion-5`` and ``fashion-large`` is how many classes a
predictor tells apart, and nothing that was trained before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.settings.catalogue import load_setting
from ablations.settings.plugins import digest_of_code, setting
from ablations.settings.setting import Setting, Split
from ppap.predictors.predictor import Predictor

BASE = "fashion-large"
GROUPS = {
    "fashion-2": {
        "worn on the body": ("T-shirt", "trouser", "pullover", "dress", "coat", "shirt"),
        "else": ("sandal", "sneaker", "bag", "ankle boot"),
    },
    "fashion-5": {
        "shirts": ("T-shirt", "shirt"),
        "long": ("trouser", "dress"),
        "warm": ("pullover", "coat"),
        "shoes": ("sandal", "sneaker"),
        "bag or boot": ("bag", "ankle boot"),
    },
}


class Grouped(nn.Module):
    """How probable each group of classes is to a classifier, as logarithms.

    Args:
        network: images -> (B, K) logits.
        group_of: for each of the K classes the number of its group.
    """

    outside: Tensor

    def __init__(self, network: Callable[[Tensor], Tensor], group_of: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        member = F.one_hot(torch.tensor(group_of)).T.bool()
        outside = torch.zeros(member.shape).masked_fill(~member, -torch.inf)
        self.register_buffer("outside", outside, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, ...) images -> (B, groups) logarithms of probabilities."""
        classes = self.network(images).log_softmax(1)
        return (classes[:, None] + self.outside).logsumexp(2)


def grouped(name: str) -> Setting:
    """Garments of which predictor and judge know groups alone."""
    base, groups = load_setting(BASE), GROUPS[name]
    numbers = {kind: number for number, kinds in enumerate(groups.values()) for kind in kinds}
    group_of = [numbers[kind] for kind in base.classes]
    guided = base.tasks["class"]

    def predictor(wanted: str) -> Predictor:
        known = base.predictor(wanted)
        network = Grouped(known.network, group_of)
        return Predictor(network, known.mean, known.std, name=f"{name}/{wanted}").eval()

    def labelled(split: Split) -> tuple[Tensor, Tensor]:
        images, kinds = guided.labelled(split)
        return images, torch.tensor(group_of)[kinds]

    def judged(images: Tensor) -> Tensor:
        return base.extractor()(images).logits

    task = replace(
        guided,
        labelled=lru_cache(labelled),
        targets=lambda wanted: torch.tensor(wanted) % len(groups),
        judge=lambda: Grouped(judged, group_of).eval(),
    )
    return replace(
        base,
        name=name,
        classes=tuple(groups),
        predictor=predictor,
        fingerprint=digest_of_code([__file__], base.fingerprint),
        tasks={"class": task},
    )


@setting("fashion-2")
def two() -> Setting:
    """Garments in two groups."""
    return grouped("fashion-2")


@setting("fashion-5")
def five() -> Setting:
    """Garments in five groups."""
    return grouped("fashion-5")
