"""Knowledge transfer: the experts of a bank are trained, without data or with labels.

For expert n: t ~ U(range n), x_t ~ q(x_t | x_0), and the student's prediction for x_t is drawn to
the teacher's for the clean x_0 (data-free, the paper's way) or to a label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppap.compute.allocator import keep_freed_memory
from ppap.compute.precision import choose_precision
from ppap.compute.progress import Progress, reporting
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import Schedule
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Objective
from ppap.experts.trainer import Trainer
from ppap.experts.training import Training
from ppap.files.images import Images

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["transfer"]


def transfer(
    bank: ExpertBank,
    denoiser: Denoiser | Schedule,
    images: Images,
    objective: Objective | None = None,
    training: Training | None = None,
    *,
    progress: bool | Progress = False,
    accelerator: Accelerator | None = None,
    compile: bool = False,
) -> list[float]:
    """Train every expert of a bank.

    Under ``accelerate launch`` or ``torchrun`` each process trains on its share of every batch
    and gradients are averaged, so that several processes give what one does, batch norms aside,
    whose statistics are those of the shares. (On CPUs without MPI the former starts one process.)

    Args:
        bank: its experts are trained in place; what was merged into its predictor is unmerged. To
            go on with a trained bank say ``Training(start="own")``.
        denoiser: whose noise the experts are to see through, or its full schedule.
        images: (N, C, H, W) uint8: a tensor, or what
            :func:`ppap.diffusion.synthesis.synthesize` gave.
        objective: by default :class:`ppap.experts.objectives.Distillation`, which needs no
            labels, by the bank's own task; or :class:`ppap.experts.objectives.Supervision`.
        training: budget and optimiser, by default the paper's.
        progress: True shows a bar; a function is called after each step of the whole training
            as ``progress(done, total, loss=...)``.
        accelerator: Hugging Face accelerate's, for mixed precision and several processes;
            move the bank to its device first.
        compile: whether the step of experts trained together is compiled, which takes up to a
            minute and makes it about 1.7 times as fast on a CPU; other orders ignore it.

    Returns:
        Mean loss over the last tenth of each expert's steps, low noise to high.

    Raises:
        ValueError: if there are no images or images of another shape than the denoiser's, the
            bank's ranges and the schedule differ in length, the training would write one expert
            over others that are trained already, processes cannot share the batch
            evenly, the device would emulate the precision asked for, or an accelerator brings
            one of its own.
    """
    objective = Distillation() if objective is None else objective
    training = Training() if training is None else training
    bank.unmerge()
    schedule = denoiser.schedule if isinstance(denoiser, Denoiser) else denoiser
    _check(bank, denoiser, images, training, accelerator)
    precision = choose_precision(training.precision, next(bank.parameters()).device)
    keep_freed_memory()
    if training.start == "base":
        bank.reset()
    loss = objective.loss(bank, images)
    if progress is True and accelerator is not None and not accelerator.is_main_process:
        progress = False
    bank.train()
    with reporting(progress, training.steps, "transfer", "steps") as report:
        trainer = Trainer(
            bank, images, schedule, loss, training, report, accelerator, compile, precision
        )
        losses = _train(trainer)
    bank.eval()
    return losses


def _train(trainer: Trainer) -> list[float]:
    bank, training = trainer.bank, trainer.training
    count = len(bank)
    spent = 0
    if training.start == "shared" and count > 1:
        spent = round(training.steps * training.shared_share)
        trainer.fit(0, (0, bank.ranges.boundaries[-1]), spent)
        for number in range(1, count):
            bank.copy_expert(0, number)
    if training.order == "together":
        return [trainer.fit_together(training.steps - spent)] * count
    order = list(range(count))
    if training.order == "descending":
        order.reverse()
    losses = [float("nan")] * count
    for place, number in enumerate(order):
        if place and training.start == "previous":
            bank.copy_expert(order[place - 1], number)
        steps = training.share(place, count, spent)
        losses[number] = trainer.fit(number, bank.ranges.bounds(number), steps)
    return losses


def _check(
    bank: ExpertBank,
    denoiser: Denoiser | Schedule,
    images: Images,
    training: Training,
    accelerator: Accelerator | None,
) -> None:
    if len(images) == 0:
        raise ValueError("transfer needs at least one image")
    schedule = denoiser.schedule if isinstance(denoiser, Denoiser) else denoiser
    if isinstance(denoiser, Denoiser) and tuple(images.shape[1:]) != tuple(denoiser.shape):
        raise ValueError(
            f"the denoiser's images are {tuple(denoiser.shape)}, got {tuple(images.shape[1:])}"
        )
    if bank.ranges.boundaries[-1] != len(schedule):
        raise ValueError(
            f"the bank's ranges end at {bank.ranges.boundaries[-1]}, "
            f"the schedule at {len(schedule)}; make the bank with steps={len(schedule)}"
        )
    _check_start(bank, training)
    workers = accelerator.num_processes if accelerator else 1
    if training.batch % workers:
        raise ValueError(
            f"{workers} processes cannot share batches of {training.batch} evenly; "
            "choose a multiple"
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


def _check_start(bank: ExpertBank, training: Training) -> None:
    """Refuse to write one expert over others that hold a training's result."""
    if training.start not in ("previous", "shared") or len(bank) == 1:
        return
    last = training.start == "previous" and training.order == "descending"
    source = len(bank) - 1 if last else 0
    lost = [number for number in bank.trained() if number != source]
    if lost:
        raise ValueError(
            f"experts {lost} of the bank are trained already, and start={training.start!r} would "
            f"write expert {source} over them; go on with start='own', or anew with start='base'"
        )
