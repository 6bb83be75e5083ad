"""What the suites compare with: the same mathematics done the released code's way.

Eager, one deep copy of the network per expert, every low-rank update recomputed at each call,
the teacher run at each training step, separate elementwise operations. Two of the released code's
faults are left out, for they change results: routing by a batch's first timestep is done with
batches of one timestep, and the scaling of linear layers is the corrected one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppap.diffusion.schedule import Schedule
from ppap.experts.bank import ExpertBank
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.classes import ClassTask

__all__ = ["ReferenceExperts", "reference_expert_step", "reference_training_step"]


class ReferenceExperts:
    """N networks, each with an expert's tensors beside its own.

    Args:
        bank: whose experts are copied.
    """

    def __init__(self, bank: ExpertBank) -> None:
        self.bank = bank
        self.networks: list[nn.Module] = []
        self.own: list[dict[str, Tensor]] = []
        self.statistics: list[dict[str, Tensor]] = []
        for number in range(len(bank)):
            expert = copy.deepcopy(bank.expert(number))
            self.networks.append(copy.deepcopy(bank.predictor.network))
            self.own.append(expert.tensors())
            self.statistics.append(expert.statistics())

    def predict(self, images: Tensor, number: int) -> Tensor:
        """(B, ...) predictions of one expert, its updates recomputed."""
        network = self.networks[number]
        base = dict(network.named_parameters())
        weights = self.bank.adapter.effective(base, self.own[number]) | self.statistics[number]
        prepared = self.bank.predictor.prepare(images, self.bank.normalised)
        output = functional_call(network, weights, (prepared,))
        assert isinstance(output, Tensor)
        return output

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.predict(x_t, int(self.bank.ranges.expert_of(timesteps[:1])))

    def guide(self, targets: Tensor, scale: float) -> LikelihoodGuide:
        """Towards (N,) classes."""
        return LikelihoodGuide(self, ClassTask(), targets, scale)


def reference_training_step(
    experts: ReferenceExperts,
    optimisers: list[torch.optim.Optimizer],
    teacher: nn.Module,
    x_0: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    schedule: Schedule,
) -> float:
    """One step of each expert on its share of a batch, one after another; the mean loss.

    Args:
        experts: N of them.
        optimisers: one per expert.
        teacher: images in [-1, 1] -> predictions; run anew.
        x_0: (B, C, H, W) clean images, N equal shares.
        timesteps: (B,), each share's in its expert's range.
        noise: (B, C, H, W).
        schedule: of the denoiser.
    """
    total = 0.0
    share = len(x_0) // len(experts.own)
    for number, optimiser in enumerate(optimisers):
        rows = slice(number * share, (number + 1) * share)
        total += reference_expert_step(
            experts, number, optimiser, teacher, x_0[rows], timesteps[rows], noise[rows], schedule
        )
    return total / len(optimisers)


def reference_expert_step(
    experts: ReferenceExperts,
    number: int,
    optimiser: torch.optim.Optimizer,
    teacher: nn.Module,
    x_0: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    schedule: Schedule,
) -> float:
    """One step of one expert on a batch; its loss. Arguments as above."""
    with torch.no_grad():
        taught = teacher(x_0)
    x_t = schedule.add_noise(x_0, timesteps, noise)
    experts.networks[number].train()
    loss = ClassTask().transfer_loss(experts.predict(x_t, number), taught)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach())
