"""The loss of knowledge transfer between classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import ppap_kernels as kernels
from ppap_kernels.dispatch import Entry
from ppap_kernels.operations.description import (
    DTYPES,
    Case,
    Kernel,
    Launches,
    Problem,
    Tensors,
    Traffic,
    Way,
    draws,
    normal,
    ours,
    source_of,
)
from ppap_kernels.transfer_loss import transfer_loss_op

__all__ = ["KERNEL", "problem"]

ROWS = 256
"""Of a batch that the kernel is audited and tuned on."""
CANDIDATES = {"BLOCK_ROWS": (1, 2, 4, 16), "num_warps": (4, 8, 16), "num_stages": (1,)}


def problem(rows: int, classes: int, gpu: bool) -> Problem:
    """(rows, classes) logits of student and teacher."""

    def eager(t: Tensors) -> Tensor:
        target = F.log_softmax(
            t["teacher"].to(torch.promote_types(t["x"].dtype, torch.float32)) / 0.25, 1
        )
        logits = F.log_softmax(t["x"].to(target.dtype), 1)
        return F.kl_div(logits, target, reduction="batchmean", log_target=True)

    return Problem(
        "transfer_loss",
        f"{rows}x{classes}",
        lambda dtype, on: normal(dtype, on, x=(rows, classes), teacher=(rows, classes)),
        eager,
        (
            *ours(
                lambda t, backend: kernels.transfer_loss(
                    t["x"], t["teacher"], 0.25, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", eager),
        ),
        (),
        lambda size: loss_traffic(rows, classes, size).minimum,
        12 * rows * classes,
    )


def _case(entry: Entry, dtype: str) -> Case:
    from ppap_kernels import triton_elementwise

    rows, classes = ROWS, entry.shape["classes"]
    pointers = dict.fromkeys(("student", "teacher", "gradient"), dtype) | {"losses": "fp32"}
    constants = {"BLOCK_CLASSES": 1 << (classes - 1).bit_length()}
    unaligned = set() if classes % 16 == 0 else {"classes", "student_b", "teacher_b"}
    kernel = triton_elementwise.transfer_loss_kernel
    source = source_of(kernel, entry, pointers, constants, set(), unaligned | {"rows"})
    traffic = loss_traffic(rows, classes, DTYPES[dtype])
    return Case("transfer_loss", f"rows={rows} classes={classes}", dtype, source, traffic)


def loss_traffic(rows: int, classes: int, size: int) -> Traffic:
    """Of two tables of logits and a gradient; size bytes an element."""
    logits = rows * classes * size
    return Traffic(3 * logits + 4 * rows, 3 * logits, 15 * logits)


def _cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    del rank
    yield _case(entry, dtype)


def _launches(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Launches:
    """The gradient in the student's logits."""
    from ppap_kernels import triton_elementwise

    draw = draws(dtype, device)
    student, teacher = draw(ROWS, shape["classes"]), draw(ROWS, shape["classes"])
    return Launches(
        lambda config: triton_elementwise.transfer_loss(student, teacher, 0.25, config)[1],
        lambda: (
            student.float().softmax(1) - (teacher.float() / 0.25).softmax(1)
        ).to(dtype) / ROWS,
        lambda: transfer_loss_op(student, teacher, 0.25, True)[1],
    )  # fmt: skip


KERNEL = Kernel("transfer_loss", _cases, ranked=False, candidates=CANDIDATES, launches=_launches)
