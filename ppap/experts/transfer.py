"""Knowledge transfer: the experts of a bank are trained, without data or with labels.

For expert n: t ~ U(range n), x_t ~ q(x_t | x_0), and the student's prediction for x_t is drawn to
the teacher's for the clean x_0 (data-free, the paper's way) or to a label.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppap.compute.allocator import keep_freed_memory
from ppap.compute.precision import choose_precision
from ppap.compute.progress import Progress, reporting
from ppap.compute.tracing import state_of
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.noise_levels import NoiseLevels
from ppap.diffusion.schedule import Schedule
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Objective
from ppap.experts.stages import stages
from ppap.experts.trainer import Trainer
from ppap.experts.training import Training
from ppap.experts.training_files import TrainingFile, identity
from ppap.files.images import Images
from ppap.files.mirroring import Mirrored

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["trained_experts", "transfer"]

FIRST_VALUES = 1e-5
"""Relative differences of what no step has changed; a step's are larger, and zeros have none."""


@torch.inference_mode(False)
@torch.enable_grad()
def transfer(
    bank: ExpertBank,
    denoiser: Denoiser | Schedule,
    images: Images,
    objective: Objective | None = None,
    training: Training | None = None,
    *,
    flips: bool = False,
    progress: bool | Progress = False,
    accelerator: Accelerator | None = None,
    compile: bool = False,
    file: str | Path | None = None,
    every: int = 1000,
) -> list[float]:
    """Train every expert of a bank.

    Under ``accelerate launch`` or ``torchrun`` each process trains on its share of every batch
    and gradients are averaged, so that several processes give what one does, batch norms aside,
    whose statistics are those of the shares. So is a share in several parts, one after another,
    under ``Accelerator(gradient_accumulation_steps=...)``, which takes less memory. (On CPUs
    ``accelerate launch`` starts one process where there is no MPI, and processes see each other
    under ``Accelerator(cpu=True)`` alone.)

    Args:
        bank: its experts are trained in place; what was merged into its predictor is unmerged. To
            go on with a trained bank say ``Training(start="own")``.
        denoiser: whose noise the experts are to see through, or its full schedule.
        images: (N, C, H, W) uint8: a tensor, or what
            :func:`ppap.diffusion.synthesis.synthesize` gave.
        objective: by default :class:`ppap.experts.objectives.Distillation`, which needs no
            labels, by the bank's own task; or :class:`ppap.experts.objectives.Supervision`.
        training: budget and optimiser, by default the paper's.
        flips: whether every image is flipped left to right with probability 1/2, as in the
            paper; not for images in which left and right differ in meaning. Maps among labels
            are flipped with their images.
        progress: True shows a bar; a function is called after each step of the whole training
            as ``progress(done, total, loss=...)``.
        accelerator: Hugging Face accelerate's, for mixed precision and several processes;
            move the bank to its device first.
        compile: whether the step is compiled, once for all experts: it is traced at the first step,
            kept on disk for other processes on a CPU (:func:`ppap.compute.packages.cache_folder`),
            and compared there with the step itself, which is taken if it cannot be compiled or
            gives another result; a logged line then says why. Under an accelerator nothing is
            compiled.
        file: keeps the state of the training, ends in ``.safetensors``. Where it is there, the
            training goes on from it, to the same experts as without interruption, bit for bit, on
            one machine and with equal versions; of a finished training they are read. An
            exception leaves the experts as they were before, so that the same call goes on.
        every: steps between two writes of the file; it is also written when an expert is done.

    Returns:
        Mean loss over the last tenth of each expert's steps, low noise to high.

    Raises:
        NoiseLevelsError: if the bank was trained on another noise schedule, and is not to begin
            anew (``start="base"``).
        NonFiniteError: if the teacher's predictions or a loss are not finite.
        TypeError: for a list of images, an array of NumPy's or a folder's name, for a denoiser,
            objective or training that is none.
        ValueError: if there are no images, none of uint8, or of another shape than the denoiser's,
            the bank's ranges and the schedule differ in length, an expert would get no step, the
            training would write one expert over others that are trained already, processes cannot
            share the batch evenly or don't see each other, the bank was made within
            ``torch.inference_mode()``, the device would emulate the precision asked for, or an
            accelerator brings one of its own, ``every`` is below 1, or the file has another ending.
        CheckpointError: if the file is damaged or of another training.
        OSError: if the file cannot be written, which is tried before anything is computed.
    """
    objective = Distillation() if objective is None else objective
    training = Training() if training is None else training
    if not hasattr(objective, "loss"):
        mend = "; name it: training=..." if isinstance(objective, Training) else ""
        raise TypeError(
            "an objective is ppap.Distillation() or ppap.Supervision(labels), "
            f"got {type(objective).__name__}{mend}"
        )
    if not isinstance(training, Training):
        raise TypeError(f"training is a ppap.Training, got {type(training).__name__}")
    bank.unmerge()
    schedule = denoiser.schedule if isinstance(denoiser, Denoiser) else denoiser
    _check(bank, denoiser, images, training, accelerator)
    if every < 1:
        raise ValueError(f"a training's file is written every so many steps, got {every}")
    precision = choose_precision(training.precision, next(bank.parameters()).device)
    keep_freed_memory()
    if training.start == "base":
        bank.reset()
    if flips:
        images = Mirrored(images)
    kept = None
    if file is not None:
        about = identity(bank, schedule, images, objective, training, accelerator, compile)
        kept = TrainingFile(file, bank, about, accelerator)
        kept.begin()
    loss = objective.loss(bank, images)
    if progress is True and accelerator is not None and not accelerator.is_main_process:
        progress = False
    trainer = Trainer(
        bank, images, schedule, loss, training, accelerator, compile, precision,
        file=kept, every=every,
    )  # fmt: skip
    with _training(bank, schedule, put_back=kept is not None):
        if kept is not None:
            trainer.position = kept.read()
        done = trainer.position.done
        with reporting(progress, training.steps, "transfer", "steps", done) as trainer.report:
            return _train(trainer)


