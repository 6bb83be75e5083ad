"""The protocol of OpenAI's evaluator: Inception features, and references in its format.

FID, sFID, Inception Score, precision and recall of openai/guided-diffusion's ``evaluations``
are taken on the 2015 graph of Inception v3, of which torch-fidelity holds a port; sFID (Nash
et al., arXiv 2103.03841) on the first 7 channels of its layer ``mixed_6/conv``, which is the output
of convolution, batch norm and ReLU.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.hub import get_dir

from ppap.evaluation.features import Features, extract
from ppap.evaluation.reference import Floats, ReferenceStatistics, SpatialMoments
from ppap.files.archives import read_arrays
from ppap.files.checkpoints import CheckpointError, load_state, one_line
from ppap.files.images import from_uint8, to_uint8

__all__ = ["INCEPTION_FILE", "InceptionExtractor", "load_openai_reference"]

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""Name of the published weights; torch-fidelity fetches them by itself where it can."""
PUBLISHED = INCEPTION_FILE.removesuffix(".pth").rpartition("-")[2]
SPATIAL_CHANNELS = 7
REFERENCE_ARRAYS = ("arr_0", "mu", "sigma", "mu_s", "sigma_s")


class InceptionExtractor:
    """Inception v3 of 2015 as a feature extractor.

    Images of any size are resized to 299x299 as TensorFlow 1 did.

    Args:
        path: the weights' file; None takes torch-fidelity's, fetching it once.
        device: where it runs; images are taken there.

    Attributes:
        name: tells weights apart, and what spatial features are: those that statistics were taken
            of before ReLU are of another extractor.

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
        self.name = f"inception-2015-12-05-{digest[: len(PUBLISHED)]}-relu"
        self.device = torch.device(device)
        self._network: Any = network.to(self.device)
        self._spatial = torch.empty(0)
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, _layer: object, _inputs: object, output: Tensor) -> None:
        # TensorFlow's order, channels last.
        self._spatial = output[:, :SPATIAL_CHANNELS].movedim(1, -1).flatten(1)

    def __call__(self, images: Tensor) -> Features:
        """Features (N, 2048), logits (N, 1008) and spatial features (N, 2023) of images.

        Args:
            images: (N, 3, H, W) in [-1, 1]; rounded to 8 bits, as files would hold them.

        Raises:
            ValueError: for images of another shape, such as grey ones.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"Inception sees (N, 3, H, W) images, got {tuple(images.shape)}; of grey ones "
                "repeat the channel, here and in the reference: images.expand(-1, 3, -1, -1)"
            )
        features, logits = self._network(to_uint8(images).to(self.device))
        return Features(features, logits, self.name, self._spatial)


def load_openai_reference(
    path: str | Path, extractor: InceptionExtractor, batch: int = 50
) -> ReferenceStatistics:
    """A reference batch such as ``VIRTUAL_imagenet256_labeled.npz``, or its moments alone.

    FID and sFID are against the moments in the file, which are of the whole training set;
    precision and recall against features of the file's images, which are extracted here.

    Args:
        path: an npz file with ``mu`` and ``sigma``, to which alone FID can be had; with ``mu_s``
            and ``sigma_s`` for sFID; with ``arr_0`` (N, H, W, 3) uint8 for the rest.
        extractor: of the published weights, if the moments are to be comparable.
        batch: images at a time.

    Raises:
        CheckpointError: if the file is absent, damaged, hostile or of another format, or its
            moments are none.
    """
    path = Path(path)
    arrays = _arrays(path)
    try:
        spatial = None
        if "mu_s" in arrays:
            spatial = SpatialMoments(_floats(arrays["mu_s"]), _floats(arrays["sigma_s"]))
        mean, covariance = _floats(arrays["mu"]), _floats(arrays["sigma"])
        alone = ReferenceStatistics(extractor.name, None, mean, covariance, spatial=spatial)
        if "arr_0" not in arrays:
            return alone
        seen = _features(arrays["arr_0"], extractor, batch).features.float()
        return replace(alone, count=len(seen), features=seen)
    except ValueError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What a reference batch holds of the five arrays, of which two must be there."""
    try:
        arrays = read_arrays(path, REFERENCE_ARRAYS)
        whole = "mu_s" not in arrays or "sigma_s" in arrays
        if not ({"mu", "sigma"} <= arrays.keys() and whole):
            raise ValueError(f"it holds {', '.join(arrays) or 'none of its arrays'}")
        return arrays
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no reference batch of OpenAI's evaluator ({one_line(error)}); fetch it "
            "from https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
        ) from error


def _features(pixels: npt.NDArray[Any], extractor: InceptionExtractor, batch: int) -> Features:
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"arr_0 is {pixels.dtype} {pixels.shape}, not uint8 (N, H, W, 3)")
    parts = torch.split(torch.from_numpy(pixels).movedim(-1, 1), batch)
    return Features.cat([extract(extractor, from_uint8(part), batch) for part in parts])


def _floats(array: npt.NDArray[Any]) -> Floats:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"moments are real numbers, got {array.dtype}")
    return array.astype(np.float64)
