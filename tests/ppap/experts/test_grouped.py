"""One pass over samples of different experts equals one pass per expert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Head, Norms
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor
from tests.ppap.networks import images, tiny_predictor

LAYERS = r"conv1|qkv|proj"
EXPERTS = torch.tensor([3, 0, 3, 1, 0, 4, 3, 1, 4])


class TinyTransformer(nn.Module):
    """Patches, one attention-like mixing of tokens, a head; layer norms with affine."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.proj = nn.Linear(12, 12, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return self.head(x.mean(1))


def transformer() -> Predictor:
    torch.manual_seed(1)
    return Predictor(TinyTransformer().eval(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def bank_of(predictor: Predictor, adapter: Adapter, count: int = 5) -> ExpertBank:
    bank = ExpertBank(predictor, count, adapter)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in bank.experts.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
        for expert in bank.experts:
            for tensor in expert.buffers():
                if tensor.is_floating_point():
                    tensor.add_(torch.rand(tensor.shape, generator=generator))
    return bank


def one_by_one(bank: ExpertBank, x: Tensor) -> Tensor:
    """Each expert's rows in a pass of their own."""
    found = torch.empty(len(x), 5)
    for number in EXPERTS.unique().tolist():
        found[number == EXPERTS] = bank.predict(x[number == EXPERTS], number)
    return found


CASES = {
    "paper, resnet": (tiny_predictor, ppap_adapter(2, 2.0)),
    "paper, transformer": (transformer, Adapter((Biases(""), Norms("norm"), Lora(3, 2.0, LAYERS)))),
    "published scaling": (transformer, Adapter((Lora(3, 2.0, LAYERS, "published"),))),
    "biases": (transformer, Adapter((Biases("qkv"),))),
    "norms without statistics": (tiny_predictor, Adapter((Norms(statistics=False),))),
    "norms": (transformer, Adapter((Norms("norm"), Head()))),
    "full": (tiny_predictor, Adapter((Full(),))),
    "full and lora": (tiny_predictor, Adapter((Full(), Lora(2, 2.0, "conv1|fc")))),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_mixed_batch_is_its_parts(case: str, training: bool) -> None:
    predictor, adapter = CASES[case]
    together, apart = (bank_of(predictor(), adapter).train(training) for _ in range(2))
    assert together._mixed.grouped is not None
    x, probe = images(len(EXPERTS)), images(len(EXPERTS), 7).flatten(1)[:, :5]
    x_together, x_apart = (x.clone().requires_grad_() for _ in range(2))
    ours = together.predict_mixed(x_together, EXPERTS)
    theirs = one_by_one(apart, x_apart)
    torch.testing.assert_close(ours, theirs)
    (ours * probe).sum().backward()
    (theirs * probe).sum().backward()
    torch.testing.assert_close(x_together.grad, x_apart.grad)
    for (name, ours_kept), theirs_kept in zip(
        together.experts.named_buffers(), apart.experts.buffers(), strict=True
    ):
        torch.testing.assert_close(ours_kept, theirs_kept, msg=name)
    if training:
        for (name, mine), other in zip(
            together.experts.named_parameters(), apart.experts.parameters(), strict=True
        ):
            # An expert without rows (the third) has a gradient of 0 here and none there.
            expected = torch.zeros_like(mine) if other.grad is None else other.grad
            assert mine.grad is not None, name
            torch.testing.assert_close(mine.grad, expected, atol=1e-4, rtol=1e-4, msg=name)


def test_a_merged_bank_still_routes() -> None:
    bank = bank_of(tiny_predictor(), ppap_adapter(2, 2.0)).eval()
    before = bank.predict_mixed(images(9), EXPERTS)
    bank.merge(2)
    torch.testing.assert_close(bank.predict_mixed(images(9), EXPERTS), before)


def test_a_bank_that_moves_takes_its_grouped_network_along() -> None:
    bank = bank_of(tiny_predictor(), Adapter((Norms(statistics=False),))).eval().double()
    x = images(9).double()
    expected = torch.stack([bank.predict(x[i : i + 1], int(e))[0] for i, e in enumerate(EXPERTS)])
    torch.testing.assert_close(bank.predict_mixed(x, EXPERTS), expected)


def test_what_has_no_grouped_form_goes_by_the_general_path() -> None:
    peft = bank_of(tiny_predictor(), Adapter((Peft("lora", 2, 2.0, r"\.conv1$"),))).eval()
    assert peft._mixed.grouped is None
    expected = one_by_one(peft, images(len(EXPERTS)))
    torch.testing.assert_close(peft.predict_mixed(images(len(EXPERTS)), EXPERTS), expected)


def test_layers_that_reshape_the_batch_go_by_the_general_path() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(3 * 16, 5)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48)
            return self.qkv(windows).view(len(x), -1, 5).mean(1)

    predictor = Predictor(Windows().eval(), (0.5,) * 3, (0.5,) * 3)
    bank = bank_of(predictor, Adapter((Lora(2, 2.0, "qkv"),))).eval()
    expected = one_by_one(bank, images(len(EXPERTS)))
    torch.testing.assert_close(bank.predict_mixed(images(len(EXPERTS)), EXPERTS), expected)
    assert bank._mixed.check.dropped
