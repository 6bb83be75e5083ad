"""The protocol of OpenAI's evaluator: Inception features, and references in its format.

FID, sFID, Inception Score, precision and recall of openai/guided-diffusion's ``evaluations``
are taken on the 2015 graph of Inception v3, of which torch-fidelity holds a port; sFID (Nash
et al., arXiv 2103.03841) on the first 7 channels of its layer ``mixed_6/conv``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.hub import get_dir

from ppap.evaluation.features import Features, extract
from ppap.evaluation.reference import ReferenceStatistics, SpatialMoments
from ppap.files.checkpoints import CheckpointError, load_state, one_line
from ppap.files.images import from_uint8, to_uint8

__all__ = ["INCEPTION_FILE", "InceptionExtractor", "load_openai_reference"]

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""Name of the published weights; torch-fidelity fetches them by itself where it can."""
PUBLISHED = INCEPTION_FILE.removesuffix(".pth").rpartition("-")[2]
SPATIAL_CHANNELS = 7


class InceptionExtractor:
    """Inception v3 of 2015 as a feature extractor.

    Images of any size are resized to 299x299 as TensorFlow 1 did.

    Args:
        path: the weights' file; None takes torch-fidelity's, fetching it once.
        device: where it runs; images are taken there.

    Attributes:
        name: tells weights apart.

    Raises:
        CheckpointError: if the file is absent, damaged or of another network.
    """

    def __init__(self, path: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )

        cached = Path(get_dir()) / "checkpoints" / INCEPTION_FILE
        file = cached if path is None and cached.is_file() else path
        if file is not None:
            load_state(file)  # refuses what torch-fidelity, which loads pickles whole, would run
        try:
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=None if file is None else str(file),
            )
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"no Inception v3 from {file or 'the hub'} ({one_line(error)}); "
                f"fetch {URL_INCEPTION_V3}"
            ) from error
        digest = PUBLISHED if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
        self.name = f"inception-2015-12-05-{digest[: len(PUBLISHED)]}"
        self.device = torch.device(device)
        self._network: Any = network.to(self.device)
        self._spatial = torch.empty(0)
        self._network.Mixed_6d.branch1x1.conv.register_forward_hook(self._keep)

    def _keep(self, _layer: object, _inputs: object, output: Tensor) -> None:
        # TensorFlow's order, channels last.
        self._spatial = output[:, :SPATIAL_CHANNELS].movedim(1, -1).flatten(1)

    def __call__(self, images: Tensor) -> Features:
        """Features (N, 2048), logits (N, 1008) and spatial features (N, 2023) of images.

        Args:
            images: (N, 3, H, W) in [-1, 1]; rounded to 8 bits, as files would hold them.
        """
        features, logits = self._network(to_uint8(images).to(self.device))
        return Features(features, logits, self.name, self._spatial)


def load_openai_reference(
    path: str | Path, extractor: InceptionExtractor, batch: int = 50
) -> ReferenceStatistics:
    """A reference batch such as ``VIRTUAL_imagenet256_labeled.npz``.

    FID and sFID are against the moments in the file, which are of the whole training set;
    precision and recall against features of the file's images, which are extracted here.

    Args:
        path: an npz file with ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` and ``arr_0``
            (N, H, W, 3) uint8.
        extractor: of the published weights, if the moments are to be comparable.
        batch: images at a time.

    Raises:
        CheckpointError: if the file is absent, damaged, hostile or of another format.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in ("arr_0", "mu", "sigma", "mu_s", "sigma_s")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CheckpointError(
            f"{path} is no reference batch of OpenAI's evaluator ({one_line(error)}); fetch it "
            "from https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
        ) from error
    pixels = torch.from_numpy(arrays["arr_0"])
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != torch.uint8:
        raise CheckpointError(
            f"{path}: arr_0 is {pixels.dtype} {tuple(pixels.shape)}, not uint8 (N, H, W, 3)"
        )
    parts = [
        extract(extractor, from_uint8(part.movedim(-1, 1)), batch)
        for part in torch.split(pixels, batch)
    ]
    seen = Features.cat(parts)
    try:
        return ReferenceStatistics(
            extractor.name,
            len(seen),
            arrays["mu"].astype(np.float64),
            arrays["sigma"].astype(np.float64),
            seen.features.float(),
            SpatialMoments(arrays["mu_s"].astype(np.float64), arrays["sigma_s"].astype(np.float64)),
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error
