"""The files of a saved bank: ``bank.json`` and one ``expert_<n>.safetensors`` per range.

All are written beside their places first, ``bank.json`` last and with a digest of every expert;
then they are renamed, ``bank.json`` last again. So a save that is interrupted while it writes
leaves the older bank as it was, one that is interrupted while it renames is read from both places,
and a mixture of two banks is never read.

Format 3 knows the whole predictor and digests, and the noise levels of the training unless an
earlier version wrote it. Format 2, which knows its parameters, and format 1,
which knows no task, are read as well; these are mixtures if their files are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ppap.compute.options import check_whole
from ppap.diffusion.noise_levels import NoiseLevels
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Head, Norms, Part
from ppap.experts.adapters.peft import Peft
from ppap.experts.expert import Expert
from ppap.experts.identity import (
    PredictorIdentity,
    content_digest,
    former_fingerprints,
)
from ppap.experts.merging import WrittenWeights
from ppap.experts.routing import NoiseRanges
from ppap.files.checkpoints import (
    CheckpointError,
    check_state,
    load_state,
    plain_number,
    save_weights,
)
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import plain_name
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask

__all__ = ["BankDescription", "expert_state", "fill_expert", "read_bank", "write_bank"]

FORMAT = 3
PART_KINDS: dict[str, type[Part]] = {
    "lora": Lora,
    "biases": Biases,
    "norms": Norms,
    "full": Full,
    "head": Head,
    "peft": Peft,
}
TASK_KINDS: dict[str, type[Task]] = {
    "class": ClassTask,
    "depth": DepthTask,
    "segmentation": SegmentationTask,
    "similarity": SimilarityTask,
}
CUSTOM = "custom"
DESCRIPTION, NEXT_DESCRIPTION = "bank.json", "bank.next.json"
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class BankDescription:
    """What ``bank.json`` holds.

    Attributes:
        predictor: its name.
        ranges: of the experts.
        adapter: of all experts.
        task: None in format 1, and for a task that is none of the library's own.
        identity: of the predictor; None before format 3.
        fingerprint: of the unadapted predictor's parameters, before format 3.
        normalised: whether the experts see normalised images.
        absorbed: whether batch statistics were absorbed.
        custom_task: the class name of such a task.
        digests: of the experts' tensors; empty before format 3.
        noise_levels: of the noise that the experts were trained on; None where it is not known.
        seed: of the adapters' first random values; 0 where an earlier version did not write it.
    """

    predictor: str
    ranges: NoiseRanges
    adapter: Adapter
    task: Task | None
    identity: PredictorIdentity | None
    fingerprint: str = ""
    normalised: bool = True
    absorbed: bool = False
    custom_task: str = ""
    digests: tuple[str, ...] = ()
    noise_levels: NoiseLevels | None = None
    seed: int = 0

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        assert self.identity is not None
        written = {
            "format": FORMAT,
            "predictor": self.predictor,
            "identity": self.identity.written(),
            "boundaries": self.ranges.boundaries,
            "inclusive": self.ranges.inclusive,
            "normalised": self.normalised,
            "absorbed": self.absorbed,
            "seed": self.seed,
            "noise": None if self.noise_levels is None else self.noise_levels.written(),
            "task": self._task_fields(),
            "adapter": [_part_fields(part) for part in self.adapter.parts],
            "experts": self.digests,
        }
        scratch = path.with_name(f"{path.name}.part")
        text = json.dumps(written, indent=2, default=plain_number)
        scratch.write_text(text + "\n", encoding="utf-8")
        scratch.replace(path)

    def task_or(self, given: Task | None, folder: Path) -> Task | None:
        """The task that is given, or else the saved one, None in format 1.

        Raises:
            CheckpointError: if none is given and the saved one is none of the library's.
        """
        if given is None and self.custom_task:
            raise CheckpointError(
                f"{folder} was saved with a task of its own, {self.custom_task}; "
                "pass it: load(folder, predictor, task=...)"
            )
        return given or self.task

    def check_predictor(self, folder: Path, predictor: Predictor) -> None:
        """Refuse a predictor that the experts were not trained for.

        Raises:
            CheckpointError: which says in what it is another.
        """
        replaced = WrittenWeights(predictor.network).where_it_is()  # if another bank is merged
        if self.identity is None:
            known = former_fingerprints(predictor.network, replaced)
            other = [] if self.fingerprint in known else ["other parameters"]
        else:
            other = self.identity.differences(PredictorIdentity.of(predictor, replaced))
        if other:
            raise CheckpointError(
                f"{folder} was trained for another predictor than this {predictor.name}, which "
                f"has {', '.join(other)}; load {self.predictor} as it was"
            )

    def _task_fields(self) -> dict[str, Any]:
        kind = _kind(self.task, TASK_KINDS)
        if kind is None:
            return {"kind": CUSTOM, "name": type(self.task).__name__}
        return {"kind": kind, **vars(self.task)}

    @classmethod
    def read(cls, path: Path, adapter: Adapter | None = None) -> BankDescription:
        """The description in a JSON file.

        Args:
            path: of the file.
            adapter: see :meth:`ppap.experts.bank.ExpertBank.load`.

        Raises:
            CheckpointError: if there is none that can be read, or of another adapter.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
            if found["format"] > FORMAT:
                raise ValueError(f"format {found['format']} is newer than this library's {FORMAT}")
            task, name = _read_task(found.get("task"))
            identity, noise = found.get("identity"), found.get("noise")
            return cls(
                found["predictor"],
                NoiseRanges(tuple(found["boundaries"]), _flag(found, "inclusive", False)),
                _read_adapter(found["adapter"], adapter),
                task,
                None if identity is None else PredictorIdentity.read(identity),
                "" if found["format"] > 2 else found["fingerprint"],
                _flag(found, "normalised", True),
                _flag(found, "absorbed", False),
                name,
                tuple(found["experts"]) if found["format"] > 2 else (),
                None if noise is None else NoiseLevels.read(noise),
                _read_seed(found),
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path.parent} holds no readable {path.name} ({error}); "
                "name a folder made by save()"
            ) from error