def _train(trainer: Trainer) -> list[float]:
    """The stages that are not done yet; the loss of every expert."""
    bank, position = trainer.bank, trainer.position
    plan = stages(bank.ranges, trainer.training)
    for stage in plan[len(position.losses) :]:
        if not position.recent:
            for source, target in stage.copies:
                bank.copy_expert(source, target)
        if stage.expert is None:
            trainer.fit_together(stage.steps)
        else:
            trainer.fit(stage.expert, stage.bounds, stage.steps)
    losses = [float("nan")] * len(bank)
    for stage, loss in zip(plan, position.losses, strict=True):
        trained = range(len(bank)) if stage.expert is None else (stage.expert,)
        for number in trained:
            losses[number] = loss
    return losses


@contextmanager
def _training(bank: ExpertBank, schedule: Schedule, put_back: bool) -> Iterator[None]:
    """Training mode; an exception puts experts back as they were, if asked to."""
    levels, bank.noise_levels = bank.noise_levels, NoiseLevels.of(schedule)
    state = bank.experts.state_dict() if put_back else {}
    first = {name: tensor.clone() for name, tensor in state.items()}
    bank.train()
    try:
        yield
    except BaseException:
        if put_back:
            bank.experts.load_state_dict(first)
            bank.noise_levels = levels
        raise
    finally:
        bank.eval()


