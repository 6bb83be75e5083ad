"""Captions as targets of a CLIP's or SigLIP's image embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.compute.options import check_captions
from ppap.files.checkpoints import CheckpointError, one_line
from ppap.files.hub import extra, hub_folder
from ppap.predictors.transformers_files import EMBEDDERS, SETTINGS_FILES, load_network, settle

__all__ = ["text_targets"]

TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
"""Without any of these transformers would make up a vocabulary."""
SMALL_LETTERS = ("SiglipModel",)
"""Architectures trained on captions in small letters, which not all of their tokenizers see to."""
ENDED = ("CLIPModel",)
"""Architectures that take a caption's embedding from where it ends."""
EARLY_END = 2
"""What configurations of OpenAI's CLIPs have for the end, which is another token there."""


@torch.no_grad()
def text_targets(source: str | Path, captions: Sequence[str]) -> Tensor:
    """Embeddings of captions, as targets for the image embeddings of the same model.

    Args:
        source: hub id or folder of a CLIP or SigLIP, ``transformers/`` before it or not.
        captions: cut after as many tokens as the model was trained with (CLIP: 77); in small
            letters for SigLIP, as it was trained.

    Returns:
        (B, D) of unit length, for :class:`ppap.tasks.similarity.SimilarityTask`.

    Raises:
        TypeError: for a single caption that is in no list.
        ValueError: for no captions.
        CheckpointError: as :func:`load_transformers`, and if the model knows no text.
        ImportError: without the extra ``public``.
    """
    check_captions(captions)
    source = str(source).removeprefix("transformers/")
    folder = hub_folder(source, SETTINGS_FILES, nested=False)
    network, missing = load_network(source, folder)
    if not isinstance(getattr(network, "text_model", None), nn.Module):
        raise CheckpointError(
            f"{source} is a {type(network).__name__}, which knows no text; "
            f"name a {' or '.join(EMBEDDERS)}"
        )
    if type(network).__name__ in SMALL_LETTERS:
        captions = [caption.lower() for caption in captions]
    ended = type(network).__name__ in ENDED
    ids = _tokens(source, folder, captions, network.config.text_config, ended)
    project = getattr(network, "text_projection", nn.Identity())

    def embed() -> Tensor:
        return torch.as_tensor(project(network.text_model(ids).pooler_output))

    settle(source, network, missing, embed)
    return F.normalize(embed(), dim=1)


def _tokens(source: str, folder: Path, captions: Sequence[str], config: Any, ended: bool) -> Tensor:
    """(B, length) of captions, filled up to the length that the model was trained with."""
    try:
        if not any((folder / file).is_file() for file in TOKENIZERS):
            raise FileNotFoundError(f"none of {', '.join(TOKENIZERS)}")
        tokenizer = extra("transformers").AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        ids = tokenizer(
            list(captions),
            padding="max_length",
            max_length=config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        if int(ids.max()) >= config.vocab_size:
            raise ValueError(f"it knows more than the model's {config.vocab_size} tokens")
        early = config.eos_token_id == EARLY_END
        end = tokenizer.eos_token_id if early else config.eos_token_id
        if ended and (end is None or not (ids == end).any(dim=1).all()):
            raise ValueError("it does not end captions, of whose end the model makes an embedding")
        return torch.as_tensor(ids)
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(
            f"{source} holds no tokenizer that can be used ({one_line(error)})"
        ) from error