def write_bank(folder: Path, about: BankDescription, experts: Sequence[State]) -> None:
    """Write a bank in place of one that the folder may hold; at no time is it a mixture.

    Args:
        folder: made if need be.
        about: the bank, without digests.
        experts: tensors and statistics of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _move_in(folder)  # what an interrupted save left, which may be the folder's only whole bank
    for number, state in enumerate(experts):
        save_weights(state, folder / _next(number))
    digests = tuple(content_digest(state) for state in experts)
    described = {**vars(about), "digests": digests}
    BankDescription(**described).write(folder / NEXT_DESCRIPTION)
    _move_in(folder)
    number = len(experts)
    while (stale := folder / _place(number)).is_file():  # of a bank of more experts
        stale.unlink()
        number += 1


def expert_state(expert: Expert, network: nn.Module) -> dict[str, Tensor]:
    """An expert's tensors and statistics, by the plain names of the network."""
    every = expert.tensors() | expert.statistics()
    return {plain_name(network, key): value for key, value in every.items()}


def fill_expert(expert: Expert, number: int, network: nn.Module, state: State) -> None:
    """Fill an expert, strictly, by the network's names or their plain form.

    Raises:
        CheckpointError: for tensors of another adapter.
    """
    own = expert.tensors() | expert.statistics()
    names = {plain_name(network, key): key for key in own}
    filled = {
        names.get(key, names.get(plain_name(network, key), key)): value
        for key, value in state.items()
    }
    check_state(own, filled, _place(number), "the expert")
    expert.load(filled)


def read_bank(
    folder: Path, adapter: Adapter | None = None
) -> tuple[BankDescription, list[dict[str, Tensor]]]:
    """What a folder holds: the description, and tensors and statistics of each expert.

    Raises:
        CheckpointError: if it holds no whole bank.
    """
    # If that is there, all of the newer bank is written, and some of it may be in place already.
    waiting = (folder / NEXT_DESCRIPTION).is_file()
    file = NEXT_DESCRIPTION if waiting else DESCRIPTION
    about = BankDescription.read(folder / file, adapter)
    places = [[_place(number)] for number in range(len(about.ranges))]
    if waiting:
        places = [[_next(number), *place] for number, place in enumerate(places)]
    if about.digests and len(about.digests) != len(places):
        raise CheckpointError(
            f"{folder / file} has {len(places)} ranges and digests of {len(about.digests)} "
            "experts; save the bank again"
        )
    return about, [
        _expert(folder, names, about.digests[number] if about.digests else None)
        for number, names in enumerate(places)
    ]