def _check(
    bank: ExpertBank,
    denoiser: Denoiser | Schedule,
    images: Images,
    training: Training,
    accelerator: Accelerator | None,
) -> None:
    given: object = images
    if not isinstance(denoiser, Denoiser | Schedule):
        raise TypeError(
            "transfer needs a ppap.Denoiser(network, schedule, shape), or its schedule, "
            f"got {type(denoiser).__name__}"
        )
    if isinstance(given, str | Path):
        raise TypeError(
            f"transfer needs images, got the name {str(given)!r}; ppap.synthesize(denoiser, count, "
            "folder=...) reads those that are there, and draws what is missing"
        )
    if isinstance(given, list | tuple | np.ndarray):
        raise TypeError(
            f"transfer needs (N, C, H, W) uint8 images as one tensor, got {type(given).__name__}; "
            "torch.from_numpy or torch.stack makes one"
        )
    if not hasattr(images, "shape"):
        raise TypeError(
            f"transfer needs (N, C, H, W) uint8 images, got {type(given).__name__}; stack what a "
            "data set or its loader gives into one tensor, such as to_uint8(torch.cat([...]))"
        )
    if len(images) == 0:
        raise ValueError("transfer needs at least one image")
    if len(images.shape) != 4 or images[:1].dtype != torch.uint8:
        raise ValueError(
            f"transfer needs (N, C, H, W) uint8 images, got {images[:1].dtype} of shape "
            f"{tuple(images.shape)}; ppap.files.images.to_uint8 makes them"
        )
    schedule = denoiser.schedule if isinstance(denoiser, Denoiser) else denoiser
    if isinstance(denoiser, Denoiser) and tuple(images.shape[1:]) != tuple(denoiser.shape):
        raise ValueError(
            f"the denoiser's images are {tuple(denoiser.shape)}, got {tuple(images.shape[1:])}"
        )
    if not schedule.is_whole:
        raise ValueError(
            f"the schedule's {len(schedule)} timesteps are {schedule.timesteps[:3].tolist()} ... "
            f"{schedule.timesteps[-1]}; experts are trained on those of a whole one, 0 to "
            f"{len(schedule) - 1}: give the schedule that was not respaced, and let the network "
            "turn timesteps into its own"
        )
    if bank.ranges.boundaries[-1] != len(schedule):
        raise ValueError(
            f"the bank's ranges end at {bank.ranges.boundaries[-1]}, "
            f"the schedule at {len(schedule)}; make the bank with steps={len(schedule)}"
        )
    if any(stage.steps < 1 for stage in stages(bank.ranges, training)):
        spent = f", {training.shared_share:g} of them on a start that all share"
        raise ValueError(
            f"{training.steps} steps{spent * (training.start == 'shared')} are too few: each of "
            f"{len(bank)} experts needs one of its own"
        )
    if any(tensor.is_inference() for tensor in state_of(bank).values()):
        raise ValueError(
            "the bank was made or loaded within torch.inference_mode(), and cannot be trained; "
            "make it outside"
        )
    _check_trainable(bank, training)
    workers = accelerator.num_processes if accelerator else 1
    together = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator and workers < together:
        raise ValueError(
            f"{together} processes were launched, but the accelerator sees {workers} of them, and "
            "each would train and write by itself; on a CPU make it with Accelerator(cpu=True)"
        )
    parts = accelerator.gradient_accumulation_steps if accelerator else 1
    if training.batch % (workers * parts):
        raise ValueError(
            f"{workers} processes cannot share batches of {training.batch} evenly, "
            f"in {parts} parts each; choose a multiple"
        )
    if training.order == "together" and (training.batch % len(bank) or accelerator):
        raise ValueError(
            f"{len(bank)} experts trained together share batches evenly, in one process; "
            f"got a batch of {training.batch}" + " and an accelerator" * bool(accelerator)
        )
    if accelerator and training.precision != "fp32":
        raise ValueError(
            f"an accelerator has a precision of its own; leave the training's {training.precision}"
            " at fp32, and choose Accelerator(mixed_precision=...)"
        )
    if bank.noise_levels is not None and training.start != "base" and trained_experts(bank):
        bank.noise_levels.check(schedule, "the bank")
    _check_start(bank, training)


def _check_trainable(bank: ExpertBank, training: Training) -> None:
    """Refuse experts that were frozen, and, where all go together, those frozen in part alone."""
    trained = [
        {name for name, tensor in bank.expert(number).tensors().items() if tensor.requires_grad}
        for number in range(len(bank))
    ]
    if not all(trained):
        raise ValueError(
            f"expert {trained.index(set())} is frozen; bank.experts.requires_grad_(True) thaws all"
        )
    if training.order == "together" and any(names != trained[0] for names in trained):
        raise ValueError(
            "experts trained together have the same tensors frozen; choose order='ascending'"
        )


def _check_start(bank: ExpertBank, training: Training) -> None:
    """Refuse to write one expert over others that hold a training's result."""
    if training.start not in ("previous", "shared") or len(bank) == 1:
        return
    last = training.start == "previous" and training.order == "descending"
    source = len(bank) - 1 if last else 0
    lost = [number for number in trained_experts(bank) if number != source]
    if lost:
        raise ValueError(
            f"experts {lost} of the bank are trained already, and start={training.start!r} would "
            f"write expert {source} over them; go on with start='own', or anew with start='base'"
        )


def trained_experts(bank: ExpertBank) -> list[int]:
    """The experts of a bank that are no longer as its ``reset`` leaves them, low noise to high.

    Up to rounding: first values may be computed from the predictor's, as DoRA's magnitudes are, and
    are others in another type or on another device.

    Args:
        bank: it is unmerged, for what is looked at is the predictor as it was.
    """
    bank.unmerge()
    found = []
    for number, fresh in enumerate(bank.fresh()):
        before, now = fresh.state_dict(), bank.expert(number).state_dict()
        if not all(_as_before(value, before[key]) for key, value in now.items()):
            found.append(number)
    return found


def _as_before(value: Tensor, before: Tensor) -> bool:
    rounding = 8 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return torch.allclose(value, before.to(value), rtol=max(rounding, FIRST_VALUES), atol=0.0)
