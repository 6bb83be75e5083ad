"""Merged weights equal unmerged layers, in the buffer that was given."""

from __future__ import annotations

import pytest
import torch
from ppap_kernels import lora_conv, lora_linear, merge_lora
from ppap_kernels.merge_lora import merge_lora_op
from torch import Tensor


def randoms(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def test_a_merged_linear_layer_equals_the_unmerged() -> None:
    x, weight, a, b = randoms((5, 7), (6, 7), (2, 7), (6, 2))
    out = torch.full_like(weight, torch.nan)
    where = out.data_ptr()
    assert merge_lora(out, weight, a, b, 0.5) is out
    assert out.data_ptr() == where
    torch.testing.assert_close(x @ out.t(), lora_linear(x, weight, a, b, None, 0.5))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_convolution_form_is_loralibs(layout: torch.memory_format) -> None:
    weight, a, b = randoms((4, 3, 3, 3), (6, 9), (12, 6))
    expected = weight + 0.5 * (b @ a).view(4, 3, 3, 3)
    weight = weight.to(memory_format=layout)
    out = torch.full_like(weight, torch.nan)
    torch.testing.assert_close(merge_lora(out, weight, a, b, 0.5), expected)
    assert out.is_contiguous(memory_format=layout)


def test_a_merged_convolution_of_pefts_form_equals_the_unmerged() -> None:
    x, weight, a, b = randoms((2, 3, 5, 6), (4, 3, 3, 3), (2, 3, 3, 3), (4, 2))
    for up in (b, b[..., None, None]):
        out = torch.full_like(weight, torch.nan)
        merge_lora(out, weight, a, up, 0.5)
        unmerged = lora_conv(x, weight, a, up, None, 0.5, stride=2, padding=1)
        torch.testing.assert_close(torch.conv2d(x, out, None, 2, 1), unmerged)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # one product, a temporary
def test_all_experts_are_merged_at_once(dtype: torch.dtype) -> None:
    forms = {
        "linear": ((6, 7), (3, 2, 7), (3, 6, 2)),
        "loralib": ((4, 3, 3, 3), (3, 6, 9), (3, 12, 6)),
        "peft": ((4, 3, 3, 3), (3, 2, 3, 3, 3), (3, 4, 2)),
    }
    for shapes in forms.values():
        weight, a, b = randoms(*shapes)
        weight = weight.to(dtype)
        out = torch.full((3, *weight.shape), torch.nan, dtype=dtype)
        merge_lora(out, weight, a, b, 0.5)
        for one, down, up in zip(out, a, b, strict=True):
            alone = merge_lora(torch.empty_like(weight), weight, down, up, 0.5)
            torch.testing.assert_close(one, alone)


def test_a_merge_leaves_the_weight_and_needs_no_gradient() -> None:
    weight, a, b = (t.requires_grad_() for t in randoms((6, 7), (2, 7), (6, 2)))
    before = weight.detach().clone()
    out = torch.empty_like(weight.detach())
    merge_lora(out, weight, a, b)
    assert not out.requires_grad
    assert torch.equal(weight, before)


def test_half_precision_weights_take_float32_adapters() -> None:
    weight, a, b = randoms((6, 7), (2, 7), (6, 2))
    out = torch.empty(6, 7, dtype=torch.float16)
    merge_lora(out, weight.half(), a.float(), b.float(), 0.5)
    torch.testing.assert_close(out.double(), weight + 0.5 * b @ a, rtol=2e-3, atol=2e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself
def test_opcheck_and_compilation() -> None:
    weight, a, b = randoms((4, 3, 3, 3), (6, 9), (12, 6))
    torch.library.opcheck(merge_lora_op, (torch.empty_like(weight), weight, a, b, 0.5, False))

    def merged(out: Tensor) -> Tensor:
        merge_lora_op(out, weight, a, b, 0.5, False)
        return out * 2

    compiled = torch.compile(merged, fullgraph=True, backend="aot_eager")
    out = torch.empty_like(weight)
    torch.testing.assert_close(compiled(out), 2 * (weight + 0.5 * (b @ a).view(4, 3, 3, 3)))


def test_errors_say_what_was_expected() -> None:
    weight, a, b = randoms((6, 7), (2, 7), (6, 2))
    with pytest.raises(ValueError, match="weight itself"):
        merge_lora(weight, weight, a, b)
    every = weight.expand(2, -1, -1).clone()
    for lost, base in ((weight.data, weight), (weight.view(6, 7), weight), (every, every[1])):
        stacks = (a, b) if lost.ndim == 2 else (a.expand(2, -1, -1), b.expand(2, -1, -1))
        with pytest.raises(ValueError, match="overlaps"):
            merge_lora(lost, base, *stacks)
    assert torch.equal(merge_lora(every[0], every[1], a, b), weight + b @ a)
    with pytest.raises(ValueError, match=r"a \(r, 7\) and b \(6, r\)"):
        merge_lora(torch.empty_like(weight), weight, a[:, 1:], b)
    convolution, down, up = randoms((4, 3, 3, 3), (2, 3, 3, 3), (4, 2))
    with pytest.raises(ValueError, match=r"or a \(r, 3, 3, 3\) and b \(4, r\)"):
        merge_lora(torch.empty_like(convolution), convolution, down[:, 1:], up)
    with pytest.raises(ValueError, match=r"like the weight, \(1, 6, 7\)"):
        merge_lora(torch.empty_like(weight), weight, a[None], b[None])
    with pytest.raises(ValueError, match="like the weight"):
        merge_lora(torch.empty(7, 6), weight, a, b)
