"""Training through accelerate: several processes give what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.accelerated import forget_accelerators, train

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    forget_accelerators()


def launch(out: Path, processes: int) -> dict[str, torch.Tensor]:
    # Not accelerate launch: on CPUs without MPI it starts one process, however many are asked for.
    script = ROOT / "tests" / "ppap" / "accelerated.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", str(script), str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    environment |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(out)


def test_two_processes_train_what_one_does_though_interrupted(tmp_path: Path) -> None:
    shared = launch(tmp_path / "two.safetensors", processes=2)
    assert shared["processes"].item() == 2
    alone, losses = train(None)
    for key, value in alone.experts.state_dict().items():
        torch.testing.assert_close(shared[key], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared["losses"], torch.tensor(losses), atol=1e-5, rtol=1e-5)


def test_one_process_through_accelerate_is_the_plain_path() -> None:
    plain, _ = train(None)
    through, _ = train(Accelerator(cpu=True))
    for ours, theirs in zip(plain.experts.parameters(), through.experts.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Unused(nn.Linear):
    """Owns a parameter that no prediction depends on, as heads for training alone do."""

    def __init__(self) -> None:
        super().__init__(64, 3)
        self.spare = nn.Parameter(torch.ones(2))


def test_a_parameter_without_gradient_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Flatten(), Unused())
    bank = ExpertBank(Predictor(network, (0.5,), (0.5,)), 1, Adapter((Full(),)))
    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    objective, training = Distillation(ClassTask()), Training(steps=2, batch=4)
    transfer(
        bank, linear_schedule(), images, objective, training, accelerator=Accelerator(cpu=True)
    )
    own = bank.expert(0).tensors()
    assert torch.equal(own["1.spare"], torch.ones(2))
    assert not torch.equal(own["1.weight"], network[1].weight)


def test_mixed_precision_trains_nearly_the_same() -> None:
    plain, losses = train(None)
    mixed, near = train(Accelerator(cpu=True, mixed_precision="bf16"))
    assert near == pytest.approx(losses, rel=0.05)
    assert near != losses
    assert all(parameter.dtype == torch.float32 for parameter in mixed.experts.parameters())
    assert plain.experts is not mixed.experts


def test_an_accelerator_and_the_training_cannot_both_have_a_precision() -> None:
    bank, _ = train(None)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    training = Training(steps=2, batch=4, precision="auto")
    with pytest.raises(ValueError, match="precision of its own"):
        transfer(
            bank, linear_schedule(), images, Distillation(ClassTask()), training,
            accelerator=Accelerator(cpu=True),
        )  # fmt: skip


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    class Three(Accelerator):
        num_processes = 3

    bank, _ = train(None)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    objective, training = Distillation(ClassTask()), Training(steps=2, batch=64)
    with pytest.raises(ValueError, match="multiple"):
        transfer(bank, linear_schedule(), images, objective, training, accelerator=Three(cpu=True))


def test_gradients_gathered_over_parts_of_a_batch_are_those_of_the_batch() -> None:
    plain, losses = train(None)
    parts, near = train(Accelerator(cpu=True, gradient_accumulation_steps=4))
    for ours, theirs in zip(plain.experts.parameters(), parts.experts.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert near == pytest.approx(losses, rel=1e-5)


def test_a_batch_that_does_not_split_into_its_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="in 5 parts each; choose a multiple"):
        train(Accelerator(cpu=True, gradient_accumulation_steps=5))


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, but the accelerator sees 1"):
        train(alone)
