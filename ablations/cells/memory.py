"""Memory: the peak of this process, and what N experts weigh."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ppap.compute.allocator import return_freed_memory
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor

__all__ = ["Footprint", "peak_memory_mib", "reset_peak_memory"]

Form = Literal["copies", "adapters", "merged"]


@dataclass(frozen=True)
class Footprint(Cell):
    """What N experts of a published architecture weigh; the weights are random.

    Attributes:
        architecture: a timm name.
        form: one full network per expert, as the released code holds them; one frozen network
            and an adapter per expert; or that with one expert merged into the network.
        pixels: height and width of the images.
    """

    architecture: str
    form: Form
    experts: int
    rank: int = 16
    alpha: float = 8.0
    pixels: int = 224

    ALONE: ClassVar[bool] = True

    def label(self) -> str:
        return f"memory of {self.experts} experts of {self.architecture} as {self.form}"

    def seconds(self) -> float:
        return 2.0 + 0.3 * self.experts * (self.form == "copies")

    def predictor(self) -> Predictor:
        """The architecture at its published width."""
        import timm

        options = {"img_size": self.pixels} if "deit" in self.architecture else {}
        torch.manual_seed(0)
        network = timm.create_model(self.architecture, **options)
        return Predictor(network, (0.5,) * 3, (0.5,) * 3, (self.pixels, self.pixels))

    def compute(self, load: Load) -> Artifact:
        predictor = self.predictor().eval()
        bank = ExpertBank(predictor, self.experts, ppap_adapter(self.rank, self.alpha))
        share = bank.trainable_share
        modules: list[nn.Module]
        if self.form == "copies":
            del bank
            modules = [copy.deepcopy(predictor) for _ in range(self.experts)]
            run = modules[0]
        else:
            modules = [bank]
            if self.form == "merged":
                bank.merge(0)
            number = torch.zeros(2, dtype=torch.int64)
            run = (
                BankAtTimesteps(bank.eval(), number) if self.form == "adapters" else bank.predictor
            )
        gc.collect()
        reset_peak_memory()
        images = torch.zeros(2, 3, self.pixels, self.pixels, requires_grad=True)
        torch.autograd.grad(run(images).sum(), images)
        peak = peak_memory_mib()
        held = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        if self.form == "adapters":
            held += bank.effective(0).values()
        elif self.form == "merged":
            held += bank.overwritten.values()
        metrics = {
            "parameters": sum(p.numel() for module in modules for p in module.parameters()),
            "memory_mib": _bytes_alive(held) / 2**20,
            "disk_mib": sum(_bytes_on_disk(module) for module in modules) / 2**20,
            "peak_memory_mib": peak,
            "trainable_share": 1.0 if self.form == "copies" else share,
        }
        return Artifact({"metrics": metrics})


class BankAtTimesteps(nn.Module):
    """A bank at fixed timesteps."""

    def __init__(self, bank: ExpertBank, timesteps: Tensor) -> None:
        super().__init__()
        self.bank = bank
        self.timesteps = timesteps

    def forward(self, images: Tensor) -> Any:
        return self.bank(images, self.timesteps)


def _bytes_alive(tensors: Iterable[Tensor]) -> int:
    """Of the tensors' storages, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _bytes_on_disk(module: nn.Module) -> int:
    """Of a module's state as a safetensors file."""
    return len(save({k: v.contiguous() for k, v in module.state_dict().items()}))


def reset_peak_memory() -> None:
    """Start the kernel's record of this process's peak resident memory afresh (Linux)."""
    return_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Peak resident memory of this process in MiB, libraries and weights included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
