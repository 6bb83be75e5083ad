"""The file that an interrupted training goes on from: to the same result, bit for bit.

It holds the experts, the optimiser's state, the losses so far and the state of the generators that
layers such as dropout draw from: PyTorch's, Python's and NumPy's. What each step draws depends on
the seed and the step alone (:mod:`ppap.experts.draws`) and needs no state.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ppap.diffusion.schedule import Schedule
from ppap.experts.bank import ExpertBank
from ppap.experts.training import Training
from ppap.files.checkpoints import (
    PART,
    CheckpointError,
    check_state,
    fingerprint,
    one_line,
    save_weights,
)
from ppap.files.images import Images

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Position", "TrainingFile", "identity", "seconds_spent"]

KEY = "training"
LOOKED_AT = 64
"""Images that tell one set from another: reading all would take as long as a day's training."""
OptimiserState = list[dict[str, Tensor]]


@dataclass
class Position:
    """Where a training is.

    Attributes:
        done: steps so far, of all stages.
        losses: the mean loss of each finished stage.
        recent: the loss of each step of the stage under way.
        optimiser: one state for each parameter of that stage; None for a fresh optimiser.
    """

    done: int
    losses: list[float]
    recent: list[float]
    optimiser: OptimiserState | None = None


def identity(
    bank: ExpertBank,
    schedule: Schedule,
    images: Images,
    objective: object,
    training: Training,
    accelerator: Accelerator | None,
    compiled: bool,
) -> dict[str, str]:
    """What decides a training's result, before it begins: digests and descriptions, by name."""
    count = len(images)
    some = torch.arange(min(count, LOOKED_AT)) * count // min(count, LOOKED_AT)
    predictor = bank.identity()
    return {
        "training": _described(training),
        "predictor": bank.fingerprint(),
        "buffers of the predictor": predictor.buffers[predictor.dtype],
        "mean, std and size": _described((predictor.mean, predictor.std, predictor.size)),
        "normalised": str(bank.normalised),
        "task": _described(bank.task),
        "first state of the experts": fingerprint(bank.experts.state_dict()),
        "adapter": _described(bank.adapter),
        "ranges": _described(bank.ranges),
        "schedule": hashlib.sha256(schedule.alphas_cumprod.tobytes()).hexdigest()[:16],
        "objective": _described(objective),
        "images": f"{tuple(images.shape)} {fingerprint({'some': images[some]})}",
        "device": next(bank.parameters()).device.type,
        "compiled": str(compiled),
        "processes": str(accelerator.num_processes if accelerator else 1),
        "mixed precision": str(accelerator.mixed_precision if accelerator else "no"),
        "gradient accumulation": str(accelerator.gradient_accumulation_steps if accelerator else 1),
    }


