"""Depth, class, segmentation and CLIP models in the format of Hugging Face transformers.

A model is a folder, or a hub id, that holds ``config.json``, the preprocessor's settings and
weights: ``model.safetensors`` or, read weights-only, ``pytorch_model.bin``, whole or in shards.
No code of the folder's is ever run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppap.files.checkpoints import CheckpointError
from ppap.files.hub import hub_folder
from ppap.predictors.predictor import Predictor
from ppap.predictors.preprocessing import SIDES, preprocessing
from ppap.predictors.transformers_files import SETTINGS_FILES, load_network, settle
from ppap.predictors.wrappers import SelectOutput
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask

__all__ = ["ImageEmbedding", "load_transformers"]

OUTPUTS: dict[str, tuple[str, Task]] = {
    "ForDepthEstimation": ("predicted_depth", DepthTask()),
    "ForImageClassification": ("logits", ClassTask()),
    "ForSemanticSegmentation": ("logits", SegmentationTask()),
}
"""What an architecture predicts, and what that means, by the end of its name."""
NO_CLASSES = {
    "multi_label_classification": "a score of its own, of which several may be right",
    "regression": "a number",
}
"""What the architecture of a classifier may have been trained to give, by the problem's name."""


class ImageEmbedding(nn.Module):
    """The half of a CLIP or SigLIP that sees images: (B, 3, H, W) -> embeddings (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", nn.Identity())

    def forward(self, images: Tensor) -> Any:
        return self.visual_projection(self.vision_model(pixel_values=images).pooler_output)


def load_transformers(
    source: str | Path, size: tuple[int, int] | None = None, name: str = ""
) -> Predictor:
    """A predictor of depth, class, segmentation or image embedding, on the CPU in float32.

    The model's own image processor is run on plain squares, and what it does to them is done
    here, differentiably: normalisation, and a size, to which the whole image is resized
    bilinearly, also where the processor would cut out its centre, add a margin (ZoeDepth's
    reflects the edges) or use another filter. A processor that keeps sizes gives a predictor that
    keeps them.

    Published DPTs lack weights of their first fusion layer. Missing weights are accepted if the
    prediction does not depend on them, and set to 0, where transformers draws them at random.

    Args:
        source: hub id or folder, e.g. ``"Intel/dpt-hybrid-midas"``.
        size: input size; None takes the processor's.
        name: of the predictor.

    Returns:
        The predictor in evaluation mode: depth (B, H, W), logits (B, K), logits (B, K, h, w) at
        the network's own resolution, or embeddings (B, D).

    Raises:
        CheckpointError: if something is missing, damaged, hostile or of another kind, such as a
            classifier of several labels at once, or a regression.
        ImportError: without the extra ``public``.
    """
    folder = hub_folder(source, SETTINGS_FILES, nested=False)
    network, missing = load_network(source, folder)
    if (problem := getattr(network.config, "problem_type", None)) in NO_CLASSES:
        raise CheckpointError(
            f"{source} gives each label {NO_CLASSES[problem]}, and no distribution over classes; "
            "wrap the network in a ppap.Predictor with a task of yours"
        )
    mean, std, own_size = preprocessing(source, folder)
    kind = type(network).__name__
    found = next((what for ending, what in OUTPUTS.items() if kind.endswith(ending)), None)
    task: Task = found[1] if found else SimilarityTask()
    predicting = SelectOutput(network, found[0]) if found else ImageEmbedding(network)
    predictor = Predictor(predicting.eval(), mean, std, size or own_size, name or str(source), task)
    example = torch.zeros(1, 3, *(predictor.size or (SIDES[0], SIDES[0])))
    settle(source, network, missing, lambda: predictor(example))
    return predictor
