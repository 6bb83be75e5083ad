"""Experts: one frozen predictor, N adapters, each for one noise range, routed by timestep."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ppap.compute.copies import without_graphs
from ppap.compute.exclusive import exclusive
from ppap.compute.options import check_whole
from ppap.compute.stateless import run_with
from ppap.diffusion.denoiser import freeze
from ppap.diffusion.noise_levels import NoiseLevels
from ppap.experts.absorb import absorbed
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.coverage import default_adapter, report_coverage
from ppap.experts.adapters.student import set_mode
from ppap.experts.bank_files import (
    BankDescription,
    expert_state,
    fill_expert,
    read_bank,
    write_bank,
)
from ppap.experts.expert import Expert
from ppap.experts.fresh import check_adaptable, fresh_experts
from ppap.experts.identity import PredictorIdentity, former_fingerprints
from ppap.experts.merging import NetworkWeights, keep_out_of_state
from ppap.experts.mixed import MixedPass, in_order
from ppap.experts.routing import NoiseRanges, check_not_traced
from ppap.files.images import check_finite
from ppap.guidance.guides import LikelihoodGuide, Targets
from ppap.guidance.likelihoods import AtLeastNoise, ImageLikelihood, NoisyLikelihood
from ppap.guidance.scale import Scale
from ppap.predictors.predictor import Predictor
from ppap.tasks.protocol import GuidanceTask, Task

__all__ = ["ExpertBank"]


class ExpertBank(nn.Module):
    """One frozen predictor and N experts: (x_t, t) -> prediction, routed per sample.

    In evaluation mode the effective weights of the expert in use are computed once and kept
    until another is needed, so a trajectory merges each expert once and the guidance
    gradient costs what the bare predictor's does. In training mode they are computed at
    every call, with gradients to the experts alone. Threads that share a bank take turns.

    Args:
        predictor: the off-the-shelf model; frozen in place.
        experts: how many, for ranges of equal width, or the ranges themselves.
        adapter: what is trained per range; by default the paper's, on the layers of the released
            code or, where it names none, on those found
            (:func:`ppap.experts.adapters.coverage.default_adapter`).
        task: what predictions mean, for transfer and for guiding; by default the predictor's.
        steps: length of the noise schedule, for a number of experts.
        seed: of the adapters' random initial values.
        normalised: whether the experts see images as the predictor was trained to; False
            shows them raw [-1, 1], as the released code does to its ResNet students.

    Attributes:
        ranges: of the experts.
        seed: as given.
        absorbed: whether :meth:`absorb_statistics` was called.
        noise_levels: of the noise that the experts were trained on; None for untrained ones, and
            where a saved bank does not know. The bank guides under no other.

    Raises:
        TypeError: for what is no predictor, no whole number or ranges of experts, or no adapter.
        ValueError: for no experts, or a predictor that cannot be adapted, or has nothing to adapt.
    """

    predictor: Predictor

    def __init__(
        self,
        predictor: Predictor,
        experts: int | NoiseRanges = 5,
        adapter: Adapter | None = None,
        task: Task | None = None,
        steps: int = 1000,
        seed: int = 0,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        check_adaptable(predictor, adapter)
        self.predictor = predictor
        self.normalised = normalised
        self.absorbed = False
        self.noise_levels: NoiseLevels | None = None
        freeze(predictor)
        check_whole("seed", seed, 0)
        if not isinstance(experts, NoiseRanges):
            experts = NoiseRanges.equal(experts, steps)
        self.ranges = experts
        self.task = predictor.task if task is None else task
        self.adapter = default_adapter(predictor.network) if adapter is None else adapter
        self.seed = int(seed)
        device = next(predictor.network.parameters()).device
        self._weights = NetworkWeights(predictor.network)
        with self._weights.as_it_was():  # another bank may be merged into it
            self.experts = nn.ModuleList(self.fresh()).to(device)
        report_coverage(predictor.network, self.adapter)
        self._make_passes()
        keep_out_of_state(self)

    def __len__(self) -> int:
        return len(self.ranges)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertBank:
        """A bank and a predictor of their own, whatever hooks keep of a training's last call."""
        memo |= without_graphs(self)
        twin = memo[id(self)] = type(self).__new__(type(self))
        made = "student", "_mixed"  # of the network, in copies that hooks leave tensors in, too
        held = {name: value for name, value in vars(self).items() if name not in made}
        twin.__setstate__(copy.deepcopy(held, memo))  # type: ignore[no-untyped-call]
        twin._make_passes()
        return twin

    @property
    def noise_steps(self) -> int:
        """Length of the noise schedule whose timesteps the experts are routed by."""
        return self.ranges.boundaries[-1]

    @property
    def trainable_share(self) -> float:
        """Trained parameters of one expert, as a share of the predictor's."""
        trained = sum(parameter.numel() for parameter in self.expert(0).parameters())
        base = sum(parameter.numel() for parameter in self.predictor.network.parameters())
        return trained / base

    def expert(self, number: int) -> Expert:
        """The expert of a range, counted from 0 at low noise."""
        found = self.experts[number]
        assert isinstance(found, Expert)
        return found

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Any:
        """Predict from noisy images, each by the expert of its own timestep.

        Args:
            x_t: (B, C, H, W) noisy images.
            timesteps: (B,) original timesteps, mixed as they come.

        Returns:
            (B, ...) predictions, in the order of the batch.

        Raises:
            RuntimeError: within torch.export or torch.jit.trace.
            ValueError: for a timestep outside all ranges, or another number of them.
        """
        check_not_traced()
        experts = self.ranges.expert_of(timesteps, len(x_t))
        return self.predict_mixed(x_t, experts)

    def predict_mixed(self, images: Tensor, experts: Tensor) -> Any:
        """The prediction of (B,) experts for their (B, C, H, W) images, in one pass if possible.

        Adapters and networks without a grouped form (see :mod:`ppap.experts.mixed`) go through the
        present experts one after another.
        """
        present = sorted(set(experts.tolist()))
        if len(present) < 2:
            return self.predict(images, *present or (0,))
        with exclusive(self.predictor.network):
            together = self._together(images, experts)
        if together is not None:
            return together
        order, parts = [], []
        for number in present:
            rows = (experts == number).nonzero()[:, 0]
            order.append(rows)
            parts.append(self.predict(images[rows], number))
        places = torch.cat(order).argsort()
        return tree_map(lambda *rows: in_order(rows, places), *parts)

    def predict(self, images: Tensor, expert: int) -> Any:
        """The prediction of one expert for (B, C, H, W) images, whatever their noise."""
        with exclusive(self.predictor.network):
            self._follow_network()
            network = self.predictor.network
            own, kept = self.expert(expert).tensors(), self.expert(expert).statistics()
            set_mode(network, self.training, kept)
            inputs = self.predictor.prepare(images, self.normalised)
            if not self.training:
                return run_with(network, self.effective(expert), inputs)
            self._weights.forget()
            return self.student.run(self._weights.base(), own, kept, inputs)

    @property
    def overwritten(self) -> dict[str, Tensor]:
        """What :meth:`merge` replaced in the predictor, by name; empty when nothing is merged."""
        return dict(self._weights.replaced)

    def teacher_prediction(self, images: Tensor) -> Any:
        """The unadapted predictor's prediction for (B, C, H, W) clean images, no gradient.

        Raises:
            NonFiniteError: if any of it is NaN or infinite, which a student would follow.
        """
        with torch.no_grad(), exclusive(self.predictor.network):
            network = self.predictor.network.eval()
            prediction = run_with(network, self._weights.base(), self.predictor.prepare(images))
        check_finite(prediction, f"the prediction of {self.predictor.name} for a clean image")
        return prediction

    def effective(self, expert: int) -> dict[str, Tensor]:
        """Parameters and buffers of the network under an expert, by name; kept while they hold."""
        return self._weights.kept(expert, self.expert(expert), lambda: self.merged(expert))

    def merged(self, expert: int) -> dict[str, Tensor]:
        """As :meth:`effective`, computed anew and not kept."""
        return self._weights.under(self.student, self.expert(expert))

    def _together(self, images: Tensor, experts: Tensor) -> Tensor | None:
        """In one pass; None if there is none that gives the same."""
        self._follow_network(thorough=not self._mixed.check.dropped)
        if self.training:
            self._weights.forget()
        return self._mixed.run(
            self._weights.base(),
            [self.expert(number) for number in range(len(self))],
            self.predictor.prepare(images, self.normalised),
            experts.to(images.device),
            self.training and bool(self.expert(0).statistics()),
        )

    def _make_passes(self) -> None:
        self.student = self.adapter.student(self.predictor.network)
        self._mixed = self._mixed_pass()

    def _mixed_pass(self) -> MixedPass:
        return MixedPass(self.predictor.network, self.student, self.adapter, self.expert(0))

    def _follow_network(self, thorough: bool = False) -> None:
        """Make what was made of the network anew, if a layer of it is another or was changed."""
        if not self._mixed.fits(self.predictor.network, thorough):
            self._make_passes()

    def train(self, mode: bool = True) -> ExpertBank:
        """Training or evaluation mode; forgets merged weights."""
        with exclusive(self.predictor.network):
            self._weights.forget()
            self._follow_network(thorough=True)
            super().train(mode)
        return self

    def copy_expert(self, source: int, target: int) -> None:
        """Make one expert start from another's state."""
        self.expert(target).load_state_dict(self.expert(source).state_dict())
        self._weights.forget()

    def reset(self) -> None:
        """Make every expert what it was before it was trained: the unadapted predictor."""
        self.unmerge()
        for number, fresh in enumerate(self.fresh()):
            self.expert(number).load_state_dict(fresh.state_dict())
        self.noise_levels = None

    def fresh(self) -> Iterator[Expert]:
        """Experts as :meth:`reset` leaves them; of a bank that is not merged."""
        about = len(self), self.seed, self.absorbed
        return fresh_experts(self.adapter, self.predictor.network, *about)

    def merge(self, expert: int) -> Predictor:
        """Write an expert into the predictor, which then is an ordinary noise-aware module.

        The bank itself goes on working, for every expert: it remembers what it overwrote. Its
        ``state_dict`` holds the predictor as it was.

        Returns:
            The bank's own predictor, or, for experts that see raw images, another around the same
            network, which shows them so; good until :meth:`unmerge` or the next merge.
        """
        self.unmerge()
        self._weights.merge(self.student, self.expert(expert))
        return self.predictor if self.normalised else self.predictor.showing_raw()

    def unmerge(self) -> None:
        """Restore the predictor exactly, bit for bit."""
        self._weights.restore()

    def absorb_statistics(self) -> None:
        """Rewrite batch norms so that experts need no statistics of their own.

        Predictions are the same up to rounding and the bank is smaller
        (:mod:`ppap.experts.absorb`). It is meant for trained banks: training goes on with the
        predictor's statistics, unchanged by it.
        """
        self.unmerge()
        for number in range(len(self)):
            self.experts[number] = absorbed(self.expert(number), self.predictor.network)
        self.absorbed = True
        self._mixed = self._mixed_pass()

    def guide(
        self, targets: Targets, scale: Scale = 1.0, task: GuidanceTask | None = None
    ) -> LikelihoodGuide:
        """A guide towards targets of the bank's task.

        Args:
            targets: (N, ...) one for each sample, as a tensor or a list; a class index, or a
                single row (1, ...), stands for every sample.
            scale: guidance scale: a number, one per sample, or a function of the noise level.
            task: what predictions mean, if it is not the bank's own.
        """
        return LikelihoodGuide(self.eval(), self.task if task is None else task, targets, scale)

    def likelihood(
        self,
        targets: Targets,
        on: Literal["x_t", "x_0"] = "x_t",
        weight: float = 1.0,
        task: GuidanceTask | None = None,
    ) -> NoisyLikelihood | ImageLikelihood:
        """The bank in place of a clean predictor, in any of ``ppap.guidance.METHODS``.

        Args:
            targets: as of :meth:`guide`.
            on: ``"x_t"``, where the expert of each timestep looks at the noisy images, or
                ``"x_0"``, where the expert of least noise looks at the predicted ones.
            weight: relative to other likelihoods in a sum.
            task: what predictions mean, if it is not the bank's own.

        Raises:
            ValueError: for another ``on``.
        """
        task = self.task if task is None else task
        if on == "x_t":
            return NoisyLikelihood(self.eval(), task, targets, weight)
        if on == "x_0":
            return ImageLikelihood(AtLeastNoise(self.eval()), task, targets, weight)
        raise ValueError(f"a bank looks at 'x_t' or 'x_0', not at {on!r}")

    def save(self, folder: str | Path) -> None:
        """Write ``bank.json`` and one ``expert_<n>.safetensors`` per range.

        The predictor is not written, only what tells it apart. A bank that is in the folder is
        replaced whole: a save that fails or is killed leaves one of the two
        (:mod:`ppap.experts.bank_files`).
        """
        every = (self.expert(number) for number in range(len(self)))
        experts = [expert_state(expert, self.predictor.network) for expert in every]
        about = BankDescription(
            self.predictor.name, self.ranges, self.adapter, self.task, self.identity(),
            normalised=self.normalised, absorbed=self.absorbed,
            noise_levels=self.noise_levels, seed=self.seed,
        )  # fmt: skip
        write_bank(Path(folder), about, experts)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        predictor: Predictor,
        task: Task | None = None,
        adapter: Adapter | None = None,
    ) -> ExpertBank:
        """A saved bank around the predictor that it was trained for.

        Args:
            folder: made by :meth:`save`, of this version or an earlier one.
            predictor: of the very weights, buffers, mean, std and size that the bank was trained
                for; its weights may be rounded to half precision, or it may compute in it
                (:class:`ppap.predictors.wrappers.MixedPrecision`).
            task: replaces the saved one; needed for a task that is not one of ``ppap.tasks``.
            adapter: the saved one, needed if it has parts that are not the library's own.

        Raises:
            CheckpointError: if the folder holds no whole bank, or one of another predictor or
                adapter.
        """
        folder = Path(folder)
        about, states = read_bank(folder, adapter)
        found = about.task_or(task, folder)
        about.check_predictor(folder, predictor)
        bank = cls(
            predictor, about.ranges, about.adapter, found,
            seed=about.seed, normalised=about.normalised,
        )  # fmt: skip
        if about.absorbed:
            bank.absorb_statistics()
        bank.noise_levels = about.noise_levels
        for number, state in enumerate(states):
            fill_expert(bank.expert(number), number, predictor.network, state)
        return bank.eval()

    def identity(self) -> PredictorIdentity:
        """What tells the unadapted predictor apart, whatever is merged into it."""
        return PredictorIdentity.of(self.predictor, self._weights.replaced)

    def fingerprint(self) -> str:
        """Hexadecimal digest of the unadapted predictor's parameters alone."""
        return former_fingerprints(self.predictor.network, self._weights.replaced)[0]
