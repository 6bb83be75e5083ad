"""Models of transformers predict what their own pipelines do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from ppap.files.checkpoints import CheckpointError
from ppap.predictors.public import load_predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask
from tests.ppap.predictors.saved_models import MODELS, SIDE, in_range, pixels, published, saved


@pytest.mark.parametrize("model", MODELS)
def test_a_transformers_model_predicts_what_its_pipeline_does(model: str, tmp_path: Path) -> None:
    saved(model, tmp_path)
    predictor = load_predictor(f"transformers/{tmp_path}")
    side = 28 if model == "depth-anything" else SIDE  # the multiple of 14 nearest to 30
    assert predictor.size == (side, side)
    images = pixels(side)
    kinds = {
        DepthTask(): transformers.AutoModelForDepthEstimation,
        ClassTask(): transformers.AutoModelForImageClassification,
        SegmentationTask(): transformers.AutoModelForSemanticSegmentation,
        SimilarityTask(): transformers.AutoModel,
    }
    network = kinds[MODELS[model][1]].from_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = published(network, processor(images, return_tensors="pt").pixel_values)
    x = in_range(images).requires_grad_()
    found = predictor(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.01
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    assert not any(part.training for part in predictor.modules())


def test_a_model_that_scores_each_label_by_itself_is_no_classifier(tmp_path: Path) -> None:
    """A softmax over such scores would guide away from labels that may be right as well."""
    saved("vit", tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"problem_type": "single_label_classification"}))
    assert load_predictor(f"transformers/{tmp_path}").task == ClassTask()
    for kind, given in (
        ("multi_label_classification", "a score of its own"),
        ("regression", "a number"),
    ):
        path.write_text(json.dumps(settings | {"problem_type": kind}))
        with pytest.raises(CheckpointError, match=f"each label {given}.*no distribution") as caught:
            load_predictor(f"transformers/{tmp_path}")
        assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("entry", ["return_dict", "use_return_dict", "output_hidden_states"])
def test_a_config_that_asks_for_another_form_of_output_changes_nothing(
    entry: str, tmp_path: Path
) -> None:
    network = saved("vit", tmp_path)
    path = tmp_path / "config.json"
    asked = {entry: entry.startswith("output")}
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    predictor, x = load_predictor(f"transformers/{tmp_path}"), in_range(pixels(SIDE))
    torch.testing.assert_close(predictor(x), network(predictor.prepare(x)).logits)
