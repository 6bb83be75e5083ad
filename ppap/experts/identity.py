"""Which predictor a bank was trained for: its weights, its buffers, and what it does to images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppap.files.checkpoints import fingerprint
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import plain_name

__all__ = ["PredictorIdentity", "content_digest", "former_fingerprints"]

HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
SINGLE = "float32"
DTYPES = {SINGLE: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COUNTER = "num_batches_tracked"
"""Of batches that a batch norm has seen; no prediction depends on it."""


@dataclass(frozen=True)
class PredictorIdentity:
    """What of a predictor its experts depend on.

    A predictor that was rounded to half precision is taken for the one it was made of: digests
    of float32 weights are kept for each dtype that they may be rounded to.

    Attributes:
        dtype: of the weights: ``"float32"`` (or wider), ``"bfloat16"`` or ``"float16"``.
        parameters: digest of the unadapted parameters by dtype.
        buffers: likewise, such as the statistics of batch norms.
        mean: per channel, float32.
        std: likewise.
        size: (H, W) to which images are resized; None if they are not.
    """

    dtype: str
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None

    @classmethod
    def of(cls, predictor: Predictor, overwritten: Mapping[str, Tensor]) -> PredictorIdentity:
        """The identity of a predictor.

        Args:
            predictor: in use.
            overwritten: its own tensors, by name, in place of which others are written now.
        """
        network = predictor.network
        parameters = {
            plain_name(network, key): overwritten.get(key, value)
            for key, value in network.named_parameters()
        }
        buffers = {
            plain_name(network, key): overwritten.get(key, value)
            for key, value in network.named_buffers()
            if not key.endswith(COUNTER)
        }
        half = {HALVES[value.dtype] for value in parameters.values() if value.dtype in HALVES}
        kept = sorted(half)[:1] or [*DTYPES]
        return cls(
            kept[0],
            {name: content_digest(parameters, DTYPES[name]) for name in kept},
            {name: content_digest(buffers, DTYPES[name]) for name in kept},
            tuple(predictor.mean.flatten().float().tolist()),
            tuple(predictor.std.flatten().float().tolist()),
            None if (size := predictor.size) is None else (int(size[0]), int(size[1])),
        )

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> PredictorIdentity:
        """What :meth:`written` gave; KeyError, TypeError or ValueError for anything else."""
        height_width = written["size"]
        return cls(
            str(written["dtype"]),
            dict(written["parameters"]),
            dict(written["buffers"]),
            tuple(map(float, written["mean"])),
            tuple(map(float, written["std"])),
            None if height_width is None else (int(height_width[0]), int(height_width[1])),
        )

    def written(self) -> dict[str, Any]:
        """What a JSON file can hold."""
        return asdict(self)

    def differences(self, other: PredictorIdentity) -> list[str]:
        """What another predictor has of its own, in words; empty if it is the same."""
        narrow = self.dtype if other.dtype == SINGLE else other.dtype
        step = 2.0**-8 if narrow == "bfloat16" else 2.0**-11 if narrow == "float16" else 0.0
        found = [
            f"other {kind}"
            for kind in ("parameters", "buffers")
            if narrow not in (ours := getattr(self, kind))
            or ours[narrow] != getattr(other, kind).get(narrow)
        ]
        for kind in ("mean", "std"):
            pair = torch.tensor(getattr(self, kind)), torch.tensor(getattr(other, kind))
            if pair[0].shape != pair[1].shape or not torch.allclose(*pair, rtol=step, atol=0):
                found.append(f"{kind} {_rounded(pair[1])} for {_rounded(pair[0])}")
        if self.size != other.size:
            found.append(f"size {other.size} for {self.size}")
        return found


def former_fingerprints(network: nn.Module, overwritten: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What banks before format 3 knew a predictor by: a digest of its parameters alone.

    The second is with the names that mixed precision gives them.
    """
    parameters = {key: overwritten.get(key, value) for key, value in network.named_parameters()}
    plain = {plain_name(network, key): value for key, value in parameters.items()}
    return fingerprint(plain), fingerprint(parameters)


def content_digest(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """32 hexadecimal digits of the names, shapes and values of tensors.

    Args:
        state: tensors by name, in any order, anywhere.
        dtype: to which floats are rounded; None takes them as they are.
    """
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        tensor = value.detach().cpu()
        if dtype and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())
