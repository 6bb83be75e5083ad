"""GLIDE: the text-conditional U-Net and up-sampler of openai/glide-text2im, and its text.

Constructor arguments carry their published names and every parameter its published
state-dict key, so ``base.pt`` and ``upsample.pt`` load strictly. Architecture: Nichol et al.,
*GLIDE* (arXiv 2112.10741), section 4.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.compute.known import outlier
from ppap.compute.options import check_captions
from ppap.denoisers.blocks import at_least_float32, small_images
from ppap.denoisers.unet import UNetModel

__all__ = ["SuperResText2ImUNet", "Text2ImUNet", "TextEncoder"]

VOCABULARY = "encoder.json.gz"
MERGES = "vocab.bpe.gz"
TOKENIZER_URL = "https://github.com/openai/glide-text2im/tree/main/glide_text2im/tokenizer"


class LayerNorm32(nn.LayerNorm):
    """Layer normalisation computed in float32 at least, whatever the input's and weights' dtype."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = at_least_float32(input, self.weight, self.bias)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.c_qkv(x).reshape(batch, length, self.heads, 3, -1)
        q, k, v = packed.permute(3, 0, 2, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width)))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(F.gelu(self.c_fc(x))))


class _TextBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.ln_1 = LayerNorm32(width)
        self.mlp = _MLP(width)
        self.ln_2 = LayerNorm32(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_TextBlock(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class Text2ImUNet(UNetModel):
    """GLIDE's base network: a U-Net that attends to the tokens of a caption.

    Args:
        text_ctx: tokens per caption.
        xf_width: width of the text transformer.
        xf_layers: its depth.
        xf_heads: its attention heads.
        xf_final_ln: whether its output is normalised.
        n_vocab: size of the vocabulary; the last token ends, and pads, a caption.
        xf_padding: whether padded positions have embeddings of their own.
        unet: arguments of :class:`ppap.denoisers.unet.UNetModel`, less the image size.

    Raises:
        ValueError: for a width that the heads cannot split, and as :class:`UNetModel`.
    """

    def __init__(
        self,
        text_ctx: int,
        xf_width: int,
        xf_layers: int,
        xf_heads: int,
        xf_final_ln: bool,
        n_vocab: int,
        xf_padding: bool = False,
        **unet: Any,
    ) -> None:
        if xf_width < 1 or xf_width % xf_heads:
            raise ValueError(f"xf_width={xf_width} cannot be split into xf_heads={xf_heads}")
        # The published network is not told its image size, and runs at any.
        super().__init__(**{"image_size": 0, **unet}, encoder_channels=xf_width)
        self.transformer = _Transformer(xf_width, xf_layers, xf_heads)
        self.final_ln = LayerNorm32(xf_width) if xf_final_ln else nn.Identity()
        self.token_embedding = nn.Embedding(n_vocab, xf_width)
        self.positional_embedding = nn.Parameter(torch.zeros(text_ctx, xf_width))
        self.transformer_proj = nn.Linear(xf_width, 4 * self.model_channels)
        self.padding_embedding = (
            nn.Parameter(torch.zeros(text_ctx, xf_width)) if xf_padding else None
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Network output for noisy images under a caption each; by default the empty caption.

        Args:
            x: (B, C, H, W) noisy images.
            timesteps: (B,) original timesteps.
            tokens: (B or 1, text_ctx) integers, from :class:`TextEncoder`; one row serves all
                images, and is encoded once.
            mask: (B or 1, text_ctx) bool or 0 and 1, False where tokens pad the caption.

        Returns:
            (B, out_channels, H, W) in the dtype of ``x``.

        Raises:
            ValueError: for tokens without a mask, of a wrong shape or type, or that the vocabulary
                does not have.
        """
        whole, per_token = self._encode_text(*self._caption(x.device, tokens, mask))
        emb = self._embed(timesteps)
        return self._denoise(x, emb + whole.to(emb.dtype), per_token)

    def _caption(
        self, device: torch.device, tokens: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        length = len(self.positional_embedding)
        if tokens is None and mask is None:
            end = self.token_embedding.num_embeddings - 1
            padding = torch.full((1, length), end, device=device)
            return padding, torch.zeros_like(padding, dtype=torch.bool)
        if tokens is None or mask is None or not tokens.shape[1:] == mask.shape[1:] == (length,):
            raise ValueError(f"captions need tokens and a mask, both (B, {length})")
        return self._known_tokens(tokens), _as_mask(mask)

    def _known_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens as an embedding takes them; a GPU's values are not looked at."""
        count = self.token_embedding.num_embeddings
        whole = not (tokens.is_floating_point() or tokens.is_complex()) and tokens.ndim == 2
        if not whole or tokens.dtype == torch.bool:
            raise ValueError(
                f"tokens are (B, {tokens.shape[-1]}) integers from 0 to {count - 1}, got "
                f"{tokens.dtype} {tuple(tokens.shape)}"
            )
        tokens = tokens.long()
        wrong = None if tokens.is_cuda else outlier(tokens, 0, count - 1)
        if wrong is not None:
            raise ValueError(
                f"token {wrong} is none of the {count} of the vocabulary; take a TextEncoder's"
            )
        return tokens

    def _encode_text(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the timestep embedding: (B, 4M), and tokens: (B, xf_width, T)."""
        h = self.token_embedding(tokens) + self.positional_embedding
        if self.padding_embedding is not None:
            h = torch.where(mask[..., None], h, self.padding_embedding)
        h = self.final_ln(self.transformer(h.to(self.dtype)))
        return self.transformer_proj(h[:, -1]), h.transpose(1, 2)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Cast the convolutions of the torso and the text transformer; norms stay float32."""
        super().convert_to(dtype)
        for module in (*self.transformer.modules(), self.transformer_proj, self.token_embedding):
            if isinstance(module, nn.Linear | nn.Embedding):
                module.to(dtype)


def _as_mask(mask: Tensor) -> Tensor:
    """A mask as bool, of integers that are 0 and 1 as other tokenizers give them."""
    if mask.is_floating_point() or mask.is_complex() or mask.ndim != 2:
        raise ValueError(f"a mask of tokens is (B, T) bool, got {mask.dtype} {tuple(mask.shape)}")
    return mask.bool()


class SuperResText2ImUNet(Text2ImUNet):
    """GLIDE's up-sampler: also sees the small image, resized bilinearly.

    Arguments are those of :class:`Text2ImUNet`; ``in_channels`` counts the noisy image's
    alone, as published.
    """

    def __init__(self, *, in_channels: int, **arguments: Any) -> None:
        super().__init__(in_channels=2 * in_channels, **arguments)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor,
        low_res: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`Text2ImUNet.forward`, with ``low_res``: (B or 1, C, h, w) in [-1, 1].

        Raises:
            ValueError: also for small images that are missing or no floating-point numbers.
        """
        small = small_images(low_res, x.shape[1])
        resized = F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)
        seen = torch.cat([x, resized.to(x.dtype).expand(len(x), -1, -1, -1)], dim=1)
        return super().forward(seen, timesteps, tokens, mask)


class TextEncoder:
    """GLIDE's byte-pair encoder, from the files published with it.

    Args:
        folder: holds ``encoder.json.gz`` and ``vocab.bpe.gz``.
        text_ctx: tokens per caption.

    Raises:
        ValueError: if a file is missing or is no such vocabulary.
        ImportError: without the extra ``public``.
    """

    def __init__(self, folder: str | Path, text_ctx: int = 128) -> None:
        try:
            from tokenizers import Tokenizer, models, pre_tokenizers
        except ImportError as error:
            raise ImportError("captions need tokenizers: pip install tokenizers") from error
        for name in (VOCABULARY, MERGES):
            if not (Path(folder) / name).is_file():
                raise ValueError(f"no {name} in {folder}; fetch it from {TOKENIZER_URL}")
        try:
            ranks = json.loads(gzip.decompress((Path(folder) / VOCABULARY).read_bytes()))
            lines = gzip.decompress((Path(folder) / MERGES).read_bytes()).decode().split("\n")
            merges = [(first, second) for first, second in map(str.split, filter(None, lines[1:]))]
            self._tokenizer = Tokenizer(models.BPE(ranks, merges))
        except Exception as error:  # the tokenizer raises bare exceptions
            raise ValueError(f"no byte-pair vocabulary in {folder}: {error}") from error
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.text_ctx = text_ctx
        self.end_token = self._tokenizer.get_vocab_size() - 1

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of captions, both (B, text_ctx): int64, padded by the end token; bool.

        Captions are lower-cased, as published, and cut to ``text_ctx`` tokens.

        Raises:
            TypeError: for a single caption that is in no list.
            ValueError: for no captions.
        """
        check_captions(captions)
        ids = [self._tokenizer.encode(caption.lower()).ids for caption in captions]
        tokens = torch.full((len(captions), self.text_ctx), self.end_token)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, found in enumerate(ids):
            kept = found[: self.text_ctx]
            tokens[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            mask[row, : len(kept)] = True
        return tokens, mask
