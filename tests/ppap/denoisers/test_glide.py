"""What the golden figures of GLIDE do not cover: default captions, precision, text, errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.denoisers.glide import SuperResText2ImUNet, Text2ImUNet, TextEncoder
from ppap.files.images import to_uint8

VOCABULARY = ["l", "o", "w", "e", "r", "Ġ", "!", "lo", "low", "er", "Ġlow", "Ġlo", "<|endoftext|>"]
MERGES = ["l o", "Ġ lo", "Ġlo w", "lo w", "e r"]
CONTEXT = 7
SMALL: dict[str, Any] = {
    "text_ctx": CONTEXT,
    "xf_width": 32,
    "xf_layers": 2,
    "xf_heads": 4,
    "xf_final_ln": True,
    "xf_padding": True,
    "n_vocab": len(VOCABULARY),
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
    "num_head_channels": 16,
}


def seeded(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def base() -> Text2ImUNet:
    network = seeded(Text2ImUNet(**SMALL))
    assert isinstance(network, Text2ImUNet)
    return network


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    ranks = {token: rank for rank, token in enumerate(VOCABULARY)}
    (tmp_path / "encoder.json.gz").write_bytes(gzip.compress(json.dumps(ranks).encode()))
    lines = "\n".join(["#version: 0.2", *MERGES, ""])
    (tmp_path / "vocab.bpe.gz").write_bytes(gzip.compress(lines.encode()))
    return TextEncoder(tmp_path, CONTEXT)


def inputs(count: int = 2, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.tensor([7, 900])[:count]


@torch.no_grad()
def test_no_caption_is_the_empty_caption(base: Text2ImUNet, encoder: TextEncoder) -> None:
    x, t = inputs()
    tokens, mask = encoder(["", ""])
    assert not mask.any()
    torch.testing.assert_close(base(x, t), base(x, t, tokens, mask))


@torch.no_grad()
def test_one_caption_serves_a_batch_and_captions_differ(
    base: Text2ImUNet, encoder: TextEncoder
) -> None:
    x, t = inputs()
    tokens, mask = encoder(["low", "lower"])
    both = base(x, t, tokens, mask)
    for row in range(2):
        alone = base(x, t, tokens[[row]], mask[[row]])
        torch.testing.assert_close(alone[row], both[row], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(alone[1 - row], both[1 - row], rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_half_precision_stays_close_and_keeps_norms_in_float32(
    dtype: torch.dtype, tolerance: float
) -> None:
    network = seeded(SuperResText2ImUNet(**SMALL))
    assert isinstance(network, SuperResText2ImUNet)
    x, t = inputs()
    low_res = inputs(size=4)[0]
    single = network(x, t, low_res)
    network.convert_to(dtype)
    half = network(x, t, low_res)
    assert half.dtype == torch.float32
    assert network.transformer.resblocks[0].attn.c_qkv.weight.dtype == dtype
    assert network.input_blocks[0][0].weight.dtype == dtype
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} == {torch.float32}
    assert 0 < (half - single).abs().max() < tolerance * single.abs().max()


@torch.no_grad()
def test_the_upsampler_heeds_the_small_image() -> None:
    network = seeded(SuperResText2ImUNet(**SMALL))
    x, t = inputs()
    low_res = inputs(size=4)[0]
    output = network(x, t, low_res)
    assert output.shape == (2, 6, 8, 8)
    changed = low_res.clone()
    changed[0] += 0.5
    difference = (network(x, t, changed) - output).abs().flatten(1).amax(1)
    assert difference[0] > 1e-3
    assert difference[1] == 0
    with pytest.raises(ValueError, match="sees small images"):
        network(x, t)
    # Bytes would be resized as they are, and taken for images from 0 to 255.
    with pytest.raises(ValueError, match=r"got torch.uint8 \(2, 3, 4, 4\); from_uint8"):
        network(x, t, to_uint8(low_res))
    with pytest.raises(ValueError, match=r"floating-point \(B, 3, h, w\)"):
        network(x, t, low_res[:, :1])


def test_bytes_pair_in_the_order_of_the_merges(encoder: TextEncoder) -> None:
    tokens, mask = encoder(["low LOWER!", "wow low", "low low low low low low low low low"])
    end = VOCABULARY.index("<|endoftext|>")
    named = [[VOCABULARY[token] for token in row if token != end] for row in tokens.tolist()]
    assert named[0] == ["low", "Ġlow", "er", "!"]
    assert named[1] == ["w", "o", "w", "Ġlow"]
    assert named[2] == ["low"] + 6 * ["Ġlow"]
    assert mask.sum(1).tolist() == [4, 4, CONTEXT]
    assert (tokens[~mask] == end).all()


def test_a_caption_alone_is_not_taken_for_its_letters(encoder: TextEncoder) -> None:
    with pytest.raises(TypeError, match=r"give \['low'\]"):
        encoder("low")


def test_missing_and_wrong_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no encoder\.json\.gz.*github\.com/openai/glide"):
        TextEncoder(tmp_path)
    for name in ("encoder.json.gz", "vocab.bpe.gz"):
        (tmp_path / name).write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="no byte-pair vocabulary"):
        TextEncoder(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_tokens_and_masks_are_integers_of_any_width(base: Text2ImUNet, dtype: torch.dtype) -> None:
    x, t = inputs()
    tokens = torch.arange(2 * CONTEXT).view(2, CONTEXT) % (len(VOCABULARY) - 1)
    mask = tokens < 4
    expected = base(x, t, tokens, mask)
    assert torch.equal(base(x, t, tokens.to(dtype), mask.to(dtype)), expected)


def test_tokens_that_there_are_not_are_named(base: Text2ImUNet) -> None:
    x, t = inputs()
    tokens = torch.zeros(2, CONTEXT, dtype=torch.int64)
    mask = tokens.bool()
    for wrong, why in (
        (tokens + len(VOCABULARY), "token 13 is none of the 13"),
        (tokens - 1, "token -1 is none"),
        (tokens.float(), "integers from 0 to 12, got torch.float32"),
        (mask, "integers from 0 to 12, got torch.bool"),
    ):
        with pytest.raises(ValueError, match=why):
            base(x, t, wrong, mask)
    with pytest.raises(ValueError, match=r"mask of tokens is \(B, T\) bool, got torch.float32"):
        base(x, t, tokens, mask.float())


def test_tokens_need_a_mask_and_the_width_of_the_context(base: Text2ImUNet) -> None:
    x, t = inputs()
    tokens = torch.zeros(2, CONTEXT, dtype=torch.int64)
    for given in ((tokens, None), (tokens[:, 1:], tokens[:, 1:].bool())):
        with pytest.raises(ValueError, match=r"tokens and a mask, both \(B, 7\)"):
            base(x, t, *given)
    with pytest.raises(ValueError, match="xf_heads"):
        Text2ImUNet(**{**SMALL, "xf_heads": 5})