def _expert(folder: Path, names: Sequence[str], digest: str | None) -> dict[str, Tensor]:
    """The tensors of the first file of these that has them."""
    for name in names:
        if name != names[-1] and not (folder / name).is_file():
            continue
        state = load_state(folder / name)
        if digest is None or content_digest(state) == digest:
            return state
    raise CheckpointError(
        f"{folder / names[-1]} is not the expert that bank.json was saved with: the file was "
        "changed, or a save was interrupted; save the bank again"
    )


def _move_in(folder: Path) -> None:
    """Rename what is written beside its place, if all of it is: the description comes last."""
    if not (folder / NEXT_DESCRIPTION).is_file():
        return
    number = 0
    while (waiting := folder / _next(number)).is_file() or (folder / _place(number)).is_file():
        if waiting.is_file():
            waiting.replace(folder / _place(number))
        number += 1
    (folder / NEXT_DESCRIPTION).replace(folder / DESCRIPTION)


def _place(number: int) -> str:
    return f"expert_{number}.safetensors"


def _next(number: int) -> str:
    return f"expert_{number}.next.safetensors"


def _part_fields(part: Part) -> dict[str, Any]:
    kind = _kind(part, PART_KINDS)
    if kind is not None:
        return {"part": kind, **vars(part)}
    given: Any = part
    stated = fields(given) if is_dataclass(given) else ()
    settings = {field.name: getattr(given, field.name) for field in stated}
    written = {"part": CUSTOM, "name": type(part).__name__, "settings": settings}
    return dict(json.loads(json.dumps(written, default=_shown)))


def _shown(value: Any) -> Any:
    return plain_number(value) if isinstance(value, np.generic) else repr(value)


def _flag(written: Mapping[str, Any], name: str, default: bool) -> bool:
    found = written.get(name, default)
    if not isinstance(found, bool):
        raise TypeError(f"{name} is true or false, got {found!r}")
    return found


def _read_seed(written: Mapping[str, Any]) -> int:
    found = written.get("seed", 0)
    check_whole("seed", found, 0)
    return int(found)


def _read_adapter(written: Sequence[dict[str, Any]], given: Adapter | None) -> Adapter:
    if not written:
        raise ValueError("an adapter without parts")
    own = [str(part.get("name")) for part in written if part["part"] not in PART_KINDS]
    if given is None:
        if unknown := [str(p["part"]) for p in written if p["part"] not in (*PART_KINDS, CUSTOM)]:
            raise ValueError(f"adapter parts {', '.join(unknown)}")
        if own:
            raise CheckpointError(
                f"the bank was saved with adapter parts of its own, {', '.join(own)}; "
                "pass the adapter: load(folder, predictor, adapter=...)"
            )
        return Adapter(tuple(_read_part(part) for part in written))
    present = [_part_fields(part) for part in given.parts]
    saved = [_part_fields(_read_part(p)) if p["part"] in PART_KINDS else p for p in written]
    if len(present) != len(saved) or any(
        ours != theirs and theirs["part"] is not None
        for ours, theirs in zip(present, saved, strict=True)
    ):
        raise CheckpointError(f"the bank was saved with the adapter {saved}, not {present}")
    return given


def _read_part(written: Mapping[str, Any]) -> Part:
    return PART_KINDS[written["part"]](**{k: v for k, v in written.items() if k != "part"})


def _kind(value: object, kinds: Mapping[str, type[Any]]) -> str | None:
    return next((name for name, kind in kinds.items() if type(value) is kind), None)


def _read_task(written: dict[str, Any] | None) -> tuple[Task | None, str]:
    if written is None:
        return None, ""
    kind = written.pop("kind")
    return (None, written["name"]) if kind == CUSTOM else (TASK_KINDS[kind](**written), "")
