"""Experts: one frozen predictor, N adapters, each for one noise range, routed by timestep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ppap.diffusion.denoiser import freeze
from ppap.experts.adapters import Adapter, Biases, Full, Head, Lora, Norms, Part, ppap_adapter
from ppap.experts.grouped import GroupedNetwork, UngroupableError
from ppap.experts.peft_adapters import Peft
from ppap.experts.ranges import NoiseRanges
from ppap.files.checkpoints import CheckpointError, check_and_load, load_state, save_weights
from ppap.guidance.guides import LikelihoodGuide
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.protocol import Task

__all__ = ["Expert", "ExpertBank", "NoiseRanges"]

PART_KINDS: dict[str, type[Part]] = {
    "lora": Lora,
    "biases": Biases,
    "norms": Norms,
    "full": Full,
    "head": Head,
    "peft": Peft,
}
FORMAT = 1


class Expert(nn.Module):
    """The adapter tensors of one noise range, under the names that the adapter gave them."""

    def __init__(self, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        super().__init__()
        for key, value in tensors.items():
            self.register_parameter(_escape(key), nn.Parameter(value))
        for key, value in buffers.items():
            self.register_buffer(_escape(key), value)

    def tensors(self) -> dict[str, Tensor]:
        """The trainable tensors."""
        return {_unescape(key): value for key, value in self.named_parameters()}

    def statistics(self) -> dict[str, Tensor]:
        """Buffers that the expert keeps for itself; training updates them in place."""
        return {_unescape(key): value for key, value in self.named_buffers()}


class ExpertBank(nn.Module):
    """One frozen predictor and N experts: (x_t, t) -> prediction, routed per sample.

    In evaluation mode the effective weights of the expert in use are computed once and kept
    until another is needed, so a trajectory merges each expert once and the guidance
    gradient costs what the bare predictor's does. In training mode they are computed at
    every call, with gradients to the experts alone.

    Args:
        predictor: the off-the-shelf model; frozen in place.
        ranges: number of equal ranges, or the ranges themselves.
        adapter: what is trained per range.
        steps: length of the noise schedule, for a number of ranges.
        seed: of the adapters' random initial values.
        normalised: whether the experts see images as the predictor was trained to; False
            shows them raw [-1, 1], as the released code does to its ResNet students.

    Attributes:
        absorbed: whether :meth:`absorb_statistics` was called.

    Raises:
        ValueError: for a predictor in which the adapter finds nothing to train.
    """

    predictor: Predictor

    def __init__(
        self,
        predictor: Predictor,
        ranges: int | NoiseRanges = 5,
        adapter: Adapter | None = None,
        steps: int = 1000,
        seed: int = 0,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        if next(predictor.network.parameters(), None) is None:
            raise ValueError(
                f"{predictor.name} has no weights that experts could adapt; guide with it as it "
                "is (ppap.guidance.guides.naive_guide), or make its network a torch.nn.Module"
            )
        self.predictor = predictor
        self.normalised = normalised
        self.absorbed = False
        freeze(predictor)
        self.ranges = NoiseRanges.equal(ranges, steps) if isinstance(ranges, int) else ranges
        self.adapter = ppap_adapter() if adapter is None else adapter
        generator = torch.Generator().manual_seed(seed)
        self.experts = nn.ModuleList(
            Expert(
                self.adapter.create(predictor.network, generator),
                self.adapter.buffers(predictor.network),
            )
            for _ in range(len(self.ranges))
        ).to(next(predictor.network.parameters()).device)
        self.student = self.adapter.student(predictor.network)
        self._overwritten: dict[str, Tensor] = {}
        self._cached: tuple[int, dict[str, Tensor]] | None = None
        self._grouped = self._group()

    def __len__(self) -> int:
        return len(self.ranges)

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
            ValueError: for a timestep outside all ranges.
        """
        experts = self.ranges.expert_of(timesteps)
        return self.predict_mixed(x_t, experts)

    def predict_mixed(self, images: Tensor, experts: Tensor) -> Any:
        """The prediction of (B,) experts for their (B, C, H, W) images, in one pass if possible.

        Adapters without a grouped form (see :class:`ppap.experts.grouped.GroupedNetwork`) go
        through the present experts one after another.
        """
        present = sorted(set(experts.tolist()))
        if len(present) == 1:
            return self.predict(images, present[0])
        if self._grouped is not None:
            try:
                return self._together(self._grouped, images, experts)
            except UngroupableError:
                self._grouped = None
        order, parts = [], []
        for number in present:
            rows = (experts == number).nonzero()[:, 0]
            order.append(rows)
            parts.append(self.predict(images[rows], number))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def predict(self, images: Tensor, expert: int) -> Any:
        """The prediction of one expert for (B, C, H, W) images, whatever their noise."""
        network = self.predictor.network
        own = self.expert(expert)
        network.train(self.training and bool(own.statistics()))
        inputs = self.predictor.prepare(images, self.normalised)
        if not self.training:
            return functional_call(network, self.effective(expert), (inputs,))
        self._cached = None
        return self.student.run(self._base(), own.tensors(), own.statistics(), inputs)

    @property
    def overwritten(self) -> dict[str, Tensor]:
        """What :meth:`merge` replaced in the predictor, by name; empty when nothing is merged."""
        return dict(self._overwritten)

    def teacher_prediction(self, images: Tensor) -> Any:
        """The unadapted predictor's prediction for (B, C, H, W) clean images, no gradient."""
        self.predictor.network.eval()
        with torch.no_grad():
            prepared = self.predictor.prepare(images)
            return functional_call(self.predictor.network, self._base(), (prepared,))

    def effective(self, expert: int) -> dict[str, Tensor]:
        """Parameters and buffers of the network under an expert, by name."""
        if self._cached is None or self._cached[0] != expert:
            self._cached = expert, self.merged(expert)
        return self._cached[1]

    @torch.no_grad()
    def merged(self, expert: int) -> dict[str, Tensor]:
        """As :meth:`effective`, computed anew and not kept."""
        return {key: value.detach() for key, value in self._effective(expert).items()}

    def _together(self, grouped: GroupedNetwork, images: Tensor, experts: Tensor) -> Tensor:
        every = [self.expert(number) for number in range(len(self))]
        statistics = [expert.statistics() for expert in every]
        if self.training:
            self._cached = None
        return grouped.run(
            dict(self.predictor.network.named_buffers()) | self._base(),
            [expert.tensors() for expert in every],
            statistics,
            self.predictor.prepare(images, self.normalised),
            experts.to(images.device),
            self.training and bool(statistics[0]),
        )

    def _group(self) -> GroupedNetwork | None:
        first = self.expert(0)
        try:
            return GroupedNetwork(
                self.predictor.network,
                self.adapter,
                list(first.tensors()),
                list(first.statistics()),
            )
        except UngroupableError:
            return None

    def _effective(self, number: int) -> dict[str, Tensor]:
        expert = self.expert(number)
        return self.student.effective(self._base(), expert.tensors()) | expert.statistics()

    def _base(self) -> dict[str, Tensor]:
        return dict(self.predictor.network.named_parameters()) | self._overwritten

    def _live(self) -> dict[str, Tensor]:
        network = self.predictor.network
        return dict(network.named_parameters()) | dict(network.named_buffers())

    def train(self, mode: bool = True) -> ExpertBank:
        """Training or evaluation mode; forgets merged weights."""
        self._cached = None
        super().train(mode)
        return self

    def copy_expert(self, source: int, target: int) -> None:
        """Make one expert start from another's state."""
        self.expert(target).load_state_dict(self.expert(source).state_dict())
        self._cached = None

    @torch.no_grad()
    def merge(self, expert: int) -> Predictor:
        """Write an expert into the predictor, which then is an ordinary noise-aware module.

        The bank itself goes on working, for every expert: it remembers what it overwrote.

        Returns:
            The bank's own predictor, good until :meth:`unmerge` or the next merge.
        """
        self.unmerge()
        live = self._live()
        for key, value in self._effective(expert).items():
            if value is not live[key]:
                self._overwritten[key] = live[key].clone()
                live[key].copy_(value)
        return self.predictor

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the predictor exactly, bit for bit."""
        live = self._live()
        for key, value in self._overwritten.items():
            live[key].copy_(value)
        self._overwritten = {}
        self._cached = None

    @torch.no_grad()
    def absorb_statistics(self) -> None:
        """Rewrite batch norms so that experts need no statistics of their own.

        A batch norm in evaluation is an affine map per channel, so each expert's weight and bias
        can be chosen to give, with the predictor's statistics, what they gave with the expert's.
        Predictions are the same up to rounding and the bank is smaller. It is meant for trained
        banks: training goes on with the predictor's statistics, unchanged by it.
        """
        self.unmerge()
        layers = {
            name: layer
            for name, layer in self.predictor.network.named_modules()
            if isinstance(layer, _BatchNorm) and layer.affine and layer.track_running_stats
        }
        for number, expert in enumerate(self.experts):
            assert isinstance(expert, Expert)
            tensors, statistics = expert.tensors(), expert.statistics()
            for name, layer in layers.items():
                if f"{name}.running_var" in statistics:
                    tensors |= _absorbed(name, layer, tensors, statistics)
                    for kind in ("running_mean", "running_var", "num_batches_tracked"):
                        del statistics[f"{name}.{kind}"]
            self.experts[number] = Expert(tensors, statistics).train(expert.training)
        self.absorbed = True
        self._grouped = self._group()

    def guide(self, targets: Tensor, scale: float, task: Task | None = None) -> LikelihoodGuide:
        """A guide towards (N, ...) targets; class targets unless a task says otherwise."""
        return LikelihoodGuide(self.eval(), task or ClassTask(), targets, scale)

    def save(self, folder: str | Path) -> None:
        """Write ``bank.json`` and one ``expert_<n>.safetensors`` per range.

        The predictor is not written, only a fingerprint of it.
        """
        folder = Path(folder)
        for number in range(len(self)):
            expert = self.expert(number)
            save_weights(
                expert.tensors() | expert.statistics(), folder / f"expert_{number}.safetensors"
            )
        names = {kind: name for name, kind in PART_KINDS.items()}
        description = {
            "format": FORMAT,
            "predictor": self.predictor.name,
            "fingerprint": self.fingerprint(),
            "boundaries": self.ranges.boundaries,
            "inclusive": self.ranges.inclusive,
            "normalised": self.normalised,
            "absorbed": self.absorbed,
            "adapter": [{"part": names[type(part)], **vars(part)} for part in self.adapter.parts],
        }
        scratch = folder / "bank.json.part"
        scratch.write_text(json.dumps(description, indent=2) + "\n")
        scratch.replace(folder / "bank.json")

    @classmethod
    def load(cls, folder: str | Path, predictor: Predictor) -> ExpertBank:
        """A saved bank around the predictor that it was trained for.

        Raises:
            CheckpointError: if the folder holds no whole bank, or one of another predictor.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / "bank.json").read_text())
            parts = tuple(
                PART_KINDS[fields.pop("part")](**fields) for fields in description["adapter"]
            )
            inclusive = description.get("inclusive", False)
            ranges = NoiseRanges(tuple(description["boundaries"]), inclusive)
            normalised = description.get("normalised", True)
            absorbed = description.get("absorbed", False)
            fingerprint = description["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no readable bank.json ({error}); name a folder made by save()"
            ) from error
        bank = cls(predictor, ranges, Adapter(parts), normalised=normalised)
        if bank.fingerprint() != fingerprint:
            raise CheckpointError(
                f"{folder} was trained for other weights of {description['predictor']}; "
                f"load the predictor whose fingerprint is {fingerprint}"
            )
        if absorbed:
            bank.absorb_statistics()
        for number in range(len(bank)):
            path = folder / f"expert_{number}.safetensors"
            state = {_escape(key): value for key, value in load_state(path).items()}
            check_and_load(bank.expert(number), state, path.name)
        return bank.eval()

    def fingerprint(self) -> str:
        """Hexadecimal digest of the unadapted predictor's parameters."""
        digest = hashlib.sha256()
        for key, value in sorted(self._base().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _absorbed(
    name: str, layer: _BatchNorm, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weight and bias of an expert's batch norm for use with the layer's own statistics."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    weight = tensors.get(f"{name}.weight", layer.weight).double()
    bias = tensors.get(f"{name}.bias", layer.bias).double()
    mean, variance = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
    slope = weight * (variance.double() + layer.eps).rsqrt()
    bias = bias + (layer.running_mean.double() - mean.double()) * slope
    weight = slope * (layer.running_var.double() + layer.eps).sqrt()
    dtype = layer.weight.dtype
    return {f"{name}.weight": weight.to(dtype), f"{name}.bias": bias.to(dtype)}


def _escape(key: str) -> str:
    """Module attributes cannot hold dots."""
    return key.replace(".", "/")


def _unescape(key: str) -> str:
    return key.replace("/", ".")
