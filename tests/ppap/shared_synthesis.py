"""One of several processes that draw images into one folder; notes which shards it drew.

Run as ``python -m tests.ppap.shared_synthesis FOLDER NOTES``; it imports little.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile

from torch import Tensor, nn

from ppap.diffusion import synthesis
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import linear_schedule
from ppap.files.shards import ImageShards


class Halving(nn.Module):
    """A denoiser to which half of the image is noise."""

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return x_t / 2


def in_shards(folder: Path) -> ImageShards:
    """Ten images in shards of four."""
    denoiser = Denoiser(Halving(), linear_schedule(), (3, 4, 4))
    found = synthesis.synthesize(denoiser, 10, DDIM(2), folder=folder, shard=4)
    assert isinstance(found, ImageShards)
    return found


def main(folder: Path, notes: Path) -> None:
    """Draw them slowly enough for the others to come by."""
    write = synthesis.write_shard
    with NamedTemporaryFile("w", dir=notes, delete=False) as file:

        def noted(place: Path, bounds: tuple[int, int], images: Tensor) -> None:
            file.write(f"{bounds[0]}\n")
            time.sleep(0.5)
            write(place, bounds, images)

        synthesis.write_shard = noted
        in_shards(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
