"""Images without data: what the unguided diffusion model draws is the training set."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor

from ppap.compute.options import check_whole
from ppap.compute.progress import Progress, reporting
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import sample
from ppap.diffusion.solver import Sampler
from ppap.diffusion.stepping import Stepper, plain_step
from ppap.diffusion.streams import MAX_SEED
from ppap.files.checkpoints import fingerprint, plain_number
from ppap.files.images import to_uint8
from ppap.files.shards import ImageShards, claim_folder, claimed_shard, write_shard

__all__ = ["synthesize"]

WAIT_SECONDS = 0.5
Draw = Callable[[int, int, bool | Progress], Tensor]


@overload
def synthesize(
    denoiser: Denoiser,
    count: int,
    sampler: Sampler | None = ...,
    first_seed: int = ...,
    batch: int = ...,
    progress: bool | Progress = ...,
    stepper: Stepper = ...,
    folder: None = ...,
    shard: int = ...,
) -> Tensor: ...


@overload
def synthesize(
    denoiser: Denoiser,
    count: int,
    sampler: Sampler | None = ...,
    first_seed: int = ...,
    batch: int = ...,
    progress: bool | Progress = ...,
    stepper: Stepper = ...,
    folder: str | Path | None = ...,
    shard: int = ...,
) -> Tensor | ImageShards: ...


def synthesize(
    denoiser: Denoiser,
    count: int,
    sampler: Sampler | None = None,
    first_seed: int = 0,
    batch: int = 128,
    progress: bool | Progress = False,
    stepper: Stepper = plain_step,
    folder: str | Path | None = None,
    shard: int = 1024,
) -> Tensor | ImageShards:
    """Draw unguided images, kept as bytes as a data set would be.

    With a folder, images are written there by the shard, and what is there already is not drawn
    again: an interrupted synthesis goes on where it was, to the same images, and a larger one
    takes over the shards of a smaller one. Several processes that are given the same folder share
    the work by the shard, and each returns when all is there.

    Args:
        denoiser: the unconditional diffusion model.
        count: number of images; the paper's scale is 500 000.
        sampler: DDIM-25 by default, as in the paper.
        first_seed: image i has seed ``first_seed + i``, so parts join without overlap.
        batch: images per network call.
        progress: True shows a bar; a function is told how many images are finished.
        stepper: computes the steps, as for :func:`ppap.diffusion.sampling.sample`.
        folder: for images that do not fit into memory; new, or that of the same images.
        shard: images per file of the folder.

    Returns:
        (count, C, H, W) uint8: a tensor or, with a folder, an image set of which only what is
        asked for is read (:class:`ppap.files.shards.ImageShards`). Either is what
        :func:`ppap.experts.transfer.transfer` takes.

    Raises:
        NonFiniteError: if an image is not finite; shards that were written before stay.
        ValueError: for a shard without images, a negative number of images, a batch below 1 or
            seeds beyond 2^32 - 1, all before anything is drawn.
        CheckpointError: if the folder holds images of another denoiser, sampler, seed or shard
            size, or anything else.
    """
    check_whole("the number of images per shard", shard)
    check_whole("batch", batch)
    check_whole("the number of images", count, 0)
    check_whole("first_seed", first_seed, 0)
    if first_seed > MAX_SEED + 1 - count:
        raise ValueError(f"{count} images from seed {first_seed} on: seeds run from 0 to 2^32 - 1")
    sampler = DDIM(25) if sampler is None else sampler

    def draw(start: int, stop: int, progress: bool | Progress) -> Tensor:
        seeds = range(first_seed + start, first_seed + stop)
        images = sample(
            denoiser, seeds, sampler=sampler, batch=batch, progress=progress, stepper=stepper
        )
        return to_uint8(images)

    if folder is None:
        return draw(0, count, progress)
    folder = Path(folder)
    claim_folder(folder, _manifest(denoiser, sampler, first_seed, shard))
    found = ImageShards(folder, count, denoiser.image_shape(), shard)
    missing = found.missing()
    done = count - sum(stop - start for start, stop in missing)
    with reporting(progress, count, "synthesis", "images", done) as report:
        while missing:
            waiting = [bounds for bounds in missing if not _made(found, bounds, draw, report)]
            if len(waiting) == len(missing):  # other processes are at all of them
                time.sleep(WAIT_SECONDS)
            missing = waiting
    return found


def _made(
    found: ImageShards, bounds: tuple[int, int], draw: Draw, report: Callable[..., None]
) -> bool:
    """Whether a shard is there in the end; it is not while another process makes it."""
    with claimed_shard(found.folder, bounds) as mine:
        if not mine:
            return False
        if found.is_whole(bounds):  # by another process, meanwhile
            report(bounds[1] - bounds[0])
            return True
        finished = 0

        def advance(done: int, total: int, /, **facts: float) -> None:
            nonlocal finished
            report(done - finished, **facts)
            finished = done

        write_shard(found.folder, bounds, draw(*bounds, advance))
    return True


def _manifest(denoiser: Denoiser, sampler: Sampler, first_seed: int, shard: int) -> dict[str, Any]:
    """What decides a folder's images, rounding aside."""
    levels = denoiser.schedule.alphas_cumprod
    # Folders of earlier versions say nothing of it.
    target = {} if denoiser.target == "epsilon" else {"target": denoiser.target}
    return target | {
        "format": 1,
        "shape": denoiser.shape,
        "weights": fingerprint(dict(denoiser.named_parameters()) | dict(denoiser.named_buffers())),
        "schedule": hashlib.sha256(levels.tobytes()).hexdigest()[:16],
        "sampler": json.loads(json.dumps(_described(sampler), default=_described)),
        "first_seed": first_seed,
        "shard": shard,
    }


def _described(value: Any) -> Any:
    """A sampler by its fields, and a scheduler of diffusers within it by its configuration."""
    if isinstance(value, np.generic):
        return plain_number(value)
    if isinstance(value, np.ndarray | Tensor):  # such as trained betas
        return value.tolist()
    return {"kind": type(value).__name__, **getattr(value, "config", vars(value))}