class TrainingFile:
    """A training's file; of several processes the first writes, and all read it.

    Args:
        path: ends in ``.safetensors``.
        bank: that is trained.
        identity: of the training.
        accelerator: of the processes that train together.

    Raises:
        ValueError: for another ending.
    """

    def __init__(
        self,
        path: str | Path,
        bank: ExpertBank,
        identity: Mapping[str, str],
        accelerator: Accelerator | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".safetensors":
            raise ValueError(f"a training is kept in a .safetensors file, got {self.path.name}")
        self.bank = bank
        self.identity = dict(identity)
        self.accelerator = accelerator
        self._before, self._began = 0.0, time.monotonic()

    def begin(self) -> None:
        """Look whether the file is of this training; write it if there is none.

        So what cannot be read or written is known before anything is computed.

        Raises:
            CheckpointError: if the file is damaged or of another training.
            OSError: if it cannot be written.
        """
        found = self.path.exists()
        if self._rank == 0:  # what a kill in the middle of a write has left
            self.path.with_name(self.path.name + PART).unlink(missing_ok=True)
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()  # before the first writes what others look for
        if found:
            self._tensors()
        else:
            self.write(Position(0, [], []))

    def write(self, position: Position) -> None:
        """Keep the bank's experts and the position: beside the file, then renamed.

        Raises:
            OSError: if it cannot be written.
        """
        tensors = {
            "done": torch.tensor(position.done),
            "seconds": torch.tensor(self._before + time.monotonic() - self._began),
            "losses": torch.tensor(position.losses, dtype=torch.float64),
            "recent": torch.tensor(position.recent, dtype=torch.float64),
            "optimiser": torch.tensor(position.optimiser is not None),
            **_named("expert", self.bank.experts.state_dict()),
            **self._of_processes(),
            **_named("scaler", self._scaler()),
        }
        for number, state in enumerate(position.optimiser or ()):
            tensors |= _named(f"optimiser/{number}", state)
        if self.accelerator is None or self.accelerator.is_main_process:
            save_weights(tensors, self.path, metadata={KEY: json.dumps(self.identity)})
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def read(self) -> Position:
        """Fill the bank's experts, and set generators, as when the file was written.

        Returns:
            Where the training was, its tensors on the bank's device.

        Raises:
            CheckpointError: if the file is damaged or of another training.
        """
        tensors = self._tensors()
        try:
            experts = _below("expert", tensors)
            check_state(self.bank.experts.state_dict(), experts, self.path.name, "the experts")
            position = Position(
                int(tensors["done"]),
                tensors["losses"].tolist(),
                tensors["recent"].tolist(),
                self._optimiser(tensors) if tensors["optimiser"] else None,
            )
            own = self._rank
            buffers = {k: v[own] for k, v in _below("buffer", tensors).items()}
            # Copied: a generator reads a view from the beginning of what it is a view of.
            drawn = {k: v[own].clone() for k, v in _below("random", tensors).items()}
            self.bank.experts.load_state_dict(experts | buffers)
            torch.set_rng_state(drawn["cpu"])
            if "cuda" in drawn:
                torch.cuda.set_rng_state(drawn["cuda"], self._device)
            if "python" in drawn:  # not in an earlier version's file
                _set_pythons(drawn["python"].tolist())
                _set_numpys(drawn["numpy"].tolist())
            self._set_scaler(_below("scaler", tensors))
            self._before, self._began = float(tensors["seconds"]), time.monotonic()
        except (KeyError, IndexError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{self._damaged} ({one_line(error)})") from error
        return position

    def _tensors(self) -> dict[str, Tensor]:
        try:
            with safe_open(self.path, "pt") as file:
                found = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # a damaged file makes its reader raise almost anything
            raise CheckpointError(f"{self._damaged} ({one_line(error)})") from error
        # What an earlier version did not write down is taken for the same.
        other = [name for name, value in self.identity.items() if found.get(name, value) != value]
        if other:
            raise CheckpointError(
                f"{self.path} is of another training: {', '.join(other)} "
                f"{'differ' if len(other) > 1 else 'differs'}; name another file, or delete it"
            )
        return tensors

    @property
    def _damaged(self) -> str:
        return f"{self.path} is damaged or no training's; delete it to begin anew"

    @property
    def _device(self) -> torch.device:
        return next(self.bank.parameters()).device

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    def _optimiser(self, tensors: Mapping[str, Tensor]) -> OptimiserState:
        """States up to the last parameter that has one; those between may have none."""
        numbered = _below("optimiser", tensors)
        count = 1 + max((int(name.split("/")[0]) for name in numbered), default=-1)
        states = [_below(str(number), numbered) for number in range(count)]
        return [{k: v.to(self._device) for k, v in state.items()} for state in states]

    def _of_processes(self) -> dict[str, Tensor]:
        """What each process has its own of, (processes, ...): statistics, and generators."""
        drawn = {"cpu": torch.get_rng_state(), "python": _pythons(), "numpy": _numpys()}
        if self._device.type == "cuda":
            drawn["cuda"] = torch.cuda.get_rng_state(self._device)
        own = _named("buffer", dict(self.bank.experts.named_buffers())) | _named("random", drawn)
        return {name: self._gathered(value) for name, value in own.items()}

    def _gathered(self, tensor: Tensor) -> Tensor:
        if self.accelerator is None:
            return tensor[None]
        gathered: Tensor = self.accelerator.gather(tensor[None].to(self._device))
        return gathered

    def _scaler(self) -> dict[str, Tensor]:
        scaler = self.accelerator.scaler if self.accelerator else None
        if scaler is None:
            return {}
        return {name: torch.tensor(value) for name, value in scaler.state_dict().items()}

    def _set_scaler(self, state: Mapping[str, Tensor]) -> None:
        if state and self.accelerator and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict({k: v.item() for k, v in state.items()})


def _pythons() -> Tensor:
    """(626,) the state of Python's generator; NaN where it has no second normal number waiting."""
    _, words, waiting = random.getstate()
    return torch.tensor([*words, math.nan if waiting is None else waiting], dtype=torch.float64)


def _set_pythons(state: list[float]) -> None:
    *words, waiting = state
    version, *_ = random.getstate()
    left = None if math.isnan(waiting) else waiting
    random.setstate((version, tuple(map(int, words)), left))


def _numpys() -> Tensor:
    """(627,) likewise of NumPy's."""
    state: Any = np.random.get_state()  # noqa: NPY002
    _, words, place, waits, waiting = state
    return torch.tensor([*words.tolist(), place, waits, waiting], dtype=torch.float64)


def _set_numpys(state: list[float]) -> None:
    *words, place, waits, waiting = state
    key = np.array(words).astype(np.uint32)
    np.random.set_state(("MT19937", key, int(place), int(waits), waiting))  # noqa: NPY002


def seconds_spent(path: str | Path) -> float:
    """How long a training took up to its last write, in all its runs; 0 without a file.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not Path(path).exists():
        return 0.0
    try:
        with safe_open(path, "pt") as file:
            return float(file.get_tensor("seconds"))
    except Exception as error:  # a damaged file makes its reader raise almost anything
        raise CheckpointError(f"{path} is no training's ({one_line(error)})") from error


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _described(value: Any, seen: dict[int, Any] | None = None) -> str:
    """In words that are the same in another process.

    Tensors as digests, functions by their names, and others by their fields or attributes.

    Args:
        value: what is described.
        seen: objects that have been, by their ids: the second time a name is enough.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, np.ndarray):
        return repr((value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()))
    if isinstance(value, Tensor):
        return fingerprint({"tensor": value})
    seen = {} if seen is None else seen
    plain = is_dataclass(value) and not isinstance(value, type)
    if isinstance(value, Sequence) and not plain:
        return f"[{', '.join(_described(part, seen) for part in value)}]"
    name = str(getattr(value, "__qualname__", type(value).__name__))
    if not plain and id(value) in seen:
        return name
    seen[id(value)] = value
    named = {f.name: getattr(value, f.name) for f in fields(value)} if plain else _attributes(value)
    parts = ", ".join(f"{key}={_described(part, seen)}" for key, part in named.items())
    return f"{name}({parts})" if named or plain else name


def _attributes(value: Any) -> dict[Any, Any]:
    """What tells an object that is no dataclass from others of its class."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return dict.fromkeys(sorted(map(repr, value)))
    if isinstance(value, type) or inspect.isroutine(value):
        return {"of": value.__self__} if inspect.ismethod(value) else {}
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "options": value.keywords}
    if type(value).__module__.partition(".")[0] in sys.stdlib_module_names:
        return {}  # such as loggers and locks, which are others in another process
    found = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):
        own = {name: found[name] for name in found if not name.startswith("_")}
        own.pop("training", None)
        state = {k: v for k, v in value.state_dict().items() if isinstance(v, Tensor)}
        return dict(sorted(own.items())) | {"state": fingerprint(state)}
    return dict(sorted(found.items()))
