"""Banks as folders that peft itself loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Norms
from ppap.experts.adapters.peft import Method, Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.peft_folders import save_peft
from ppap.predictors.predictor import Predictor
from tests.ppap.networks import images, tiny_predictor

from .adapters.test_peft import Network
from .test_grouped import bank_of
from .test_released import transformer

RANK, ALPHA = 2, 1.0
ADAPTERS = {
    "paper, convolutions": (tiny_predictor, ppap_adapter(RANK, ALPHA)),
    "paper, attention": (transformer, ppap_adapter(RANK, ALPHA)),
    "unscaled": (transformer, Adapter((Lora(RANK, ALPHA, linear_scaling="published"), Biases()))),
    "two ranks": (transformer, Adapter((Lora(2, 9.0, "qkv$"), Lora(3, 30.0, "proj$"), Biases()))),
    "no biases": (tiny_predictor, Adapter((Lora(RANK, ALPHA), Norms()))),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_peft_loads_what_is_saved_for_it(case: str, tmp_path: Path) -> None:
    make, adapter = ADAPTERS[case]
    bank = bank_of(make(), adapter, 2).eval()
    save_peft(bank, tmp_path)
    x = images(4)
    for number in range(2):
        network = copy.deepcopy(make().network)
        model = peft.PeftModel.from_pretrained(network, tmp_path / f"expert_{number}").eval()
        expected = bank.predict(x, number)
        torch.testing.assert_close(model(bank.predictor.prepare(x)), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(expected, bank.predictor(x), atol=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of BOFT without its CUDA extension
@pytest.mark.parametrize("method", get_args(Method))
def test_pefts_own_methods_are_saved_for_it(method: Method, tmp_path: Path) -> None:
    torch.manual_seed(0)
    predictor = Predictor(Network().eval(), (0.5,) * 4, (0.5,) * 4)
    part = Peft(method, 2, 1.0, layers="mixer" if method == "oft" else "conv1|mixer")
    more = (Biases(""),) if "ora" in method else ()
    bank = bank_of(predictor, Adapter((*more, Norms("bn1"), part)), 1).eval()
    save_peft(bank, tmp_path)
    torch.manual_seed(0)
    model = peft.PeftModel.from_pretrained(Network(), tmp_path / "expert_0").eval()
    x = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(
        model(predictor.prepare(x)), bank.predict(x, 0), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "adapter", [Adapter((Full(),)), Adapter((Norms(),)), Adapter((Peft("loha", 2), Biases("")))]
)
def test_what_peft_has_no_form_for_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save the bank itself"):
        save_peft(ExpertBank(tiny_predictor(), 1, adapter), tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 8, (3, 1), stride=2),
        nn.Conv2d(4, 8, 1, dilation=2),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd")
def test_convolutions_of_other_kinds_go_to_peft_exactly(layer: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(layer, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    predictor = Predictor(network, (0.5,) * 4, (0.5,) * 4)
    bank = bank_of(predictor, Adapter((Biases(""), Lora(2, 4.0, "0"))), 1).eval()
    save_peft(bank, tmp_path)
    x = torch.randn(3, 4, 9, 9)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(network), tmp_path / "expert_0").eval()
    found, expected = model(predictor.prepare(x)), bank.predict(x, 0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected - predictor(x)).abs().max() > 1e-2


class Reading(nn.Module):
    """Reads the weight of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.mean((2, 3)), self.mixer.weight, self.mixer.bias)


REFUSED = {
    "dilated": nn.Sequential(nn.Conv2d(4, 8, 3, dilation=2), nn.Flatten()),
    "dilated and padded": nn.Sequential(nn.Conv2d(4, 8, 3, padding=2, dilation=2), nn.Flatten()),
    "circular": nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")),
    "read": Reading(),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_peft_would_compute_otherwise_is_refused_and_not_written(
    kind: str, tmp_path: Path
) -> None:
    predictor = Predictor(REFUSED[kind], (0.5,) * 4, (0.5,) * 4)
    bank = bank_of(predictor, Adapter((Lora(2, 4.0, "0|mixer"),)), 2).eval()
    with pytest.raises(ValueError, match="save the bank itself"):
        save_peft(bank, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_merged_bank_is_saved_as_it_is_unmerged(tmp_path: Path) -> None:
    bank = bank_of(tiny_predictor(), ppap_adapter(RANK, ALPHA), 2).eval()
    x = images(4)
    expected = bank.predict(x, 0)
    bank.merge(1)
    save_peft(bank, tmp_path)
    model = peft.PeftModel.from_pretrained(tiny_predictor().network, tmp_path / "expert_0").eval()
    torch.testing.assert_close(model(bank.predictor.prepare(x)), expected, atol=1e-4, rtol=1e-4)


def pooled(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), *layers)


@pytest.mark.parametrize("outputs", [12, 7])
def test_linear_layers_with_weights_the_other_way_round_go_to_peft(
    outputs: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = pooled(Conv1D(outputs, 12), nn.Tanh())
    bank = bank_of(Predictor(network), Adapter((Lora(2, 4.0, "2"), Biases(""))), 1).eval()
    save_peft(bank, tmp_path)
    x = images(4)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(network), tmp_path / "expert_0").eval()
    expected = bank.predict(x, 0)
    torch.testing.assert_close(model(bank.predictor.prepare(x)), expected, atol=1e-5, rtol=1e-5)
    assert (expected - bank.predictor(x)).abs().max() > 1e-2


class Tied(nn.Module):
    """Its head is the embedding of its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.head = nn.Embedding(5, 12), nn.Linear(12, 5, bias=False)
        self.head.weight = self.classes.weight
        self.body = pooled()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x) + self.classes.weight.mean(0))


class OfOneSize(Reading):
    """Knows its places."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.mixer = nn.Linear(3, 5)
        self.places = nn.Parameter(torch.randn(3, side, side))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.places)


class Several(Reading):
    """Predicts several tensors by a weight that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"scores": super().forward(x), "mean": x.mean()}


class Attending(nn.Module):
    """Attention of torch itself, whose own bias is none of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.attention = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.mixer(x.flatten(2).transpose(1, 2))
        return self.attention(tokens, tokens, tokens)[0].mean(1)


def test_a_tensor_that_peft_does_not_save_is_refused(tmp_path: Path) -> None:
    adapter = Adapter((Peft("lora", 2, 4.0, "mixer"), Biases("")))
    bank = bank_of(Predictor(Attending().eval()), adapter, 2).eval()
    with pytest.raises(ValueError, match=r"peft does not save attention\.in_proj_bias"):
        save_peft(bank, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Several(), "does not call all of the adapted layers"),
        (Tied(), "classes, an embedding that shares"),
        (OfOneSize(8), "does not call all of the adapted layers"),
        (OfOneSize(9), r"tell its size: Predictor\(..., size"),
    ],
    ids=["several", "tied", "of one size", "of an unknown one"],
)
def test_what_peft_cannot_be_told_is_refused_and_not_written(
    network: nn.Module, said: str, tmp_path: Path
) -> None:
    adapter = Adapter((Lora(2, 4.0, "classes|mixer"),))
    bank = bank_of(Predictor(network.eval()), adapter, 2).eval()
    with pytest.raises(ValueError, match=said):
        save_peft(bank, tmp_path)
    assert list(tmp_path.iterdir()) == []
