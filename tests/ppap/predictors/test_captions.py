"""Captions become targets by the model's own text tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from ppap.denoisers.diffusers_models import encode_if_captions
from ppap.files.checkpoints import CheckpointError, save_weights
from ppap.predictors.public import load_predictor, text_targets
from ppap.tasks.similarity import SimilarityTask
from tests.ppap.predictors.saved_models import (
    SIDE,
    WORDS,
    in_range,
    pixels,
    pooled,
    saved,
)


def tokenizer(folder: Path) -> None:
    """The files of CLIP's tokenizer, as they are published."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", "c a", "ca t</w>", "d o", "do g</w>"]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@torch.no_grad()
def test_captions_are_embedded_by_clips_own_text_tower(tmp_path: Path) -> None:
    network = saved("clip", tmp_path)
    tokenizer(tmp_path)
    found = text_targets(f"transformers/{tmp_path}", ["a dog", "A CAT"])
    ids = torch.tensor([[0, 2, 3, 1], [0, 2, 4, 1]])
    expected = pooled(network.get_text_features(ids))
    torch.testing.assert_close(found, nn.functional.normalize(expected, dim=1))
    assert text_targets(tmp_path, ["a dog " * 40]).isfinite().all()
    predictor = load_predictor(f"transformers/{tmp_path}")
    images = pixels(SIDE, count=3)
    both = network(
        input_ids=ids, pixel_values=predictor.prepare(in_range(images)), return_dict=True
    )
    task = SimilarityTask(scale=network.logit_scale.exp().item())
    for caption in range(2):
        logits = (
            task.log_likelihood(predictor(in_range(images)), found[caption].expand(3, -1))
            + task.scale
        )
        torch.testing.assert_close(logits, both.logits_per_image[:, caption], rtol=1e-4, atol=1e-4)


def tokenizer_of_words(folder: Path, **settings: Any) -> None:
    """One without anything before or after a caption."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "dog": 2, "<unk>": 3}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", **settings
    ).save_pretrained(folder)


@pytest.mark.parametrize("settings", [{}, {"eos_token": "<end>"}])
def test_captions_that_do_not_end_have_no_embedding(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """CLIP would take that of their first token, the same for all of them."""
    saved("clip", tmp_path)
    tokenizer_of_words(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=r"no tokenizer .*it does not end captions"):
        text_targets(tmp_path, ["dog", "dog dog"])


@torch.no_grad()
def test_captions_of_siglip(tmp_path: Path) -> None:
    network = saved("siglip", tmp_path)
    tokenizer_of_words(tmp_path)
    ids = torch.tensor([[1, 2] + 10 * [0]])
    expected = pooled(network.get_text_features(ids))
    found = text_targets(tmp_path, ["a dog"])
    torch.testing.assert_close(found, nn.functional.normalize(expected, dim=1))
    # As SigLIP 2's tokenizer, this one keeps capitals, with which no SigLIP was trained.
    assert torch.equal(text_targets(tmp_path, ["A Dog"]), found)


@pytest.mark.parametrize(
    ("captions", "kind", "why"),
    [
        ("a dog", TypeError, r"give \['a dog'\]"),
        (["a dog", None], TypeError, "got None"),
        ([], ValueError, "got none"),
    ],
)
def test_captions_are_a_list_of_texts(
    captions: Any, kind: type[Exception], why: str, tmp_path: Path
) -> None:
    """A caption alone would become as many targets as it has letters."""
    for encode in (text_targets, encode_if_captions):
        with pytest.raises(kind, match=why):
            encode(tmp_path, captions)


def test_captions_for_what_knows_no_text_are_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path / "vit")
    with pytest.raises(CheckpointError, match="ViTForImageClassification, which knows no text"):
        text_targets(tmp_path / "vit", ["a dog"])
    network = saved("clip", tmp_path / "clip")
    with pytest.raises(CheckpointError, match="no tokenizer") as caught:
        text_targets(tmp_path / "clip", ["a dog"])
    assert "\n" not in str(caught.value)
    tokenizer(tmp_path / "clip")
    state = network.state_dict()
    del state["text_projection.weight"]
    save_weights(state, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing text_projection\.weight"):
        text_targets(tmp_path / "clip", ["a dog"])
